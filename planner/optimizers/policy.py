"""A package's proposer alone: its actions in one forward pass, priced by the world model, with no search.

For loops that have no time to search. The steps to go are those that the last plan has left, or else the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from planner.anytime import plan_in_time
from planner.cost import GoalDistance
from planner.limits import project_within
from planner.search import (
    Search,
    advance,
    begin,
    check_settings,
    evaluate,
    finished_plan,
    keep_best,
    stack,
    why_over,
)
from planner.transfer import to_device
from planner.types import Plan, PlanningError, Problem, StopReason
from planner.world_model import CostFunction, WorldModel


@dataclass(frozen=True)
class Policy:
    """What the proposer says, within the action space. Its plans are all of them proposed (`Plan.proposed` is 1)."""

    horizon: int = 5  # model steps; past the steps to go the robot rests
    cost: CostFunction = field(default_factory=GoalDistance)

    def __post_init__(self) -> None:
        check_settings(self, "horizon")

    @property
    def iterations(self) -> int:
        """One: what is proposed is priced."""
        return 1

    plan = plan_in_time

    def start(self, problem: Problem, block: int) -> Search:
        """Raises PlanningError on a bad problem, and on one that nobody proposes anything for."""
        if problem.proposals is None:
            rule = "must not be policy for a model package that has no proposer (train one: family proposer)"
            raise PlanningError("planner.optimizer", rule, "policy")
        return begin(replace(problem, replace_margin=0.0), self.horizon, block, initial_std=0.0)

    def improve(self, world_model: WorldModel, searches: Sequence[Search]) -> list[Search]:
        """Price the first proposal of every search in one rollout."""
        with torch.no_grad():
            batch = stack(searches, world_model.block)
            told = [search.problem.proposals for search in searches]
            proposed = torch.stack([to_device(each[0].float(), batch.mean.device) for each in told if each is not None])
            candidates = project_within(batch.limits, proposed.unsqueeze(1))
            best = keep_best(batch, candidates, evaluate(world_model, self.cost, batch, candidates))
            nothing = torch.zeros(len(searches), device=batch.mean.device)
            return advance(searches, (best[0], batch.std), best, nothing, proposed=nothing + 1)

    def iteration_steps(self, search: Search) -> int:
        """Model steps that its one iteration evaluates."""
        return self.horizon

    def stopped(self, search: Search) -> StopReason | None:
        """Why the search is over, if it is."""
        return why_over(search, self.iterations, -1.0)

    def finish(self, search: Search, reason: StopReason) -> Plan:
        """The proposed actions; they mean to arrive when the proposer was asked to."""
        plan = finished_plan(search, reason, self.cost)
        if not search.iterations:
            return plan
        return replace(plan, arrival=search.problem.arrival or self.horizon * search.block)
