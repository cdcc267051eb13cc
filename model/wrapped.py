"""A model around another one, which answers whatever a subclass does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.interface import ClipEmbedding, LoadedModel
from model.package import Package
from model.proposer import AnyProposer


class WrappedModel:
    """Every question of `model.interface.LoadedModel` but those of precision and prediction, handed on to `model`."""

    model: LoadedModel

    @property
    def package(self) -> Package:
        return self.model.package

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def block(self) -> int:
        return self.model.block

    @property
    def proposer(self) -> AnyProposer | None:
        return self.model.proposer

    def encode(self, frames: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch *latent"]:  # noqa: F821  # a shape
        return self.model.encode(frames)

    def observation_warnings(
        self, frame: UInt8[Tensor, "height width 3"], proprioception: Float[Tensor, "history p"] | None
    ) -> tuple[str, ...]:
        return self.model.observation_warnings(frame, proprioception)

    def embed_clip(self, frames: UInt8[Tensor, "time height width 3"]) -> ClipEmbedding:
        return self.model.embed_clip(frames)

    def context(
        self,
        latents: Sequence[Float[Tensor, "*latent"]],
        proprioception: Float[Tensor, "history p"] | None,
        past_actions: Float[Tensor, "past action"] | None = None,
    ) -> tuple[Tensor, ...]:
        return self.model.context(latents, proprioception, past_actions)
