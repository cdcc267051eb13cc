"""A LeWM package in use: frames and robot actions in, latents out. Satisfies `model.interface.LoadedModel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.checkpoints.state_dict import CheckpointError, load_strict
from model.interface import ClipEmbedding
from model.lewm.config import from_package
from model.lewm.network import LeWM
from model.lewm.rollout import Rollout
from model.normalizer import ActionNormalizer
from model.package import Package, PackageError
from model.preprocessing import CROP_POLICIES, CropPolicy, ObservationError, observation_warnings, prepare
from model.proposer import load_proposer
from model.runtime.memory import to_device

FRAMES_AT_ONCE = 64  # encoded together: bounds memory for long clips


class LeWMWorldModel:
    """The family behind the one protocol. Immutable after construction; safe to share between searches."""

    def __init__(self, package: Package, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is that of rollouts, which do nearly all the work of a plan: float32, bfloat16 or float64.

        Latents and embeddings are float32, and float64 where `dtype` is.
        """
        config, action = package.config, package.config.action
        if action is None:
            raise PackageError(f"{config.name}: a LeWM package needs an action specification")
        try:
            self._config = from_package(config.name, config.network)
        except (ValueError, TypeError) as error:
            raise PackageError(f"{package.folder}: {error}") from error
        if self._config.action_width != action.block * len(action.names):
            raise PackageError(
                f"{config.name}: network.action_width must be block x dimensions = {action.block * len(action.names)}, "
                f"got {self._config.action_width}"
            )
        if tuple(config.latent_shape) != (self._config.latent,):
            raise PackageError(
                f"{config.name}: latent_shape must be ({self._config.latent},), got {config.latent_shape}"
            )
        if config.image.crop_policy not in CROP_POLICIES:
            raise PackageError(f"{config.name}: image.crop_policy must be one of {CROP_POLICIES}")
        self.package, self.device, self.dtype, self.block = package, device, dtype, action.block
        self.proposer = load_proposer(package, device)
        self._policy: CropPolicy = config.image.crop_policy  # type: ignore[assignment]  # checked above
        self._size = (config.image.height, config.image.width)
        self._precise = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.device("meta"):
            network = LeWM(self._config)
        weights = package.weights()
        try:
            load_strict(network, weights, "lewm")
        except CheckpointError as error:
            raise PackageError(f"{package.folder}: {error}") from error
        self._network = network.to(device=device, dtype=self._precise).eval().requires_grad_(False)
        self._rollout = Rollout(self._network, dtype)
        self._normalizer = ActionNormalizer(action).to(device)

    @classmethod
    def from_package(cls, package: Package, device: torch.device) -> LeWMWorldModel:
        """In float32. Raises PackageError where config, weights and this code do not agree."""
        return cls(package, device)

    @property
    def window(self) -> int:
        """Latents that a prediction looks back on."""
        return self._config.window

    def to_precision(self, dtype: torch.dtype) -> LeWMWorldModel:
        """The same package with rollouts in another precision; bfloat16 for 8-bit numbers, which do not agree."""
        dtype = dtype if dtype in (torch.float32, torch.float64) else torch.bfloat16
        return self if dtype == self.dtype else LeWMWorldModel(self.package, self.device, dtype)

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch latent"]:
        """One latent per frame."""
        parts = [self._network.encode(self._images(part)) for part in torch.split(frames, FRAMES_AT_ONCE)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def observation_warnings(
        self, frame: UInt8[Tensor, "height width 3"], proprioception: Float[Tensor, "history p"] | None
    ) -> tuple[str, ...]:
        """What is odd about an observation's frame."""
        found = observation_warnings(frame, self._size, self._config.patch)
        rows, columns = frame.shape[:2]
        if rows != columns:
            found += (f"frames: {rows} x {columns} pixels are not square, as all that LeWM was trained on are",)
        return found

    @torch.no_grad()
    def embed_clip(self, frames: UInt8[Tensor, "time height width 3"]) -> ClipEmbedding:
        """Every frame's latent and the encoder's tokens, the class token first; pooled is the mean of the latents."""
        tokens = torch.cat([self._network.encoder(self._images(part)) for part in torch.split(frames, FRAMES_AT_ONCE)])
        latents = self._network.projector(tokens[:, 0])
        return ClipEmbedding(pooled=latents.mean(dim=0), per_frame=latents, tokens=tokens)

    def context(
        self,
        latents: Sequence[Float[Tensor, " latent"]],
        proprioception: Float[Tensor, "history p"] | None,
        past_actions: Float[Tensor, "time action"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Where rollouts start: up to `window` latents, a block of actions apart, and the actions between them.

        Latents before which no actions are known do not count: without `past_actions`, the newest alone does.
        Raises ObservationError for actions that are not whole blocks of the action space's width.
        """
        width = len(self._action_names)
        past = torch.zeros(0, width) if past_actions is None else past_actions
        if past.ndim != 2 or past.shape[1] != width or past.shape[0] % self.block:
            rule = f"must be [a multiple of {self.block}, {width}]"
            raise ObservationError("past_actions", rule, list(past.shape))
        kept = min(len(latents), past.shape[0] // self.block + 1, self.window)
        newest = torch.stack([to_device(latent, self.device) for latent in latents[-kept:]])
        executed = past[past.shape[0] - (kept - 1) * self.block :]
        return newest.unsqueeze(0).to(self._precise), self._blocks(to_device(executed, self.device)[None, None])[:, 0]

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon latent"]:
        """Predicted latents after every action block; actions in robot units, in which it can be differentiated."""
        latents, past = context
        predicted: Tensor = self._rollout(latents, past, self._blocks(actions))
        return predicted

    @property
    def _action_names(self) -> tuple[str, ...]:
        assert self.package.config.action is not None
        return self.package.config.action.names

    def _images(self, frames: Tensor) -> Float[Tensor, "batch 3 rows columns"]:
        return prepare(to_device(frames, self.device), self._policy, self._size).to(self._precise)

    def _blocks(self, actions: Tensor) -> Float[Tensor, "batch samples steps block"]:
        """Network units, the actions of a model step side by side."""
        batch, samples, time, width = actions.shape
        if time % self.block:
            raise ValueError(f"actions: time must be a multiple of the block {self.block}, got {time}")
        normal: Tensor = self._normalizer(actions.to(self._precise))
        return normal.reshape(batch, samples, time // self.block, self.block * width)
