"""Model predictive path integral control (Williams et al. 2017): the mean moves to a cost-weighted average of samples.

Unlike the cross-entropy method it keeps no elites and learns no std; every candidate pulls, good ones harder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from planner.anytime import plan_in_time
from planner.cost import GoalDistance
from planner.limits import project_within
from planner.noise import Noise, NoiseShape, TimeCorrelatedNoise
from planner.search import (
    Search,
    advance,
    begin,
    beside_proposals,
    check_settings,
    check_spreads,
    evaluate,
    finished_plan,
    keep_best,
    proposal_count,
    spread_of,
    stack,
    why_over,
)
from planner.types import Plan, PlanningError, Problem, StopReason
from planner.world_model import CostFunction, WorldModel


@dataclass(frozen=True)
class MPPI:
    """Path integral control. The instance is its settings; searches travel as values.

    `temperature` is in standard deviations of a search's own costs, so that it needs no tuning to a cost's scale: near
    0 the best candidate alone counts, above 1 nearly all count alike.
    """

    samples: int = 200
    iterations: int = 8
    horizon: int = 5  # model steps
    temperature: float = 0.1
    initial_std: float | tuple[float, ...] = 0.5  # fraction of half a dimension's range
    narrowing: float = 0.75  # share of the std left one iteration later; 1 keeps it, as published
    converged_below: float = 0.0  # stop once the std (fraction of the range) is this small
    noise: Noise = field(default_factory=TimeCorrelatedNoise)
    cost: CostFunction = field(default_factory=GoalDistance)

    def __post_init__(self) -> None:
        check_settings(self, "samples", "iterations", "horizon")
        check_spreads(self.initial_std, self.converged_below)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise PlanningError("temperature", "must be finite and > 0", self.temperature)
        if not 0 < self.narrowing <= 1:
            raise PlanningError("narrowing", "must be above 0 and at most 1", self.narrowing)

    plan = plan_in_time

    def start(self, problem: Problem, block: int) -> Search:
        """Set up a search around the warm start, or around rest. Raises PlanningError on a bad problem."""
        return begin(problem, self.horizon, block, self.initial_std)

    def improve(self, world_model: WorldModel, searches: Sequence[Search]) -> list[Search]:
        """One iteration for all searches, in one rollout. Candidate 0 is the mean."""
        with torch.no_grad():
            batch = stack(searches, world_model.block)
            shape = NoiseShape(self.samples, self.horizon, world_model.block, batch.mean.shape[-1])
            noise = self.noise([search.stream for search in searches], shape, batch.mean.device).to(batch.mean.dtype)
            candidates = torch.addcmul(batch.mean.unsqueeze(1), batch.std.unsqueeze(1), noise)
            candidates[:, 0] = batch.mean
            candidates = project_within(batch.limits, candidates)
            sampled = candidates.shape[1]
            candidates, missing = beside_proposals(batch, searches, candidates)
            step_costs = evaluate(world_model, self.cost, batch, candidates)
            if missing is not None:
                step_costs = step_costs + missing.unsqueeze(-1)
            best = keep_best(batch, candidates, step_costs)
            weights = self._weights(step_costs.sum(-1), sampled)
            mean = torch.einsum("bs,bsta->bta", weights, candidates)
            std = batch.std * self.narrowing
            spread, proposed = spread_of(std, batch.half_range), weights[:, sampled:].sum(-1)
            return advance(searches, (mean, std), best, spread, warm=step_costs[:, 0], proposed=proposed)

    def iteration_steps(self, search: Search) -> int:
        """Model steps that its next iteration evaluates; one that is also differentiated counts three."""
        return (self.samples + proposal_count(search)) * self.horizon

    def stopped(self, search: Search) -> StopReason | None:
        """Why the search is over, if it is; see `why_over`."""
        return why_over(search, self.iterations, self.converged_below)

    def finish(self, search: Search, reason: StopReason) -> Plan:
        """The best candidate ever evaluated."""
        return finished_plan(search, reason, self.cost)

    def _weights(self, costs: torch.Tensor, sampled: int) -> torch.Tensor:
        """Softmax of minus the costs [batch, samples]; an infinite cost weighs nothing, and rows sum to 1.

        The spread of costs is that of the `sampled` first: bad proposals must not make good samples look alike.
        """
        finite = costs.isfinite()
        drawn = finite & (torch.arange(costs.shape[-1], device=costs.device) < sampled)
        count = drawn.sum(-1, keepdim=True).clamp(min=1)
        settled = torch.where(finite, costs, 0.0)
        mean = torch.where(drawn, settled, 0.0).sum(-1, keepdim=True) / count
        variance = torch.where(drawn, costs - mean, 0.0).square().sum(-1, keepdim=True) / count
        scale = self.temperature * variance.sqrt() + torch.finfo(costs.dtype).tiny
        lowest = torch.where(finite, costs, torch.inf).amin(-1, keepdim=True)
        exponents = torch.where(finite, -(settled - lowest.nan_to_num(0.0, 0.0, 0.0)) / scale, -torch.inf)
        return torch.softmax(exponents, dim=-1).nan_to_num(nan=1 / costs.shape[-1])
