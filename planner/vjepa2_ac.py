"""Action space and gripper rules of the published V-JEPA 2-AC planner; its settings are presets of `cem.CEM`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from planner.types import ActionSpace, PlanningError


def vjepa2_ac_space(largest_step_m: float = 0.075, rate_hz: float = 4.0) -> ActionSpace:
    """End-effector steps of a Franka arm: meters per axis within a box, no rotation, gripper command -1 to 1.

    Positive gripper commands close. The box is per axis, as released; the paper calls it an L1 ball.
    """
    turn = math.pi
    return ActionSpace(
        names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        units=("m", "m", "m", "rad", "rad", "rad", "1"),
        low=(-largest_step_m,) * 3 + (-turn,) * 3 + (-1.0,),
        high=(largest_step_m,) * 3 + (turn,) * 3 + (1.0,),
        rate_hz=rate_hz,
        frozen=(None, None, None, 0.0, 0.0, 0.0, None),
    )


@dataclass(frozen=True)
class GripperRules:
    """Candidates are clipped in the gripper's dimension; a weak command in the result is dropped to zero."""

    dimension: int = -1
    clip: float = 0.75  # largest magnitude a candidate may ask for
    dead_zone: float = 0.25  # a result of smaller magnitude becomes 0
    close_after: int | None = None  # from this model step on, candidates close the gripper (1.0) whatever was drawn

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise PlanningError("gripper.clip", "must be > 0", self.clip)
        if not self.dead_zone >= 0:
            raise PlanningError("gripper.dead_zone", "must be >= 0", self.dead_zone)
        if self.close_after is not None and self.close_after < 0:
            raise PlanningError("gripper.close_after", "must be >= 0", self.close_after)

    def apply(self, candidates: Float[Tensor, "*batch time action"], block: int) -> Float[Tensor, "*batch time action"]:
        """Candidates with clipped, and perhaps closed, gripper commands."""
        ruled = candidates.clone()
        command = ruled[..., self.dimension]
        command.clamp_(-self.clip, self.clip)
        if self.close_after is not None:
            command[..., self.close_after * block :] = 1.0
        return ruled

    def settle(self, actions: Float[Tensor, "*batch time action"]) -> Float[Tensor, "*batch time action"]:
        """A result without weak gripper commands."""
        settled = actions.clone()
        command = settled[..., self.dimension]
        command.copy_(torch.where(command.abs() < self.dead_zone, torch.zeros_like(command), command))
        return settled
