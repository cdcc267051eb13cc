"""Receding horizon: execute a few actions of a plan, then search again from where the rest of it leaves off.

Bookkeeping as values; who talks to the robot, and when, is the caller's affair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from planner.constraints import project
from planner.types import ActionSpace, Plan, PlanningError

Tail = Literal["rest", "hold", "mean"]


def warm_start(plan: Plan, executed: int, space: ActionSpace, tail: Tail = "rest") -> Float[Tensor, "time action"]:
    """The next search's candidate 0: what remains of the plan after `executed` actions, as long as the plan was.

    Freed places at the end repeat the space's rest ("rest": zero where zero is allowed and nothing else is stated), the
    plan's last action ("hold", for actions that are positions) or the mean of the actions that the model was trained on
    ("mean", where a search without bounds begins; "rest" where the space does not know it). The result obeys `space`.
    """
    time = plan.actions.shape[0]
    if not 0 <= executed <= time:
        raise PlanningError("executed", f"must be 0 to {time}", executed)
    # The plan obeys `space` from its first action on, which is taken as given: what changes is the tail alone.
    whole = of_length(time + executed, plan.actions, space, tail)
    return project(space, whole, plan.actions[0], held=(math.inf,) * space.dimensions)[executed:]


def of_length(
    time: int, left: Float[Tensor, "left action"], space: ActionSpace, tail: Tail = "rest"
) -> Float[Tensor, "time action"]:
    """What is left of a plan, cut or with a tail added (as in `warm_start`) to `time` actions, for a search of another
    length. Nothing is projected: the search does so with its start, for whatever limits its space has.
    """
    if tail == "mean" and space.mean is not None:
        last = left.new_tensor(space.mean)
    else:
        last = left[-1] if tail == "hold" else left.new_tensor(space.rest)
    return torch.cat([left[:time], last.expand(max(0, time - len(left)), -1)])


@dataclass(frozen=True)
class Execution:
    """A plan being carried out: `executed` of its actions are done, and a search is due after `replan_after`."""

    plan: Plan
    replan_after: int
    executed: int = 0

    def __post_init__(self) -> None:
        time = self.plan.actions.shape[0]
        if not 1 <= self.replan_after <= time:
            raise PlanningError("replan_after", f"must be 1 to {time}", self.replan_after)
        if not 0 <= self.executed <= time:
            raise PlanningError("executed", f"must be 0 to {time}", self.executed)

    @property
    def due(self) -> bool:
        """Whether it is time to plan again."""
        return self.executed >= self.replan_after

    @property
    def remaining(self) -> Float[Tensor, "left action"]:
        """What the plan still holds, executed or not after replanning is due."""
        return self.plan.actions[self.executed :]

    @property
    def previous_action(self) -> Float[Tensor, " action"] | None:
        """The last action executed: where the next search's slew limit starts."""
        return self.plan.actions[self.executed - 1] if self.executed else None

    def next_action(self) -> tuple[Float[Tensor, " action"], Execution]:
        """The action to send now, and the execution after it. Raises PlanningError past the plan's end."""
        if self.executed >= self.plan.actions.shape[0]:
            raise PlanningError("executed", f"must leave an action of {self.executed}", self.executed)
        return self.plan.actions[self.executed], replace(self, executed=self.executed + 1)

    def committed(self, steps: int) -> Float[Tensor, "steps action"]:
        """The next `steps` actions, to be frozen at the head of a search that runs while they are being executed."""
        if not 0 <= steps <= self.remaining.shape[0]:
            raise PlanningError("committed", f"must be 0 to {self.remaining.shape[0]} actions", steps)
        return self.remaining[:steps]

    def warm_start(self, space: ActionSpace, tail: Tail = "rest") -> Float[Tensor, "time action"]:
        """Candidate 0 of a search that starts now; its head is `committed` already."""
        return warm_start(self.plan, self.executed, space, tail)
