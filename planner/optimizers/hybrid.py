"""Sampling to find the valley, then descent to its floor: the cross-entropy method, then its elites polished.

Sampling needs many rollouts for its last digits, descent few; descent alone never leaves the valley it begins in. Both
halves are the optimizers of `cem.py` and of `gradient.py` (for models whose `rollout` is differentiable) or
`gauss_newton.py` (for any) unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from planner.anytime import plan_in_time
from planner.limits import project_within
from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import GaussNewton
from planner.optimizers.gradient import Gradient
from planner.search import Search, finished_plan, why_over
from planner.transfer import to_device
from planner.types import Plan, PlanningError, Problem, StopReason
from planner.world_model import CostFunction, WorldModel


@dataclass(frozen=True)
class Hybrid:
    """A few iterations of `search`, then all of `polish` from its best elites. The instance is its settings.

    `polish` takes its starts from the elites that `search` keeps (`CEM.kept`), the best candidate among them, and the
    warm start; it draws its own only where nothing is sampled. The elite spread of its plans is that of whichever half
    an iteration belongs to.
    """

    search: CEM = field(default_factory=lambda: CEM(samples=100, iterations=2))
    polish: Gradient | GaussNewton = field(default_factory=lambda: Gradient(starts=4, iterations=40, step=0.2))
    search_when_warm: bool = True  # False: a warm start is polished at once, and all the time there is goes into that
    search_one_in: int = 0  # of warm starts, by their seeds, all the same: to leave a valley that polishing cannot
    replace_margin: float = 0.0  # the least that its problems have (`Problem.replace_margin`)

    def __post_init__(self) -> None:
        for name in ("horizon", "cost"):
            ours, theirs = getattr(self.search, name), getattr(self.polish, name)
            if ours != theirs:
                raise PlanningError(f"polish.{name}", f"must be that of search, {ours}", theirs)
        if self.search.result != "best":
            raise PlanningError("search.result", "must be best, so that there is something to polish", "mean")
        if self.search.converged_below > 0:
            rule = "must be 0: sampling hands over after its iterations"
            raise PlanningError("search.converged_below", rule, self.search.converged_below)
        if self.search.gripper is not None:
            raise PlanningError("search.gripper", "must be None: descent would undo it", self.search.gripper)
        if not self.polish.starts <= self.search.kept_count:
            rule = f"must be at most the elites that search keeps ({self.search.kept_count})"
            raise PlanningError("polish.starts", rule, self.polish.starts)

    @property
    def horizon(self) -> int:
        """Model steps a plan looks ahead."""
        return self.search.horizon

    @property
    def iterations(self) -> int:
        """Of both halves: the most a search runs."""
        return self.search.iterations + self.polish.iterations

    @property
    def cost(self) -> CostFunction:
        """Of both halves."""
        return self.search.cost

    plan = plan_in_time

    def start(self, problem: Problem, block: int) -> Search:
        """Set up the first half's search, or the second's. Raises PlanningError on a bad problem."""
        problem = replace(problem, replace_margin=max(problem.replace_margin, self.replace_margin))
        return (self.search if self._sampled(problem) else self.polish).start(problem, block)

    def improve(self, world_model: WorldModel, searches: Sequence[Search]) -> list[Search]:
        """One iteration for all searches: one rollout for those still sampling, one for those already descending."""
        improved: dict[int, Search] = {}
        for polishing in (False, True):
            rows = [row for row, search in enumerate(searches) if self._is_polishing(search) == polishing]
            if rows:
                step = self._descend if polishing else self._sample
                improved.update(zip(rows, step(world_model, [searches[row] for row in rows]), strict=True))
        return [improved[row] for row in range(len(searches))]

    def iteration_steps(self, search: Search) -> int:
        """Model steps that its next iteration evaluates; one that is also differentiated counts three."""
        if self._is_polishing(search):
            return self.polish.iteration_steps(self._own(search))
        return self.search.iteration_steps(search)

    def stopped(self, search: Search) -> StopReason | None:
        """Why the search is over, if it is; see `why_over`. Before `polish` has begun, only elites all alike end it."""
        sampled = self._sampled(search.problem)
        below = self.polish.converged_below if search.iterations > sampled else 0.0
        return why_over(search, sampled + self.polish.iterations, below)

    def finish(self, search: Search, reason: StopReason) -> Plan:
        """The best candidate or descended sequence ever evaluated."""
        return finished_plan(search, reason, self.cost)

    def _is_polishing(self, search: Search) -> bool:
        return search.iterations >= self._sampled(search.problem)

    def _sampled(self, problem: Problem) -> int:
        """Iterations of the first half."""
        chosen = self.search_one_in > 0 and problem.seed % self.search_one_in == 0
        searches = self.search_when_warm or problem.warm_start is None or chosen
        return self.search.iterations if searches else 0

    def _sample(self, world_model: WorldModel, searches: list[Search]) -> list[Search]:
        """One iteration of the first half; whoever is through goes on with the starts that polish takes."""
        improved = self.search.improve(world_model, searches)
        return [
            self.polish.descend_from(search, self._starts(search)) if self._is_polishing(search) else search
            for search in improved
        ]

    def _starts(self, search: Search) -> Float[Tensor, "starts time action"]:
        """The best elites, best first; the last of several is the warm start, where there is one.

        It has been polished before: what is cheaper than it at first sight may lie in a shallower valley.
        """
        elites = search.memory[0][: self.polish.starts]
        warm = search.problem.warm_start
        if warm is None or self.polish.starts < 2:
            return elites
        warm = project_within(search.limits, to_device(warm.to(elites.dtype), elites.device))
        return torch.cat([elites[:-1], warm.unsqueeze(0)])

    def _descend(self, world_model: WorldModel, searches: list[Search]) -> list[Search]:
        """One iteration of the second half, which counts its own from 0."""
        improved = self.polish.improve(world_model, [self._own(search) for search in searches])
        return [
            replace(after, iterations=before.iterations + 1, problem=before.problem)
            for before, after in zip(searches, improved, strict=True)
        ]

    def _own(self, search: Search) -> Search:
        """The search as the second half sees it; what was proposed has been among the elites."""
        sampled, problem = self._sampled(search.problem), search.problem
        if sampled and problem.proposals is not None:
            problem = replace(problem, proposals=None)
        return replace(search, iterations=search.iterations - sampled, problem=problem)
