"""Recordings of the published V-JEPA 2-AC planning loop: their draws as a noise, and the search that replays them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planner.noise import NoiseShape, Stream
from planner.optimizers.cem import CEM
from planner.types import ActionSpace, PlanningError
from planner.vjepa2_ac import GripperRules, vjepa2_ac_space

SEARCHED = [0, 1, 2, 6]  # x, y, z, gripper: the recordings hold no draws for the rotation


@dataclass(frozen=True, eq=False)
class RecordedNoise:
    """Draws taken from a recording instead of a stream's seed, to replay a search."""

    draws: Float[Tensor, "iteration time samples action"]

    def __call__(
        self, streams: Sequence[Stream], shape: NoiseShape, device: torch.device
    ) -> Float[Tensor, "batch samples time action"]:
        wanted = (shape.time, shape.samples, shape.action)
        last = max(stream.iteration for stream in streams)
        if tuple(self.draws.shape[1:]) != wanted or last >= self.draws.shape[0]:
            raise PlanningError("noise.draws", f"must hold iteration {last} of {wanted}", tuple(self.draws.shape))
        return torch.stack([self.draws[stream.iteration] for stream in streams]).transpose(1, 2).to(device)


def recorded_search(settings: dict[str, Any], noise: Tensor) -> tuple[CEM, ActionSpace]:
    """The search with the recording's own settings and draws [iterations, horizon, samples, 4], and its space."""
    draws = torch.zeros(*noise.shape[:3], 7)
    draws[..., SEARCHED] = noise
    held = {int(index): value for index, value in settings.get("axis", {}).items()}
    plain = vjepa2_ac_space(settings.get("maxnorm", 0.05))
    frozen = tuple(held.get(index, value) for index, value in enumerate(plain.frozen or ()))
    cem = replace(
        CEM.vjepa2_ac_paper(),
        samples=settings["samples"],
        iterations=settings["cem_steps"],
        elites=settings["topk"],
        horizon=settings["rollout"],
        momentum_mean=(*(settings.get("momentum_mean", 0.25),) * 6, settings.get("momentum_mean_gripper", 0.15)),
        momentum_std=(*(settings.get("momentum_std", 0.95),) * 6, settings.get("momentum_std_gripper", 0.15)),
        noise=RecordedNoise(draws),
        gripper=GripperRules(close_after=settings.get("close_gripper")),
    )
    return cem, replace(plain, frozen=frozen)
