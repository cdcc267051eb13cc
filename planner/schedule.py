"""Goals one after another: sub-goals with step budgets and switch thresholds, for tasks of several stages.

Bookkeeping as values, like `receding.py`: a schedule is what the next problem's goal is taken from, and each plan's
execution makes the schedule of the next. Nothing here searches. For programs that use the planner as a library and hold
the latents themselves; sessions of the service, where counting and measuring happen in two processes, have
`server.service.stages`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from planner.cost import Metric, check_metric, latent_distance
from planner.types import PlanningError

Outcome = Literal["reached", "spent"]


@dataclass(frozen=True, eq=False)
class SubGoal:
    """One stage: where to, how many robot actions it may take, and how near is near enough."""

    latent: Float[Tensor, "*latent"]
    steps: int  # robot actions after which the next sub-goal's turn comes, reached or not
    reached_below: float = 0.0  # largest distance, in the schedule's metric, that counts as reached

    def __post_init__(self) -> None:
        if not bool(self.latent.isfinite().all()):
            raise PlanningError("sub_goal.latent", "must be finite", "NaN or infinity")
        if self.steps < 1:
            raise PlanningError("sub_goal.steps", "must be >= 1", self.steps)
        if not (math.isfinite(self.reached_below) and self.reached_below >= 0):
            raise PlanningError("sub_goal.reached_below", "must be finite and >= 0", self.reached_below)


@dataclass(frozen=True, eq=False)
class GoalSchedule:
    """Sub-goals in order, and how far along it stands: begin with the sub-goals alone, go on with `advanced`."""

    sub_goals: tuple[SubGoal, ...]
    metric: Metric = "l2"
    outcomes: tuple[Outcome, ...] = ()  # how each sub-goal behind it ended
    spent: int = 0  # robot actions executed towards the current one

    def __post_init__(self) -> None:
        if not self.sub_goals:
            raise PlanningError("sub_goals", "must not be empty", self.sub_goals)
        check_metric("schedule.metric", self.metric)
        shape = self.sub_goals[0].latent.shape
        for sub_goal in self.sub_goals:
            if sub_goal.latent.shape != shape:
                raise PlanningError("sub_goal.latent", f"must be {tuple(shape)}", tuple(sub_goal.latent.shape))
        if len(self.outcomes) > len(self.sub_goals):
            raise PlanningError("outcomes", f"must be at most {len(self.sub_goals)}", len(self.outcomes))
        if self.spent < 0:
            raise PlanningError("spent", "must be >= 0", self.spent)

    @property
    def finished(self) -> bool:
        """Whether the last sub-goal was reached, or its steps are spent."""
        return len(self.outcomes) == len(self.sub_goals)

    @property
    def position(self) -> int:
        """Which sub-goal is aimed at; the last one also when finished."""
        return min(len(self.outcomes), len(self.sub_goals) - 1)

    @property
    def goal(self) -> Float[Tensor, "*latent"]:
        """The goal of the next `Problem`."""
        return self.sub_goals[self.position].latent

    def advanced(self, latent: Float[Tensor, "*latent"], executed: int) -> GoalSchedule:
        """The schedule once `executed` more actions have led to `latent`, as it is now observed.

        A sub-goal within its distance is behind; so is the one after it, if that is as near. One whose steps are spent
        is given up, and the next begins with all of its own. Raises PlanningError for a latent that cannot be compared.
        """
        if executed < 0:
            raise PlanningError("executed", "must be >= 0", executed)
        if latent.shape != self.goal.shape:
            raise PlanningError("latent", f"must be {tuple(self.goal.shape)}", tuple(latent.shape))
        if not bool(latent.isfinite().all()):
            raise PlanningError("latent", "must be finite", "NaN or infinity")
        moved = self if self.finished else replace(self, spent=self.spent + executed)
        while (outcome := moved._outcome(latent)) is not None:
            moved = replace(moved, outcomes=(*moved.outcomes, outcome), spent=0)
        return moved

    def _outcome(self, latent: Tensor) -> Outcome | None:
        """How the current sub-goal ends here; None while it is worth going on, or when all have ended."""
        if self.finished:
            return None
        current = self.sub_goals[self.position]
        distance = latent_distance(self.metric, latent[None, None, None], current.latent[None])
        if distance.item() <= current.reached_below:
            return "reached"
        return "spent" if self.spent >= current.steps else None
