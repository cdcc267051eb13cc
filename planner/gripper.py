"""How the published V-JEPA 2-AC planner treats a gripper command. A robot's own limits are its ActionSpace's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from planner.types import PlanningError


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
