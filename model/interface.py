"""What a service or an evaluation asks of a model, whichever family it belongs to."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.package import Package
from model.proposer import AnyProposer

T = TypeVar("T")


@dataclass(frozen=True)
class ClipEmbedding:
    """A clip's latents. `time` is frames for the compact family and tubelets (pairs of frames) for V-JEPA 2."""

    pooled: Float[Tensor, " width"]
    per_frame: Float[Tensor, "time width"]
    tokens: Float[Tensor, "time tokens width"]


@runtime_checkable
class Classifier(Protocol):
    """A model that also says what a clip shows; its package names the classes. A model need not be one."""

    def classify(self, frames: UInt8[Tensor, "time height width 3"]) -> Float[Tensor, " classes"]:
        """How likely each of the package's labels is, in order; they add up to 1."""
        ...


Steps = Generator[None, None, T]
"""Work in steps, each of which may be the last if nobody wants its result any more; what it returns is the result."""


def finished(steps: Steps[T]) -> T:
    """The result of all steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


@runtime_checkable
class Stepwise(Protocol):
    """A model to which a clip is one thing, that takes long. It stops between two of its layers. A model need not."""

    def clip_steps(self, frames: UInt8[Tensor, "time height width 3"]) -> Steps[ClipEmbedding]:
        """What `embed_clip` gives."""
        ...

    def class_steps(self, frames: UInt8[Tensor, "time height width 3"]) -> Steps[Float[Tensor, " classes"]]:
        """What `Classifier.classify` gives."""
        ...


class Rollouts(Protocol):
    """What a search asks of a world model."""

    @property
    def block(self) -> int: ...

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon *latent"]: ...


@runtime_checkable
class MeasuringModel(Protocol):
    """A model that predicts what a robot measures of itself, too, so that goals may say it. A model need not be one."""

    @property
    def goal_groups(self) -> tuple[tuple[int, float], ...]:
        """Channels of a goal, group by group, and the weight of each in the cost: a latent's, then what is measured.

        The latent's alone where nothing is measured.
        """
        ...

    def goal(
        self, latent: Float[Tensor, "*tokens latent"], proprioception: Float[Tensor, " p"] | None
    ) -> Float[Tensor, "*tokens channels"]:
        """What a search aims at: a goal's latent and, where it is said, what should be measured there."""
        ...

    def measuring(self) -> Rollouts:
        """The same model, whose rollouts show what is measured after the channels of a latent."""
        ...


class LoadedModel(Protocol):
    """What a service or an evaluation asks of a model. It also satisfies `planner.WorldModel`."""

    @property
    def package(self) -> Package: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the large matrix products of a rollout, or of the encoder in a model that only embeds."""
        ...

    @property
    def block(self) -> int:
        """Robot actions per model step."""
        ...

    @property
    def proposer(self) -> AnyProposer | None:
        """What suggests actions to searches with this model; None where its package has none."""
        ...

    def to_precision(self, dtype: torch.dtype) -> LoadedModel:
        """The same model with its large matrix products in another precision; a family may keep its own.

        With `torch.float8_e4m3fn` those of rollouts alone, with `torch.int8` those of encoders that only embed, and
        bfloat16 otherwise: integers have no slope, which some searches ask for.
        """
        ...

    def encode(self, frames: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch *latent"]:  # noqa: F821  # a shape
        """One latent per image: what observations, goals and image embeddings are made of."""
        ...

    def observation_warnings(
        self, frame: UInt8[Tensor, "height width 3"], proprioception: Float[Tensor, "history p"] | None
    ) -> tuple[str, ...]:
        """Warnings about what is odd, though legal, in an observation.

        Raises ObservationError for a frame that cannot be; proprioception `context` has refused before.
        """
        ...

    def embed_clip(self, frames: UInt8[Tensor, "time height width 3"]) -> ClipEmbedding:
        """Embed a clip of any length >= 1."""
        ...

    def context(
        self,
        latents: Sequence[Float[Tensor, "*latent"]],
        proprioception: Float[Tensor, "history p"] | None,
        past_actions: Float[Tensor, "time action"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Where a rollout starts, from the newest latents (oldest first, at least one); batch axis 1.

        `past_actions`, in robot units, were executed between them: `block` from each latent to the next. They are for
        packages with `past_actions`, and none other looks at them. Raises ObservationError for proprioception or
        actions that cannot be.
        """
        ...

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon *latent"]:
        """Predicted latents after every model step; actions in robot units, time a multiple of `block`."""
        ...


class WrappedModel:
    """A model around another one, which answers every question of `LoadedModel` but those that a subclass answers.

    Precision and prediction are always the subclass's.
    """

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
