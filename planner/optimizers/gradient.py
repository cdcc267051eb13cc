"""Gradient descent on the actions through the world model (Adam), from several starts at once.

For world models whose `rollout` is differentiable. Far fewer rollouts than sampling takes, but each costs about three,
and a start never leaves its valley: the starts are drawn like any sampler's first candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from planner.anytime import plan_in_time
from planner.cost import GoalDistance
from planner.limits import project_within, tied
from planner.noise import Noise, TimeCorrelatedNoise
from planner.search import (
    Search,
    SearchBatch,
    advance,
    begin,
    check_settings,
    check_spreads,
    drawn_starts,
    evaluate,
    finished_plan,
    first_pricing,
    keep_best,
    proposed_of,
    spread_of,
    stack,
    why_over,
    with_proposed_starts,
)
from planner.transfer import to_device
from planner.types import Plan, PlanningError, Problem, StopReason
from planner.world_model import Actions, CostFunction, StepCosts, WorldModel


@dataclass(frozen=True)
class Gradient:
    """Projected Adam on a few action sequences side by side. The instance is its settings; searches travel as values.

    Steps are fractions of half a dimension's range. The elite spread of its plans is the mean size of the last step.
    """

    starts: int = 8
    iterations: int = 30
    horizon: int = 5  # model steps
    step: float = 0.2  # of the first iteration; falls to a tenth of it over the iterations, along a cosine
    initial_std: float | tuple[float, ...] = 0.5  # of the starts around the warm start, or around rest
    momentum: float = 0.8  # of Adam's first moment
    memory: float = 0.95  # of Adam's second moment
    converged_below: float = 0.0  # stop once the mean step (fraction of the range) is this small
    noise: Noise = field(default_factory=TimeCorrelatedNoise)
    cost: CostFunction = field(default_factory=GoalDistance)

    def __post_init__(self) -> None:
        check_settings(self, "starts", "iterations", "horizon")
        check_spreads(self.initial_std, self.converged_below)
        if not (math.isfinite(self.step) and self.step > 0):
            raise PlanningError("step", "must be finite and > 0", self.step)
        for name in ("momentum", "memory"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanningError(name, "must be at least 0 and below 1", getattr(self, name))

    plan = plan_in_time

    def start(self, problem: Problem, block: int) -> Search:
        """Draw the starts; the first is the warm start, or rest. Raises PlanningError on a bad problem."""
        search = begin(problem, self.horizon, block, self.initial_std)
        return self.descend_from(search, drawn_starts(search, self.noise, self.starts))

    def descend_from(self, search: Search, starts: Float[Tensor, "starts time action"]) -> Search:
        """The search with these sequences, inside its limits, to step from."""
        return replace(search, memory=(starts, torch.zeros_like(starts), torch.zeros_like(starts)))

    def improve(self, world_model: WorldModel, searches: Sequence[Search]) -> list[Search]:
        """Price every sequence of every search in one rollout, then take one step down each one's gradient."""
        searches = with_proposed_starts(world_model, self.cost, searches)
        batch = stack(searches, world_model.block)
        actions, _, _ = batch.memory
        step_costs, slope = self._slope(world_model, batch, actions)
        with torch.no_grad():
            best = keep_best(batch, actions, step_costs)
            moved, first, second = self._step(batch, slope, [search.iterations for search in searches])
            size = spread_of((moved - actions).abs().mean(1), batch.half_range)
            memory = (moved, first, second)
            return advance(searches, (best[0], batch.std), best, size, memory, step_costs[:, 0], proposed_of(searches))

    def iteration_steps(self, search: Search) -> int:
        """Model steps that its next iteration evaluates; one that is also differentiated counts three."""
        return (3 * self.starts + first_pricing(search)) * self.horizon

    def stopped(self, search: Search) -> StopReason | None:
        """Why the search is over, if it is; see `why_over`."""
        return why_over(search, self.iterations, self.converged_below)

    def finish(self, search: Search, reason: StopReason) -> Plan:
        """The best sequence ever evaluated."""
        return finished_plan(search, reason, self.cost)

    def _slope(self, world_model: WorldModel, batch: SearchBatch, actions: Actions) -> tuple[StepCosts, Actions]:
        """Step costs and the gradient of each sequence's own total; zero where either is not finite."""
        with torch.enable_grad():
            free = actions.detach().requires_grad_()
            told = free if batch.limits.dwell is None else tied(batch.limits.dwell, free)
            step_costs = evaluate(world_model, self.cost, batch, told)
            totals = step_costs.sum(-1)
            (slope,) = torch.autograd.grad(torch.where(totals.isfinite(), totals, 0.0).sum(), free)
        return step_costs.detach(), slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _step(
        self, batch: SearchBatch, slope: Actions, iterations: Sequence[int]
    ) -> tuple[Actions, Float[Tensor, "batch starts time action"], Float[Tensor, "batch starts time action"]]:
        """One step of Adam, projected, in units of each dimension's half range."""
        actions, first, second = batch.memory
        half_range = batch.half_range.unsqueeze(1)
        slope = slope * half_range
        first = torch.lerp(slope, first, self.momentum)
        second = torch.lerp(slope.square(), second, self.memory)
        rates, first_scale, second_scale = (
            to_device(torch.tensor(each), slope.device).view(-1, 1, 1, 1)
            for each in zip(*(self._schedule(iteration) for iteration in iterations), strict=True)
        )
        tiny = torch.finfo(slope.dtype).tiny
        step = rates * (first / first_scale) / ((second / second_scale).sqrt() + tiny)
        return project_within(batch.limits, actions - half_range * step), first, second

    def _schedule(self, iteration: int) -> tuple[float, float, float]:
        """Step size, and Adam's corrections for moments that began at zero."""
        done = min(iteration / max(self.iterations - 1, 1), 1.0)
        rate = self.step * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        return rate, 1 - self.momentum ** (iteration + 1), 1 - self.memory ** (iteration + 1)
