"""Damped Gauss-Newton on the actions (Levenberg-Marquardt), by rollouts alone: no gradient is asked of the model.

A cost that is a sum of squares tells in one rollout of changed actions how every part of it follows every action, and
with that where its least should be. A few such steps reach the floor of the valley they begin in; see `Hybrid` for a
search that finds one. Levenberg 1944, Marquardt 1963.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from planner.anytime import plan_in_time
from planner.cost import GoalDistance, residuals_of
from planner.limits import project_within
from planner.noise import Noise, TimeCorrelatedNoise
from planner.search import (
    Search,
    SearchBatch,
    advance,
    begin,
    check_settings,
    check_spreads,
    drawn_starts,
    finished_plan,
    first_pricing,
    keep_best,
    priced,
    proposed_of,
    spread_of,
    stack,
    why_over,
    with_proposed_starts,
)
from planner.transfer import to_device
from planner.types import Plan, PlanningError, Problem, StopReason
from planner.world_model import Actions, Alike, CostFunction, StepCosts, WorldModel

MORE_CAUTIOUS = 30.0  # how much more the steps of a start are damped once all of them went wrong
MOST_DAMPED = 1e6


@dataclass(frozen=True)
class GaussNewton:
    """Gauss-Newton steps on a few action sequences side by side. The instance is its settings.

    Each iteration rolls out every sequence with one thing changed at a time, and then the step to take per damping. In
    its opening it changes the actions of a model step together, which is soon done; then the best sequence goes on
    alone, action by action. Under a cost that counts the cheapest step alone, a sequence is stepped towards the goal at
    the step that counts for it, and keeps it. The elite spread of its plans is the mean size of the best step tried
    last.
    """

    starts: int = 2
    iterations: int = 8  # opening and all
    opening: int = 2  # iterations; 0 for all sequences action by action to the end
    horizon: int = 5  # model steps
    nudge: float = 0.4  # how far an action is changed to see what it does, as a fraction of half its range
    damping: tuple[float, ...] = (1e-3, 1e-2, 0.1, 0.3, 1.0)  # tried side by side, relative to the mean curvature
    initial_std: float | tuple[float, ...] = 0.5  # of the starts around the warm start, or around rest
    converged_below: float = 0.0  # stop once the mean step (fraction of the range) is this small
    noise: Noise = field(default_factory=TimeCorrelatedNoise)
    cost: CostFunction = field(default_factory=GoalDistance)

    def __post_init__(self) -> None:
        check_settings(self, "starts", "iterations", "horizon")
        check_spreads(self.initial_std, self.converged_below)
        if self.opening < 0:
            raise PlanningError("opening", "must be >= 0", self.opening)
        if not 0 < self.nudge <= 1:
            raise PlanningError("nudge", "must be above 0 and at most 1", self.nudge)
        if not self.damping or not all(math.isfinite(each) and each > 0 for each in self.damping):
            raise PlanningError("damping", "must be one or more finite numbers > 0", self.damping)

    plan = plan_in_time

    def start(self, problem: Problem, block: int) -> Search:
        """Draw the starts; the first is the warm start, or rest. Raises PlanningError on a bad problem."""
        search = begin(problem, self.horizon, block, self.initial_std)
        return self.descend_from(search, drawn_starts(search, self.noise, self.starts))

    def descend_from(self, search: Search, starts: Float[Tensor, "starts time action"]) -> Search:
        """The search with these sequences, inside its limits, to step from."""
        return replace(search, memory=(starts, torch.ones(starts.shape[:1], device=starts.device)))

    def improve(self, world_model: WorldModel, searches: Sequence[Search]) -> list[Search]:
        """One iteration for all searches: two rollouts for those in their opening, and two for all others."""
        searches = with_proposed_starts(world_model, self.cost, searches)
        improved: dict[int, Search] = {}
        for opening in (True, False):
            rows = [row for row, search in enumerate(searches) if self._is_opening(search) == opening]
            if rows:
                moved = self._improve(world_model, [searches[row] for row in rows], together=opening)
                improved.update(zip(rows, moved, strict=True))
        return [improved[row] for row in range(len(searches))]

    def iteration_steps(self, search: Search) -> int:
        """Model steps that its next iteration evaluates."""
        moves = sum(_free(self._is_opening(search), [search]))
        return (search.memory[0].shape[0] * (1 + moves + len(self.damping)) + first_pricing(search)) * self.horizon

    def stopped(self, search: Search) -> StopReason | None:
        """Why the search is over, if it is; see `why_over`."""
        return why_over(search, self.iterations, self.converged_below)

    def finish(self, search: Search, reason: StopReason) -> Plan:
        """The best sequence ever evaluated."""
        return finished_plan(search, reason, self.cost)

    def _is_opening(self, search: Search) -> bool:
        return search.iterations < self.opening

    @torch.no_grad()
    def _improve(self, world_model: WorldModel, searches: Sequence[Search], *, together: bool) -> list[Search]:
        """See what each move does to every sequence, and take the best of a few steps that should follow from it."""
        batch = stack(searches, world_model.block)
        points, caution = batch.memory
        free = _free(together, searches)
        nudged = self._nudged(batch, free)
        moves = nudged - points.unsqueeze(2)
        alike = self._alike(batch, free)
        told, (here, added) = self._changes(world_model, batch, points, nudged, alike)
        steps = self._steps(batch, points, moves, here, added, caution)  # [batch, starts, dampings, time, action]
        tried = project_within(batch.limits, steps.flatten(1, 2))
        tried_costs, _ = priced(world_model, self.cost, batch, tried)
        best = keep_best(batch, torch.cat([points, tried], dim=1), torch.cat([told, tried_costs], dim=1))
        chosen, lowest = _best_of_each(tried, tried_costs, starts=points.shape[1])
        size = spread_of((chosen - points).abs().mean(1), batch.half_range)
        before = told.sum(-1)
        better = lowest < before
        caution = torch.where(better, 1.0, (caution * MORE_CAUTIOUS).clamp(max=MOST_DAMPED))
        points = torch.where(better[:, :, None, None], chosen, points)
        warm, proposed = told[:, 0], proposed_of(searches)
        improved = advance(searches, (best[0], batch.std), best, size, (points, caution), warm, proposed)
        cheapest = torch.minimum(lowest, before).argmin(dim=1, keepdim=True)  # [batch, 1]
        return [
            _alone(search, row) if together and not self._is_opening(search) else search
            for search, row in zip(improved, cheapest, strict=True)
        ]

    def _nudged(self, batch: SearchBatch, free: Sequence[bool]) -> Float[Tensor, "batch starts moves time action"]:
        """Each sequence with one thing nudged towards the middle of its range, as far as limits let it.

        A thing is a dimension of one action, or of all actions of a model step together: whichever `free` counts.
        """
        points = batch.memory[0]
        time, action = points.shape[-2:]
        block = time * action // len(free)  # actions that are moved together
        units = torch.eye(time * action).view(time // block, block, action, time, action).sum(1).flatten(0, 1)
        units = units[[place for place, is_free in enumerate(free) if is_free]]
        units = to_device(units, points.device)
        middle = (batch.limits.low + batch.limits.high) / 2  # [batch, 1, time, action]
        off = (points - middle).view(*points.shape[:2], -1, block, action).mean(3).repeat_interleave(block, dim=2)
        inwards = torch.where(off > 0, -self.nudge, self.nudge) * batch.half_range.unsqueeze(1)
        nudged = points.unsqueeze(2) + inwards.unsqueeze(2) * units
        return project_within(batch.limits, nudged.flatten(1, 2)).view_as(nudged)

    def _alike(self, batch: SearchBatch, free: Sequence[bool]) -> Alike:
        """What sequences and their nudged copies have in common: all but a step, or all up to it if others follow."""
        per_step = len(free) // self.horizon
        steps = tuple(place // per_step for place, is_free in enumerate(free) if is_free)
        followed = batch.limits.slew is not None or batch.limits.dwell is not None
        return _apart_in(batch.memory[0].shape[1], steps, self.horizon, followed)

    def _changes(
        self, world_model: WorldModel, batch: SearchBatch, points: Actions, nudged: Tensor, alike: Alike
    ) -> tuple[StepCosts, tuple[Tensor, Tensor]]:
        """Step costs of each sequence; its residuals [batch, starts, r], and what each nudge adds to them."""
        starts = points.shape[1]
        candidates = torch.cat([points.unsqueeze(2), nudged], dim=2).flatten(1, 2)
        step_costs, predicted = priced(world_model, self.cost, batch, candidates, alike)
        residuals = residuals_of(self.cost, predicted, batch.goal, candidates, groups=starts)
        residuals = residuals.view(len(points), starts, -1, residuals.shape[-1])
        here = residuals[:, :, 0].nan_to_num(0.0, 0.0, 0.0)
        added = (residuals[:, :, 1:] - residuals[:, :, :1]).nan_to_num(0.0, 0.0, 0.0)
        return step_costs.view(len(points), starts, -1, self.horizon)[:, :, 0], (here, added)

    def _steps(
        self, batch: SearchBatch, points: Actions, moves: Tensor, here: Tensor, added: Tensor, caution: Tensor
    ) -> Float[Tensor, "batch starts dampings time action"]:
        """Where each sequence goes with each damping: the sum of moves that should leave the least of its residuals."""
        here, added = here.double(), added.double()
        slope = (added @ here.unsqueeze(-1)).squeeze(-1)  # [batch, starts, moves]
        curvature = added @ added.transpose(-1, -2)
        # What is at its bound and would be pushed on stays there, and all else is chosen in that knowledge.
        stays = (slope > 0) & ~self._can_go_back(batch, points, moves)
        free = (moves != 0).flatten(3).any(-1) & ~stays
        slope = torch.where(free, slope, 0.0)
        curvature = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), curvature, 0.0)
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        mean = (diagonal.sum(-1) / free.sum(-1).clamp(min=1)).clamp(min=torch.finfo(slope.dtype).tiny)
        damping = to_device(torch.tensor(self.damping), points.device) * caution.unsqueeze(-1)  # [batch, starts, d]
        unit = torch.eye(moves.shape[2], dtype=slope.dtype, device=points.device)
        ridge = (damping * mean.unsqueeze(-1))[..., None, None] * unit
        solved, _ = torch.linalg.solve_ex(curvature.unsqueeze(2) + ridge, -slope[:, :, None, :, None])
        shares = solved.squeeze(-1).nan_to_num(0.0, 0.0, 0.0).to(moves.dtype)  # [batch, starts, dampings, moves]
        summed: Tensor = (shares @ moves.flatten(3)).view(*shares.shape[:3], *points.shape[-2:])
        return points.unsqueeze(2) + summed

    def _can_go_back(self, batch: SearchBatch, points: Actions, moves: Tensor) -> Tensor:
        """Whether some of what each move [batch, starts, moves] changes could also be changed the other way."""
        room_below = (points - batch.limits.low).unsqueeze(2)
        room_above = (batch.limits.high - points).unsqueeze(2)
        room = torch.where(moves > 0, room_below, torch.where(moves < 0, room_above, 0.0))
        back: Tensor = (room > 1e-6 * batch.half_range[:, None, None]).flatten(3).any(-1)
        return back


@lru_cache(maxsize=64)
def _apart_in(starts: int, steps: tuple[int, ...], horizon: int, followed: bool) -> Alike:
    """Each start, then its copies, one for each of `steps`: they differ there, and afterwards if that is `followed`."""
    alike: list[tuple[int, ...]] = []
    for _ in range(starts):
        start = len(alike)
        alike.append((start,) * horizon)
        for step in steps:
            own = len(alike)
            apart = range(step, horizon) if followed else (step,)
            alike.append(tuple(own if each in apart else start for each in range(horizon)))
    return tuple(alike)


def _free(together: bool, searches: Sequence[Search]) -> list[bool]:
    """Of what may be moved, row by row, what at least one search leaves free; known without asking the device."""
    free: list[bool] = []
    for search in searches:
        problem, block = search.problem, search.block if together else 1
        committed = 0 if problem.committed is None else problem.committed.shape[0]
        held = problem.space.frozen or (None,) * problem.space.dimensions
        rows = search.half_range.shape[0] // block
        own = [(row + 1) * block > committed and value is None for row in range(rows) for value in held]
        free = [one or other for one, other in zip(free, own, strict=True)] if free else own
    return free


def _best_of_each(tried: Actions, tried_costs: StepCosts, starts: int) -> tuple[Actions, Float[Tensor, "batch starts"]]:
    """The best step of each sequence [batch, starts, time, action], and what it costs."""
    batch = tried.shape[0]
    lowest, index = tried_costs.sum(-1).view(batch, starts, -1).min(dim=-1)
    steps = tried.view(batch, starts, -1, *tried.shape[2:])
    return torch.take_along_dim(steps, index[:, :, None, None, None], dim=2).squeeze(2), lowest


def _alone(search: Search, start: Float[Tensor, "1"]) -> Search:
    """The search with only one of its sequences."""
    return replace(search, memory=tuple(part.index_select(0, start) for part in search.memory))
