"""The cross-entropy method over action sequences (Rubinstein 1999), and its published variants, as settings.

One iteration: sample around the mean, roll out, price, take the elites, refit. Bounds are in `constraints.py`, costs in
`cost.py`, draws in `noise.py`, what searches share in `search.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from planner.anytime import plan_in_time
from planner.cost import GoalDistance
from planner.limits import project_within
from planner.noise import ColoredNoise, Noise, NoiseShape, TimeCorrelatedNoise, WhiteNoise
from planner.search import (
    Search,
    SearchBatch,
    advance,
    begin,
    beside_proposals,
    check_settings,
    evaluate,
    finished_plan,
    keep_best,
    per_dimension,
    proposal_count,
    spread_of,
    stack,
    why_over,
)
from planner.transfer import to_device
from planner.types import Plan, PlanningError, Problem, StopReason
from planner.vjepa2_ac import GripperRules
from planner.world_model import Actions, CostFunction, StepCosts, WorldModel

PerDimension = float | tuple[float, ...]


@dataclass(frozen=True)
class CEM:
    """Cross-entropy method. The instance is its settings; searches travel as values.

    Fractions are of half a dimension's range; a tuple gives one entry per action dimension.
    """

    samples: int = 200
    iterations: int = 8
    elites: int = 10
    horizon: int = 5  # model steps
    initial_std: PerDimension = 1.0  # wide: bounds clip it to bang-bang moves, which leave local minima
    warm_std: float | None = None  # initial_std of a search with a warm start; None: the same
    min_std: float = 0.0
    momentum_mean: PerDimension = 0.0  # share of the old mean kept at a refit
    momentum_std: PerDimension = 0.0
    converged_below: float = 0.0  # stop once the elites' spread (fraction of the range) is this small
    kept: float = 0.5  # share of the elites that compete again in the next iteration, at no rollout's cost (iCEM)
    sample_decay: float = 1.0  # share of the samples left one iteration later, never fewer than two per elite (iCEM)
    full_above: float = 0.0  # elites' spread (fraction of the range) from which on all samples are drawn; below, fewer
    include_mean: bool = True  # candidate 0 is the mean, at first the warm start; False is the published V-JEPA 2 loop
    result: Literal["best", "mean"] = "best"  # "mean", as published: the last mean, or the best so far if cut short
    unbounded: bool = False  # draw around the training actions' mean, in units of their std, bounds for the plan alone
    training_units: bool = False  # the same within the bounds; `unbounded` implies it
    noise: Noise = field(default_factory=TimeCorrelatedNoise)
    cost: CostFunction = field(default_factory=GoalDistance)
    gripper: GripperRules | None = None

    def __post_init__(self) -> None:
        check_settings(self, "samples", "iterations", "horizon")
        if not 2 <= self.elites <= self.samples:
            raise PlanningError("elites", f"must be 2 to samples ({self.samples})", self.elites)
        for name in (
            "initial_std",
            "warm_std",
            "min_std",
            "momentum_mean",
            "momentum_std",
            "converged_below",
            "full_above",
        ):
            for value in _entries(getattr(self, name)):
                if not (math.isfinite(value) and value >= 0):
                    raise PlanningError(name, "must be finite and >= 0", value)
                if name.startswith("momentum") and value >= 1:
                    raise PlanningError(name, "must be below 1", value)
        if not 0 <= self.kept <= 1:
            raise PlanningError("kept", "must be 0 to 1", self.kept)
        if not 0 < self.sample_decay <= 1:
            raise PlanningError("sample_decay", "must be above 0 and at most 1", self.sample_decay)
        if self.result not in ("best", "mean"):
            raise PlanningError("result", "must be best or mean", self.result)

    @property
    def kept_count(self) -> int:
        """Elites that a search carries on: the first entry of its memory [kept_count, time, action], best first."""
        return round(self.kept * self.elites)

    @classmethod
    def vjepa2_ac_paper(cls) -> CEM:
        """V-JEPA 2-AC as in arXiv 2506.09985: 800 samples, 10 iterations, 10 elites, one step, last-step L1.

        For `planner.vjepa2_ac.vjepa2_ac_space()`: a box of 0.075 m per step, gripper -1..1, rotation held. Momentum
        is not in the paper; the released planner's default is taken.
        """
        return replace(cls._vjepa2_ac(), samples=800, iterations=10, horizon=1)

    @classmethod
    def vjepa2_ac_notebook(cls) -> CEM:
        """V-JEPA 2-AC as in the released notebook: 25 samples, 2 iterations, two steps."""
        xyz_and_rotation = (0.75,) * 6
        return replace(cls._vjepa2_ac(), samples=25, iterations=2, horizon=2, momentum_std=(*xyz_and_rotation, 0.15))

    @classmethod
    def _vjepa2_ac(cls) -> CEM:
        return cls(
            elites=10,
            kept=0.0,
            initial_std=1.0,
            momentum_mean=0.15,
            momentum_std=0.15,
            include_mean=False,
            result="mean",
            noise=WhiteNoise(),
            cost=GoalDistance("l1", over="last"),
            gripper=GripperRules(),
        )

    @classmethod
    def lewm_paper(cls, *, unbounded: bool = True) -> CEM:
        """LeWorldModel's planner: 300 samples, 30 iterations, 30 elites, horizon 5, last-step squared L2, white noise.

        As published, the first std is 1 in units of the training actions' own, and candidates are not bounded; the plan
        is. Not `unbounded`, it is 0.5 of the half range (a uniform variable's std is 0.58 of it), and all are.
        """
        return replace(cls._published(), initial_std=1.0 if unbounded else 0.5, unbounded=unbounded)

    @classmethod
    def dino_wm_paper(cls) -> CEM:
        """DINO-WM's planner: as LeWM's. Its cost on proprioception is its latents' to weigh."""
        return cls._published()

    @classmethod
    def jepa_wms_paper(cls) -> CEM:
        """The planner of jepa-wms in simulation: 10 elites, horizon 6, as LeWM's otherwise."""
        return replace(cls._published(), elites=10, horizon=6)

    @classmethod
    def jepa_wms_droid_paper(cls) -> CEM:
        """The planner of jepa-wms for DROID: 15 iterations, horizon 3, a first std of 0.1, candidates within bounds.

        The published bounds are +-0.1 (m, rad) and, of the gripper, +-0.75; the std is the same for all.
        """
        published = replace(cls._published(), iterations=15, elites=10, horizon=3)
        return replace(published, unbounded=False, training_units=True, initial_std=0.1)

    @classmethod
    def _published(cls) -> CEM:
        return cls(
            samples=300,
            iterations=30,
            elites=30,
            kept=0.0,
            horizon=5,
            initial_std=1.0,
            result="mean",
            unbounded=True,
            noise=WhiteNoise(),
            cost=GoalDistance("l2", over="last"),
        )

    @classmethod
    def icem(cls) -> CEM:
        """iCEM (Pinneri et al. 2020): colored noise, 30 % of the elites kept, ever fewer samples, momentum."""
        return cls(
            kept=0.3,
            sample_decay=0.8,
            momentum_mean=0.1,
            momentum_std=0.1,
            noise=ColoredNoise(2.0),
        )

    plan = plan_in_time

    def start(self, problem: Problem, block: int) -> Search:
        """Set up a search around the warm start, or around rest. Raises PlanningError on a bad problem."""
        search = begin(
            problem,
            self.horizon,
            block,
            self.initial_std,
            self.warm_std,
            unbounded=self.unbounded,
            training_units=self.training_units,
        )
        if self.kept_count:
            kept = search.best_actions.expand(self.kept_count, -1, -1)
            search = replace(
                search, memory=(kept, torch.full(kept.shape[:1], torch.inf, dtype=kept.dtype, device=kept.device))
            )
        for name in ("momentum_mean", "momentum_std"):
            per_dimension(name, getattr(self, name), search.distribution.mean)
        return search

    def improve(self, world_model: WorldModel, searches: Sequence[Search]) -> list[Search]:
        """One iteration for all searches, in one rollout."""
        with torch.no_grad():
            batch = stack(searches, world_model.block)
            sampled = self._sample(batch, searches)
            candidates, missing = beside_proposals(batch, searches, sampled)
            count = candidates.shape[1]
            if batch.sent is not None:  # what could be sent is priced beside them: the mean, within the bounds
                candidates = torch.cat([candidates, project_within(batch.sent, batch.mean.unsqueeze(1))], dim=1)
            step_costs = evaluate(world_model, self.cost, batch, candidates)
            priced, sendable = step_costs[:, :count], step_costs[:, count:]
            priced = self._without_padding(priced, searches, sampled.shape[1])
            if missing is not None:
                priced = priced + missing.unsqueeze(-1)
            if batch.sent is None:
                best = keep_best(batch, candidates, priced)
            else:
                best = keep_best(batch, candidates[:, count:], sendable)
            candidates, step_costs = candidates[:, :count], priced
            elites, costs, winners = self._elites(batch, candidates, step_costs.sum(-1))
            mean, std, spread = self._refit(batch, elites, costs)
            kept = self.kept_count
            memory = (elites[:, :kept], costs[:, :kept]) if kept else ()
            warm = step_costs[:, 0] if self.include_mean else None
            proposed = ((winners >= sampled.shape[1]) & (winners < candidates.shape[1])).float().mean(-1)
            improved = advance(searches, (mean, std), best, spread, memory, warm, proposed)
            return self._with_means_evaluated(world_model, improved) if self.result == "mean" else improved

    def iteration_steps(self, search: Search) -> int:
        """Model steps that its next iteration evaluates; one that is also differentiated counts three."""
        return (self._samples_of(search) + proposal_count(search)) * self.horizon

    def stopped(self, search: Search) -> StopReason | None:
        """Why the search is over, if it is; see `why_over`."""
        return why_over(search, self.iterations, self.converged_below)

    def finish(self, search: Search, reason: StopReason) -> Plan:
        """The best candidate ever evaluated, or the evaluated last mean where `result` says so and the search ended."""
        return finished_plan(search, reason, self.cost)

    def _sample(self, batch: SearchBatch, searches: Sequence[Search]) -> Actions:
        """Candidates [batch, samples, time, action] inside each search's limits; candidate 0 is the mean."""
        first = searches[0]
        _, time, action = batch.mean.shape
        shape = NoiseShape(self.samples, time // first.block, first.block, action)
        noise = self.noise([search.stream for search in searches], shape, batch.mean.device).to(batch.mean.dtype)
        noise = noise[:, : max(self._samples_of(search) for search in searches)]
        candidates = torch.addcmul(batch.mean.unsqueeze(1), batch.std.unsqueeze(1), noise)
        if self.include_mean:
            candidates[:, 0] = batch.mean
        if self.gripper is not None:
            candidates = self.gripper.apply(candidates, first.block)
        return project_within(batch.limits, candidates)

    def _samples_of(self, search: Search) -> int:
        """Of its next iteration: fewer as iterations pass, the more its elites agree, and of a first one in a hurry."""
        left = self.sample_decay**search.iterations if search.iterations else search.first_share
        if search.elite_spread and search.elite_spread[-1] < self.full_above:
            left *= search.elite_spread[-1] / self.full_above
        return max(math.ceil(self.samples * left), min(2 * self.elites, self.samples))

    def _without_padding(self, step_costs: StepCosts, searches: Sequence[Search], sampled: int) -> StepCosts:
        """Rule out what a search was given beyond its own number of samples, because its company takes more.

        Candidates past the `sampled` ones are not samples.
        """
        counts = [self._samples_of(search) for search in searches]
        if min(counts) == sampled:
            return step_costs
        place = torch.arange(step_costs.shape[1], device=step_costs.device)
        padding = (place >= to_device(torch.tensor(counts), step_costs.device).unsqueeze(-1)) & (place < sampled)
        return step_costs.masked_fill(padding.unsqueeze(-1), torch.inf)

    def _elites(
        self, batch: SearchBatch, candidates: Actions, costs: Float[Tensor, "batch samples"]
    ) -> tuple[Actions, Float[Tensor, "batch elites"], Int[Tensor, "batch elites"]]:
        """The best candidates of this iteration and of those kept from the last, best first, what they cost, and which
        they are."""
        if batch.memory:
            kept, kept_costs = batch.memory
            candidates, costs = torch.cat([candidates, kept], dim=1), torch.cat([costs, kept_costs], dim=1)
        elite_costs, index = costs.topk(self.elites, largest=False)  # [batch, elites]
        return torch.take_along_dim(candidates, index[:, :, None, None], dim=1), elite_costs, index

    def _refit(
        self, batch: SearchBatch, elites: Actions, costs: Float[Tensor, "batch elites"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next mean and std [batch, time, action], and the elites' spread [batch]. Only finite costs count."""
        counted = costs.isfinite()[:, :, None, None].to(elites.dtype)
        count = counted.sum(1)
        mean = (elites * counted).sum(1) / count.clamp(min=1)
        variance = ((elites - mean.unsqueeze(1)).square() * counted).sum(1) / (count - 1).clamp(min=1)
        mean = torch.where(count > 0, mean, batch.mean)
        std = torch.where(count > 1, variance.sqrt(), batch.std)
        spread = spread_of(std, batch.half_range)
        mean = torch.lerp(mean, batch.mean, per_dimension("momentum_mean", self.momentum_mean, mean))
        std = torch.lerp(std, batch.std, per_dimension("momentum_std", self.momentum_std, std))
        return mean, torch.maximum(std, batch.half_range * self.min_std), spread

    def _with_means_evaluated(self, world_model: WorldModel, searches: list[Search]) -> list[Search]:
        """Price the final mean of every search that is over: a result must not leave unevaluated."""
        over = [row for row, search in enumerate(searches) if self.stopped(search) is not None]
        if not over:
            return searches
        batch = stack([searches[row] for row in over], world_model.block)
        means = batch.mean.unsqueeze(1)
        if self.gripper is not None:
            means = self.gripper.settle(means)
        means = project_within(batch.limits if batch.sent is None else batch.sent, means)
        step_costs: StepCosts = evaluate(world_model, self.cost, batch, means)
        for place, row in enumerate(over):
            searches[row] = replace(searches[row], result=(means[place, 0], step_costs[place, 0]))
        return searches


def _entries(setting: PerDimension | None) -> tuple[float, ...]:
    if setting is None:
        return ()
    return (setting,) if isinstance(setting, (int, float)) else setting
