"""A loaded V-JEPA 2 package (`model.interface.LoadedModel`), with or without an action-conditioned predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.checkpoints.state_dict import CheckpointError, load_strict
from model.interface import ClipEmbedding, Steps, finished
from model.layers import float8, int8
from model.layers.prepacked_linear import pack_linears
from model.package import Package, PackageConfig, PackageError
from model.preprocessing import CROP_POLICIES, CropPolicy, observation_warnings
from model.proposer import load_proposer
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from model.vjepa2.config import EncoderConfig
from model.vjepa2.encoder import Encoder
from model.vjepa2.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from model.vjepa2.poses import pose_warnings
from model.vjepa2.probe import AttentiveProbe, ProbeConfig
from model.vjepa2.world_model import CLIP_WINDOW, VJepa2WorldModel, clip_steps, encode_frames

Config = TypeVar("Config")
Network = Encoder | ActionPredictor | MaskedPredictor | AttentiveProbe
"""The parts a package may hold; each has its shape under `network` in the config and its weights under its name."""


class VJepa2Model:
    """Encoder and predictor of a package, ready on a device. Packages without actions embed and do not roll out."""

    def __init__(self, package: Package, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """`dtype` None keeps the stored type on an accelerator and computes in float32 on a CPU.

        Of 8-bit floats the predictor's blocks are made, of 8-bit integers the encoder's where nothing acts; all else is
        bfloat16 then.
        """
        self.package = package
        self.device = device
        self.block = 1
        self.proposer = load_proposer(package, device)
        image = package.config.image
        if image.crop_policy not in CROP_POLICIES:
            raise PackageError(f"{package.folder}: image.crop_policy must be one of {CROP_POLICIES}")
        self._size = (image.height, image.width)
        self._policy: CropPolicy = image.crop_policy  # type: ignore[assignment]  # checked above
        networks = build(package.config)
        weights = package.weights()
        try:
            for name, network in networks.items():
                prefix = f"{name}."
                own = {key.removeprefix(prefix): weights.pop(key) for key in [*weights] if key.startswith(prefix)}
                load_strict(network, own, name)
        except CheckpointError as error:
            raise PackageError(f"{package.folder}: {error}") from error
        if weights:
            raise PackageError(f"{package.folder}: weights have an unknown key: {min(weights)}")
        dtype = dtype or (torch.float32 if device.type == "cpu" else None)
        between = torch.bfloat16 if dtype in (float8.E4M3, torch.int8) else dtype
        for network in networks.values():
            network.to(device=device, dtype=between).eval().requires_grad_(False)
        encoder, predictor = networks["encoder"], networks.get("action_predictor")
        assert isinstance(encoder, Encoder)
        self.encoder = encoder
        self.dtype = next(encoder.parameters()).dtype
        self.world_model: VJepa2WorldModel | None = None
        if dtype == torch.int8 and predictor is None:
            int8.quantize_linears(encoder.blocks)
            self.dtype = dtype
        pack_linears(encoder.blocks)
        if isinstance(predictor, ActionPredictor):
            if dtype == float8.E4M3:
                float8.quantize_linears(predictor.predictor_blocks)
                self.dtype = dtype
            pack_linears(predictor.predictor_blocks)
        probe = networks.get("probe")
        self.probe = probe if isinstance(probe, AttentiveProbe) else None
        _check_labels(package.config, self.probe)
        if self.probe is not None:
            pack_linears(self.probe.pooler.blocks)
        if isinstance(predictor, ActionPredictor):
            self.world_model = VJepa2WorldModel(encoder, predictor, self._size, self._policy)

    @classmethod
    def from_package(cls, package: Package, device: torch.device) -> VJepa2Model:
        return cls(package, device)

    def to_precision(self, dtype: torch.dtype) -> VJepa2Model:
        """The same package with all its weights in another precision."""
        return self if dtype == self.dtype else VJepa2Model(self.package, self.device, dtype)

    def encode(self, frames: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch tokens latent"]:
        """Normalized latents of single frames."""
        return encode_frames(self.encoder, frames, self._size, self._policy)

    def observation_warnings(
        self, frame: UInt8[Tensor, "height width 3"], proprioception: Float[Tensor, "history 7"] | None
    ) -> tuple[str, ...]:
        """What is odd about an observation: sizes, brightness, units of the pose, which `context` has checked."""
        about_frame = observation_warnings(frame, self._size, self.encoder.config.patch)
        return about_frame if proprioception is None else (*about_frame, *pose_warnings(proprioception))

    @torch.no_grad()
    def clip_steps(self, frames: UInt8[Tensor, "time height width 3"]) -> Steps[ClipEmbedding]:
        """The encoder's own output per tubelet (two frames), averaged over space, and over the clip."""
        tokens = (yield from clip_steps(self.encoder, frames, self._size, self._policy)).float()
        per_tubelet = tokens.mean(dim=1)
        return ClipEmbedding(pooled=per_tubelet.mean(dim=0), per_frame=per_tubelet, tokens=tokens)

    def embed_clip(self, frames: UInt8[Tensor, "time height width 3"]) -> ClipEmbedding:
        """What `clip_steps` gives, at once."""
        return finished(self.clip_steps(frames))

    @torch.no_grad()
    def class_steps(self, frames: UInt8[Tensor, "time height width 3"]) -> Steps[Float[Tensor, " classes"]]:
        """The likelihood of each of the package's `labels` in a clip; of a long one, the mean over its windows.

        Raises PackageError for a package without a classifier.
        """
        if self.probe is None:
            raise PackageError(f"{self.package.config.name} classifies nothing: it has no probe")
        scores = []
        for window in torch.split(frames, CLIP_WINDOW):
            tokens = yield from clip_steps(self.encoder, window, self._size, self._policy)
            found = yield from self.probe.steps(tokens.flatten(0, 1).unsqueeze(0))
            scores.append(found[0].float().softmax(dim=-1))
        return torch.stack(scores).mean(dim=0)

    def classify(self, frames: UInt8[Tensor, "time height width 3"]) -> Float[Tensor, " classes"]:
        """What `class_steps` gives, at once."""
        return finished(self.class_steps(frames))

    def context(
        self,
        latents: Sequence[Float[Tensor, "tokens latent"]],
        proprioception: Float[Tensor, "history p"] | None,
        past_actions: Float[Tensor, "time action"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Where a rollout starts; proprioception is the robot's poses at the latents' frames."""
        return self._acting().context(latents, proprioception)

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time 7"]
    ) -> Float[Tensor, "batch samples time tokens latent"]:
        """Predicted normalized latents after every action."""
        return self._acting().rollout(context, actions)

    def _acting(self) -> VJepa2WorldModel:
        if self.world_model is None:
            raise PackageError(f"{self.package.config.name} only embeds: it has no action-conditioned predictor")
        return self.world_model


def build(config: PackageConfig) -> dict[str, Network]:
    """The networks a package's config describes, without weights (on the meta device)."""
    network = dict(config.network)
    networks: dict[str, Network] = {}
    with torch.device("meta"):
        networks["encoder"] = Encoder(_read(EncoderConfig, network.pop("encoder", {}), config.name))
        if "action_predictor" in network:
            shape = _read(ActionPredictorConfig, network.pop("action_predictor"), config.name)
            networks["action_predictor"] = ActionPredictor(shape)
        if "masked_predictor" in network:
            other = _read(MaskedPredictorConfig, network.pop("masked_predictor"), config.name)
            networks["masked_predictor"] = MaskedPredictor(other)
        if "probe" in network:
            networks["probe"] = AttentiveProbe(_read(ProbeConfig, network.pop("probe"), config.name))
    if network:
        raise PackageError(f"{config.name}: network has an unknown key: {min(network)}")
    return networks


def _check_labels(config: PackageConfig, probe: AttentiveProbe | None) -> None:
    """PackageError where names and classes do not go with each other."""
    classes = 0 if probe is None else probe.config.classes
    if len(config.labels) != classes:
        raise PackageError(f"{config.name}: labels must name the probe's {classes} classes, got {len(config.labels)}")


def describe(networks: Mapping[str, Network]) -> dict[str, Any]:
    """The inverse of `build`: what `PackageConfig.network` holds."""
    return {name: asdict(network.config) for name, network in networks.items()}


def _read(kind: type[Config], raw: Any, where: str) -> Config:
    """A configuration from JSON, where tuples have become lists."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(raw, dict):
        raise PackageError(f"{where}: {kind.__name__} must be an object, got {raw!r}")
    if unknown := sorted(set(raw) - known):
        raise PackageError(f"{where}: {kind.__name__} has an unknown key: {unknown[0]}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})
    except (TypeError, ValueError) as error:
        raise PackageError(f"{where}: {kind.__name__}: {error}") from error
