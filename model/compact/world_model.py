"""A compact package in use: frames and robot actions in, latents out. Satisfies `model.interface.LoadedModel`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from model.compact.network import CompactConfig, CompactNetwork, to_network_input
from model.compact.sharing import sharing
from model.interface import ClipEmbedding
from model.normalizer import ActionNormalizer
from model.package import Package, PackageConfig, PackageError, read_package, write_package
from model.preprocessing import CROP_POLICIES, CropPolicy, fit, observation_warnings
from model.proposer import load_proposer
from model.runtime.memory import to_device

FRAMES_AT_ONCE = 256  # encoded together: bounds memory for long clips


class CompactWorldModel:
    """The built-in family behind the one protocol. Immutable after construction; safe to share between searches."""

    def __init__(
        self, package: Package, network: CompactNetwork, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype` is the predictor's, which does nearly all the work of a plan; latents are float32 either way."""
        action = package.config.action
        if action is None:
            raise PackageError(f"{package.config.name}: a compact package needs an action specification")
        if network.config.action_width != action.block * len(action.names):
            raise PackageError(
                f"{package.config.name}: network.action_width must be block x dimensions = "
                f"{action.block * len(action.names)}, got {network.config.action_width}"
            )
        if network.config.proprioception != len(package.config.proprioception_names):
            raise PackageError(
                f"{package.config.name}: network.proprioception must be the number of proprioception_names, "
                f"{len(package.config.proprioception_names)}, got {network.config.proprioception}"
            )
        image = package.config.image
        tokens = (image.height // network.config.patch) * (image.width // network.config.patch)
        if network.config.placed_tokens not in (0, tokens):
            raise PackageError(
                f"{package.config.name}: network.placed_tokens must be 0 or the image's {tokens}, "
                f"got {network.config.placed_tokens}"
            )
        if image.crop_policy not in CROP_POLICIES:
            raise PackageError(f"{package.config.name}: image.crop_policy must be one of {CROP_POLICIES}")
        self.package = package
        self.device = device
        self.dtype = dtype
        self._policy: CropPolicy = image.crop_policy  # type: ignore[assignment]  # checked above
        self._size = (image.height, image.width)
        self.block = action.block
        self._network = network.to(device).eval().requires_grad_(False)
        if self._network.predictor is not None:
            self._network.predictor.lower(dtype)
        self._normalizer = ActionNormalizer(action).to(device)
        self.proposer = load_proposer(package, device)

    @classmethod
    def from_package(
        cls, package: Package, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> CompactWorldModel:
        """Build the network its config describes and load its weights, all or nothing."""
        network = CompactNetwork(read_config(package.config))
        try:
            network.load_state_dict(
                {
                    name: weight.float() if weight.is_floating_point() else weight
                    for name, weight in package.weights().items()
                },
                strict=True,
            )
        except (RuntimeError, OSError) as error:
            raise PackageError(f"{package.folder}: the weights do not fit the config: {error}") from error
        return cls(package, network, device, dtype)

    def to_precision(self, dtype: torch.dtype) -> CompactWorldModel:
        """The same package with its predictor in another precision; bfloat16 for 8-bit integers: it is too narrow."""
        dtype = torch.bfloat16 if dtype == torch.int8 else dtype
        return self if dtype == self.dtype else self.from_package(self.package, self.device, dtype)

    @classmethod
    def random(cls, folder: Path, config: PackageConfig, seed: int) -> CompactWorldModel:
        """Write an untrained package into `folder` and load it: the start of a training, or a stand-in for tests."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = CompactNetwork(read_config(config))
        write_package(folder, config, saved_weights(network), f"# {config.name}\n\nUntrained.\n")
        return cls.from_package(read_package(folder), torch.device("cpu"))

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch latent"]:
        """One latent per frame."""
        parts = [self._network.encode(self._input(part)) for part in torch.split(frames, FRAMES_AT_ONCE)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def observation_warnings(
        self, frame: UInt8[Tensor, "height width 3"], proprioception: Float[Tensor, "history p"] | None
    ) -> tuple[str, ...]:
        """What is odd about an observation's frame."""
        image = self.package.config.image
        return observation_warnings(frame, (image.height, image.width), self._network.config.patch)

    @torch.no_grad()
    def embed_clip(self, frames: UInt8[Tensor, "time height width 3"]) -> ClipEmbedding:
        """Every frame's latent and tokens; the pooled vector is the mean of the latents."""
        tokens = torch.cat([self._network.tokens(self._input(part)) for part in torch.split(frames, FRAMES_AT_ONCE)])
        latents = self._network.pool(tokens)
        return ClipEmbedding(pooled=latents.mean(dim=0), per_frame=latents, tokens=tokens)

    def _input(self, frames: Tensor) -> Float[Tensor, "batch 3 height w"]:
        """Frames as the network takes them, cropped on its device."""
        return to_network_input(fit(to_device(frames, self.device), self._policy, self._size))

    def context(
        self,
        latents: Sequence[Float[Tensor, " latent"]],
        proprioception: Float[Tensor, "history p"] | None,
        past_actions: Float[Tensor, "time action"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Rollouts start from the newest latent, and the newest proprioception where the package was trained with it.

        ValueError for proprioception that is missing or of another width.
        """
        latent, numbers = to_device(latents[-1], self.device).unsqueeze(0), self._network.config.proprioception
        if not numbers:
            return (latent,)
        if proprioception is None or proprioception.shape[-1] != numbers:
            found = "none" if proprioception is None else f"{proprioception.shape[-1]} numbers"
            raise ValueError(f"proprioception: must be {self.package.config.proprioception_names}, got {found}")
        return (latent, to_device(proprioception[-1:], self.device).to(latent.dtype))

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon latent"]:
        """Predicted latents after every action block; actions in robot units, in which it can be differentiated."""
        latent, *measured = context
        batch, samples = actions.shape[:2]
        start = latent.repeat_interleave(samples, dim=0)
        proprioception = measured[0].repeat_interleave(samples, dim=0) if measured else None
        predicted = self._network.predict(start, self._blocks(actions).flatten(0, 1), proprioception)
        return predicted.reshape(batch, samples, *predicted.shape[1:])

    def rollout_shared(
        self,
        context: tuple[Tensor, ...],
        actions: Float[Tensor, "batch samples time action"],
        alike: tuple[tuple[int, ...], ...],
    ) -> Float[Tensor, "batch samples horizon latent"]:
        """`rollout`, where entry [sample][model step] of `alike` is the first sample with the same actions then.

        What samples share up to where they part is computed once, within the steps that one call predicts.
        """
        blocks, network = self._blocks(actions), self._network
        if network.predictor is None or blocks.shape[2] > network.config.horizon:
            return self.rollout(context, actions)
        latent, *measured = context
        proprioception = measured[0] if measured else None
        predicted = network.predictor.forward_shared(latent, blocks, proprioception, sharing(alike, latent.device))
        if network.stepper is None:
            return predicted
        samples = blocks.shape[1]
        repeated = None if proprioception is None else proprioception.repeat_interleave(samples, dim=0)
        stepped = network.stepper(latent.repeat_interleave(samples, dim=0), blocks.flatten(0, 1), repeated)
        return network.between(predicted, stepped.view_as(predicted))

    def _blocks(self, actions: Tensor) -> Float[Tensor, "batch samples steps block"]:
        """Network units, the actions of a model step side by side."""
        batch, samples, time, width = actions.shape
        if time % self.block:
            raise ValueError(f"actions: time must be a multiple of the block {self.block}, got {time}")
        normal: Tensor = self._normalizer(actions)
        return normal.reshape(batch, samples, time // self.block, self.block * width)


def read_config(config: PackageConfig) -> CompactConfig:
    """The family's shapes out of a package's config; PackageError names an unknown or missing key."""
    known = {field.name for field in fields(CompactConfig)}
    if unknown := sorted(set(config.network) - known):
        raise PackageError(f"{config.name}: network has an unknown key: {unknown[0]}")
    try:
        return CompactConfig(**config.network)
    except TypeError as error:
        raise PackageError(f"{config.name}: network: {error}") from error


def network_settings(config: CompactConfig) -> dict[str, Any]:
    """The inverse of `read_config`."""
    return asdict(config)


def saved_weights(network: CompactNetwork) -> dict[str, Tensor]:
    """What a package keeps: matrices in bfloat16 for size, vectors (norms, biases, running statistics) as they are."""
    return {
        name: weight.to(torch.bfloat16) if weight.ndim >= 2 else weight for name, weight in network.state_dict().items()
    }
