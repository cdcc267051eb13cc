"""Noise of sampling planners: standard normal per entry, correlated in time or not.

Randomness is a value here: a `Stream` names a request's seed and iteration, and the same stream always gives the same
numbers on the same kind of device, whatever else is drawn in the same batch. Nothing here knows costs or bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from planner.transfer import to_device
from planner.types import PlanningError


@dataclass(frozen=True)
class Stream:
    """Where one request's randomness stands."""

    seed: int
    iteration: int

    def generator(self, device: torch.device) -> torch.Generator:
        """A fresh generator for this seed and iteration; neighbors are unrelated (mixed as in SplitMix64)."""
        mask = (1 << 64) - 1
        mixed = (self.seed + (self.iteration + 1) * 0x9E3779B97F4A7C15) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return torch.Generator(device).manual_seed((mixed ^ (mixed >> 31)) >> 1)  # 63 bits: seeds are signed


@dataclass(frozen=True)
class NoiseShape:
    """How much noise one search needs: `samples` candidates of `horizon` model steps of `block` actions each."""

    samples: int
    horizon: int
    block: int
    action: int

    @property
    def time(self) -> int:
        return self.horizon * self.block


class Noise(Protocol):
    """Draws for a batch of searches, one stream each; company never changes what a stream gives."""

    def __call__(
        self, streams: Sequence[Stream], shape: NoiseShape, device: torch.device
    ) -> Float[Tensor, "batch samples time action"]: ...


@dataclass(frozen=True)
class WhiteNoise:
    """Every action drawn on its own: the setting of the published planners. Over a long horizon it averages out."""

    def __call__(
        self, streams: Sequence[Stream], shape: NoiseShape, device: torch.device
    ) -> Float[Tensor, "batch samples time action"]:
        return _normals(streams, (shape.samples, shape.time, shape.action), device)


@dataclass(frozen=True)
class TimeCorrelatedNoise:
    """A part held over the whole horizon, a part per model step, a part per action, added with these relative weights.

    Each entry keeps unit variance; two actions correlate by the squared share of what they have in common. A held
    part carries candidates far from the mean, where white noise of the same size takes a step back for each forward.
    What is good for finding the way is bad for the last refinement: a search whose elites agree on the shared parts
    shrinks everywhere, so the shared parts fade from iteration to iteration.
    """

    constant: float = 0.5
    block: float = 1.0
    action: float = 0.5
    fade: float = 0.5  # what is left of the shared parts' weights one iteration later; 1 keeps them

    def __post_init__(self) -> None:
        for field in ("constant", "block", "action"):
            weight = getattr(self, field)
            if not (math.isfinite(weight) and weight >= 0):
                raise PlanningError(f"noise.{field}", "must be finite and >= 0", weight)
        if self.constant + self.block + self.action == 0:
            raise PlanningError("noise", "must have a weight above 0", 0.0)
        _check_fade(self.fade)

    def __call__(
        self, streams: Sequence[Stream], shape: NoiseShape, device: torch.device
    ) -> Float[Tensor, "batch samples time action"]:
        rows = 1 + shape.horizon + shape.time
        drawn = _normals(streams, (shape.samples, rows, shape.action), device)
        constant, block, action = drawn[:, :, :1], drawn[:, :, 1 : shape.horizon + 1], drawn[:, :, shape.horizon + 1 :]
        weights = to_device(torch.tensor([self.weights(stream.iteration) for stream in streams]), device)
        of_constant, of_block, of_action = weights.view(-1, 3, 1, 1, 1).unbind(1)
        steps = torch.addcmul(block * of_block, constant, of_constant)
        return torch.addcmul(steps.repeat_interleave(shape.block, dim=-2), action, of_action)

    def weights(self, iteration: int) -> tuple[float, float, float]:
        """Of the constant, the block and the action part at an iteration; their squares sum to 1."""
        left = self.fade**iteration if self.action > 0 else 1.0  # where there is nothing to fade into, nothing fades
        size = math.hypot(self.constant * left, self.block * left, self.action)
        return self.constant * left / size, self.block * left / size, self.action / size


@dataclass(frozen=True)
class ColoredNoise:
    """Noise whose power falls as 1 / frequency^beta: 0 is white, 1 pink, 2 a random walk's (iCEM, Pinneri et al. 2020).

    The mean over the horizon counts as its slowest wave, at the power of the lowest frequency. Unit variance per entry.
    """

    beta: float = 2.0
    fade: float = 1.0  # what is left of beta one iteration later; 1 keeps it, as published

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise PlanningError("noise.beta", "must be finite and >= 0", self.beta)
        _check_fade(self.fade)

    def __call__(
        self, streams: Sequence[Stream], shape: NoiseShape, device: torch.device
    ) -> Float[Tensor, "batch samples time action"]:
        white = _normals(streams, (shape.samples, shape.time, shape.action), device)
        frequency = torch.fft.rfftfreq(shape.time, device=device)
        frequency[0] = 1 / shape.time
        beta = to_device(torch.tensor([self.beta * self.fade**stream.iteration for stream in streams]), device)
        gain = frequency ** (-beta / 2).unsqueeze(-1)
        # Circular filtering keeps the variance equal over time: the mean of the squared gain over all frequencies.
        both_sides = torch.full_like(frequency, 2.0)
        both_sides[0] = 1.0
        if shape.time % 2 == 0:
            both_sides[-1] = 1.0
        gain = gain / ((gain.square() * both_sides).sum(-1, keepdim=True) / shape.time).sqrt()
        spectrum = torch.fft.rfft(white, dim=-2) * gain[:, None, :, None]
        noise: Tensor = torch.fft.irfft(spectrum, n=shape.time, dim=-2)
        return noise


def _normals(streams: Sequence[Stream], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal draws [batch, *shape], each row from its own stream."""
    drawn = [torch.randn(shape, generator=stream.generator(device), device=device) for stream in streams]
    return drawn[0].unsqueeze(0) if len(drawn) == 1 else torch.stack(drawn)


def _check_fade(fade: float) -> None:
    if not 0 < fade <= 1:
        raise PlanningError("noise.fade", "must be above 0 and at most 1", fade)
