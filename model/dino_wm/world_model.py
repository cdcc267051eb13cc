"""A DINO-WM or jepa-wms package in use: camera frames to patch tokens, and what robot actions make of them.

Satisfies `model.interface.LoadedModel`. What a robot measures of itself is predicted beside every patch; `measuring`
gives the rollouts that show it, for goals that say what should be measured at their end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.checkpoints.state_dict import CheckpointError, load_strict
from model.dino_wm.config import DinoConfig, PredictorConfig
from model.dino_wm.encoder import DinoEncoder
from model.dino_wm.predictor import Frame, PatchPredictor, rollout
from model.interface import ClipEmbedding
from model.layers.prepacked_linear import pack_linears
from model.normalizer import ActionNormalizer
from model.package import Package, PackageConfig, PackageError
from model.preprocessing import (
    CROP_POLICIES,
    Color,
    CropPolicy,
    ObservationError,
    observation_warnings,
    prepare,
)
from model.proposer import load_proposer
from model.runtime.cuda_graphs import being_captured
from model.runtime.memory import free_memory, to_device

Config = TypeVar("Config")
FRAMES_AT_ONCE = 32
MEMORY_SHARE = 0.6
MOST_ROWS = 512


@dataclass(frozen=True)
class Standards:
    """What takes pixels and proprioception to network units."""

    pixel_mean: Color
    pixel_std: Color
    """Of pixel values scaled to 0..1."""
    proprioception_mean: tuple[float, ...] = ()
    proprioception_std: tuple[float, ...] = ()
    alpha: float = 0.0
    """Weight of the proprioception beside the patches in the published cost."""

    def __post_init__(self) -> None:
        for name in ("pixel_mean", "pixel_std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}: must have 3 entries, got {len(getattr(self, name))}")
        if len(self.proprioception_mean) != len(self.proprioception_std):
            lengths = f"{len(self.proprioception_mean)} and {len(self.proprioception_std)}"
            raise ValueError(f"proprioception_mean and proprioception_std: must be of one length, got {lengths}")
        for name in ("pixel_std", "proprioception_std"):
            if not all(value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name}: must be positive, got {getattr(self, name)}")
        if not self.alpha >= 0:
            raise ValueError(f"alpha: must be at least 0, got {self.alpha}")


class DinoWorldModel:
    """A frozen image encoder and a predictor of its patches. Immutable after construction."""

    def __init__(
        self,
        package: Package,
        encoder: DinoEncoder,
        predictor: PatchPredictor,
        standards: Standards,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> None:
        """`chunk` bounds the samples rolled out at once (None: what fits). PackageError where parts do not fit."""
        check(package.config, encoder.config, predictor.config, standards)
        action = package.config.action
        assert action is not None
        self.package, self.device, self.dtype, self.block, self.chunk = package, device, dtype, action.block, chunk
        self.proposer = load_proposer(package, device)
        self._size = (package.config.image.height, package.config.image.width)
        self._policy: CropPolicy = package.config.image.crop_policy  # type: ignore[assignment]  # checked above
        self.standards = standards
        self.encoder = encoder.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.predictor = predictor.to(device=device, dtype=dtype).eval().requires_grad_(False)
        pack_linears(self.encoder.blocks)
        pack_linears(self.predictor.predictor)
        self._normalizer = ActionNormalizer(action).to(device)
        statistics = (standards.proprioception_mean, standards.proprioception_std)
        self._mean, self._std = (torch.tensor(values, dtype=torch.float64, device=device) for values in statistics)

    @classmethod
    def from_package(cls, package: Package, device: torch.device, dtype: torch.dtype = torch.float32) -> DinoWorldModel:
        """Build the networks its config describes and load their weights, all or nothing."""
        encoder, predictor, standards = build(package.config)
        weights = package.weights()
        try:
            for name, network in (("encoder", encoder), ("predictor", predictor)):
                prefix = f"{name}."
                own = {key.removeprefix(prefix): weights.pop(key) for key in [*weights] if key.startswith(prefix)}
                load_strict(network, {key: tensor.float() for key, tensor in own.items()}, name)
        except CheckpointError as error:
            raise PackageError(f"{package.folder}: {error}") from error
        if weights:
            raise PackageError(f"{package.folder}: weights have an unknown key: {min(weights)}")
        return cls(package, encoder, predictor, standards, device, dtype)

    def to_precision(self, dtype: torch.dtype) -> DinoWorldModel:
        """The same package with all its weights in another precision; bfloat16 for anything narrower."""
        dtype = dtype if dtype.itemsize > 1 else torch.bfloat16
        return self if dtype == self.dtype else self.from_package(self.package, self.device, dtype)

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch patches latent"]:
        """Normed patch tokens of single frames."""
        parts = [self.encoder(self._input(part)) for part in torch.split(frames, FRAMES_AT_ONCE)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def observation_warnings(
        self, frame: UInt8[Tensor, "height width 3"], proprioception: Float[Tensor, "history p"] | None
    ) -> tuple[str, ...]:
        """What is odd about an observation's frame; its sides are cut to a square, which these models never saw."""
        warnings = observation_warnings(frame, self._size, self.encoder.config.patch)
        rows, columns = frame.shape[:2]
        if rows == columns:
            return warnings
        side = min(rows, columns)
        return (*warnings, f"frames: {rows} x {columns} pixels are not square; their center of {side} x {side} is seen")

    @torch.no_grad()
    def embed_clip(self, frames: UInt8[Tensor, "time height width 3"]) -> ClipEmbedding:
        """Every frame's patch tokens and their mean; the pooled vector is the mean over the clip."""
        tokens = self.encode(frames).float()
        per_frame = tokens.mean(dim=1)
        return ClipEmbedding(pooled=per_frame.mean(dim=0), per_frame=per_frame, tokens=tokens)

    def context(
        self,
        latents: Sequence[Float[Tensor, "patches latent"]],
        proprioception: Float[Tensor, "history p"] | None,
        past_actions: Float[Tensor, "time action"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Rollouts start from the newest frame, and what was measured then where the model takes it; batch axis 1.

        Raises ObservationError for proprioception that is missing or of another width.
        """
        latent = to_device(latents[-1], self.device).to(self.dtype).unsqueeze(0)
        if not self.predictor.config.proprioception:
            return (latent,)
        names = self.package.config.proprioception_names
        if proprioception is None or proprioception.shape[-1] != len(names):
            found = "none" if proprioception is None else f"{proprioception.shape[-1]} numbers"
            raise ObservationError("proprioception", f"must be {', '.join(names)}", found)
        return (latent, self.measured(proprioception[-1:]))

    @torch.no_grad()
    def measured(self, proprioception: Float[Tensor, "batch p"]) -> Float[Tensor, "batch patches width"]:
        """Proprioception in robot units as it lies beside every patch."""
        standard = (to_device(proprioception, self.device).double() - self._mean) / self._std
        return self.predictor.measured(standard.to(self.dtype))

    def goal(
        self, latent: Float[Tensor, "patches latent"], proprioception: Float[Tensor, " p"] | None = None
    ) -> Float[Tensor, "patches channels"]:
        """What a search aims at: the goal image's patches and, where it is said, what should be measured there."""
        latent = to_device(latent, self.device).to(self.dtype)
        if proprioception is None:
            return latent
        return torch.cat([latent, self.measured(proprioception.unsqueeze(0))[0]], dim=-1)

    @property
    def goal_groups(self) -> tuple[tuple[int, float], ...]:
        """Channels of a goal and their weights: of patches, and of what is measured beside them."""
        shape = self.predictor.config
        beside = ((shape.proprioception_width, self.standards.alpha),) if shape.proprioception else ()
        return (shape.latent, 1.0), *beside

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon patches latent"]:
        """Predicted patch tokens after every action block; actions in robot units."""
        return self._rolled(context, actions, beside=False)

    def measuring(self) -> MeasuringWorldModel:
        """The same model as searches see it whose goal says what should be measured."""
        return MeasuringWorldModel(self)

    def _rolled(self, context: tuple[Tensor, ...], actions: Tensor, beside: bool) -> Tensor:
        """Rollouts, samples in chunks that fit the memory; with `beside`, proprioception follows the patch channels."""
        batch, samples, time, width = actions.shape
        if time % self.block:
            raise ValueError(f"actions: time must be a multiple of the block {self.block}, got {time}")
        steps = time // self.block
        normal: Tensor = self._normalizer(actions)
        flat = normal.to(self.dtype).reshape(batch * samples, steps, self.block * width)
        chunk = self.chunk or self._chunk(steps)
        parts = []
        for first in range(0, batch * samples, chunk):
            rows = flat[first : first + chunk]
            robots = torch.arange(first, first + len(rows), device=self.device) // samples
            start: Frame = (context[0][robots], context[1][robots] if len(context) > 1 else None)
            patches, measured = rollout(self.predictor, start, rows)
            parts.append(torch.cat([patches, measured], dim=-1) if beside and measured is not None else patches)
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found.view(batch, samples, *found.shape[1:])

    def _chunk(self, steps: int) -> int:
        """Samples rolled out at once in the free memory, at least 1."""
        if being_captured(self.device):
            return MOST_ROWS
        config = self.predictor.config
        element, tokens = self.dtype.itemsize, config.patches
        kept = 2 * config.depth * config.window * tokens * max(config.block_width, config.heads * config.head_dim)
        activations = tokens * (12 * config.block_width + 2 * config.mlp_hidden)
        frames = (2 * steps + config.window) * tokens * (config.latent + config.proprioception_width)
        return int(
            max(1, min(MOST_ROWS, MEMORY_SHARE * free_memory(self.device) // (element * (kept + activations + frames))))
        )

    def _input(self, frames: Tensor) -> Float[Tensor, "batch 3 rows columns"]:
        """Frames as the encoder takes them, cropped on its device."""
        placed = to_device(frames, self.device)
        standards = self.standards
        return prepare(placed, self._policy, self._size, standards.pixel_mean, standards.pixel_std).to(self.dtype)


class MeasuringWorldModel:
    """A `DinoWorldModel` whose rollouts show the proprioception it predicts, after the channels of every patch."""

    def __init__(self, model: DinoWorldModel) -> None:
        self._model = model
        self.block = model.block

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon patches channels"]:
        """Predicted patch tokens and proprioception after every action block."""
        return self._model._rolled(context, actions, beside=True)


def check(config: PackageConfig, encoder: DinoConfig, predictor: PredictorConfig, standards: Standards) -> None:
    """Raises PackageError, naming the field, where the parts of a package do not fit each other."""
    action, image = config.action, config.image
    if action is None:
        raise PackageError(f"{config.name}: a dino_wm package needs an action specification")
    grid = (image.height // encoder.patch, image.width // encoder.patch)
    numbers = len(config.proprioception_names)
    rules: tuple[tuple[str, object, object], ...] = (
        ("network.predictor.action must be block x dimensions", action.block * len(action.names), predictor.action),
        ("network.predictor.latent must be the encoder's width", encoder.width, predictor.latent),
        ("network.predictor.grid must be the image's", grid, (predictor.grid, predictor.grid)),
        ("network.predictor.proprioception must be the number of names", numbers, predictor.proprioception),
        ("network.standards: statistics must be of all proprioception", numbers, len(standards.proprioception_mean)),
    )
    for rule, wanted, got in rules:
        if wanted != got:
            raise PackageError(f"{config.name}: {rule}, {wanted}, got {got}")
    if image.crop_policy not in CROP_POLICIES:
        raise PackageError(
            f"{config.name}: image.crop_policy must be one of {CROP_POLICIES}, got {image.crop_policy!r}"
        )


def build(config: PackageConfig) -> tuple[DinoEncoder, PatchPredictor, Standards]:
    """What a package's config describes, networks without weights (on the meta device)."""
    network = dict(config.network)
    shapes = _read(DinoConfig, network.pop("encoder", None), config.name)
    predictor = _read(PredictorConfig, network.pop("predictor", None), config.name)
    standards = _read(Standards, network.pop("standards", None), config.name)
    if network:
        raise PackageError(f"{config.name}: network has an unknown key: {min(network)}")
    with torch.device("meta"):
        return DinoEncoder(shapes), PatchPredictor(predictor), standards


def describe(encoder: DinoConfig, predictor: PredictorConfig, standards: Standards) -> Mapping[str, Any]:
    """The inverse of `build`: what `PackageConfig.network` holds."""
    return {"encoder": asdict(encoder), "predictor": asdict(predictor), "standards": asdict(standards)}


def _read(kind: type[Config], raw: Any, where: str) -> Config:
    """A configuration from JSON, where tuples have become lists."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(raw, dict):
        raise PackageError(f"{where}: network: {kind.__name__} must be an object, got {raw!r}")
    if unknown := sorted(set(raw) - known):
        raise PackageError(f"{where}: network: {kind.__name__} has an unknown key: {unknown[0]}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})
    except (TypeError, ValueError) as error:
        raise PackageError(f"{where}: network: {kind.__name__}: {error}") from error
