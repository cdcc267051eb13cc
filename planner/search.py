"""One search under way, as a value, and what every sampling optimizer does with a batch of them.

A `Search` holds no randomness of its own (see `noise.Stream`), so an iteration is a pure function from searches to
searches: the same search gives the same next one, alone or in company. How candidates are drawn is the optimizer's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from presage.fields import from_fields
from torch import Tensor

from planner.constraints import limits_of
from planner.cost import arrival_step
from planner.limits import Limits, project_within, stack_limits, without_bounds
from planner.noise import Noise, NoiseShape, Stream
from planner.transfer import to_device
from planner.types import ActionDistribution, Plan, PlanningError, Problem, StopReason
from planner.world_model import Actions, Alike, CostFunction, Latents, StepCosts, WorldModel, shared_rollout


@dataclass(frozen=True, eq=False)
class Search:
    """Where one request's search stands after `iterations` iterations."""

    problem: Problem
    block: int  # robot actions per model step
    limits: Limits
    distribution: ActionDistribution
    half_range: Float[Tensor, "time action"]  # of the action space; 0 where an entry is frozen or committed
    best_actions: Float[Tensor, "time action"]
    best_step_costs: Float[Tensor, " horizon"]  # infinite until a candidate with a finite cost was found
    iterations: int = 0
    iteration_costs: tuple[float, ...] = ()
    elite_spread: tuple[float, ...] = ()
    memory: tuple[Tensor, ...] = ()  # what else its optimizer carries from one iteration to the next
    result: tuple[Tensor, Tensor] | None = None  # actions and step costs of an evaluated mean, once the search is over
    first_share: float = 1.0  # of its samples that the first iteration draws
    warm_step_costs: Float[Tensor, " horizon"] | None = None  # of its warm start, once that was evaluated
    proposed: float = 0.0  # share of proposals among the candidates that its first iteration went on from
    sent: Limits | None = None  # of its plan, where candidates may go beyond them; None: `limits` are for both

    @property
    def stream(self) -> Stream:
        """The randomness of the next iteration."""
        return Stream(self.problem.seed, self.iterations)

    @property
    def best_cost(self) -> float:
        """Of the best candidate so far; infinite before the first iteration, or where no cost was finite."""
        return self.iteration_costs[-1] if self.iteration_costs else math.inf


@dataclass(frozen=True, eq=False)
class SearchBatch:
    """Several searches stacked along a leading batch axis, for one rollout."""

    context: tuple[Tensor, ...]
    goal: Float[Tensor, "batch *latent"]  # noqa: F821  # a shape
    limits: Limits
    mean: Float[Tensor, "batch time action"]
    std: Float[Tensor, "batch time action"]
    half_range: Float[Tensor, "batch time action"]
    best_actions: Float[Tensor, "batch time action"]
    best_step_costs: Float[Tensor, "batch horizon"]
    memory: tuple[Float[Tensor, "batch ..."], ...]
    sent: Limits | None


def begin(
    problem: Problem,
    horizon: int,
    block: int,
    initial_std: float | tuple[float, ...],
    warm_std: float | None = None,
    *,
    unbounded: bool = False,
    training_units: bool = False,
) -> Search:
    """Check a problem and set up its search: mean at the warm start (or at rest), std a fraction of the half range.

    `unbounded` searches as published planners do: around the mean of the actions that the model was trained on, with
    `initial_std` in units of their std (as far as the space knows them), and candidates beyond the bounds, which hold
    for the plan alone; but for a strict space. With `training_units`, candidates keep to the bounds there, too.
    Raises PlanningError where the problem cannot be searched. Reads the goal once (one device synchronization).
    """
    if block < 1:
        raise PlanningError("world_model.block", "must be >= 1", block)
    space, time, device = problem.space, horizon * block, problem.goal.device
    if not bool(problem.goal.isfinite().all()):
        raise PlanningError("goal", "must be finite", "NaN or infinity")
    for tensor in problem.context:
        if tensor.shape[:1] != (1,):
            raise PlanningError("context", "must have a leading batch axis of 1", tuple(tensor.shape))
    dtype = torch.float64 if problem.goal.dtype == torch.float64 else torch.float32  # of actions, as the latents' is
    limits = limits_of(
        space, time, problem.previous_action, problem.committed, problem.held, dtype=dtype, device=device
    )
    low, high = (to_device(torch.tensor(edge, dtype=dtype), device) for edge in (space.low, space.high))
    unit, middle = (high - low) / 2, to_device(torch.tensor(space.rest, dtype=dtype), device)
    sent = None
    if unbounded or training_units:
        if space.mean is not None:
            middle = to_device(torch.tensor(space.mean, dtype=dtype), device)
        if space.std is not None:
            unit = to_device(torch.tensor(space.std, dtype=dtype), device)
    if unbounded and not space.strict:
        sent, limits = limits, without_bounds(limits)
    start = middle.expand(time, -1)
    if problem.warm_start is not None:
        start = to_device(_checked_warm_start(problem.warm_start, (time, space.dimensions)).to(dtype), device)
    start = project_within(limits, start)
    if problem.proposals is not None:
        shape = (len(problem.proposals), time, space.dimensions)
        given = tuple(problem.proposals.shape)
        if given != shape or not shape[0]:
            raise PlanningError("proposals", f"must be {shape} [1 or more, time, action]", given)
    free = limits.low < limits.high
    half_range = ((high - low) / 2) * free
    if problem.warm_start is not None and warm_std is not None:
        initial_std = warm_std
    std = unit * free * per_dimension("initial_std", initial_std, half_range)
    return Search(
        problem=problem,
        block=block,
        limits=limits,
        distribution=ActionDistribution(start, std),
        half_range=half_range,
        best_actions=start if sent is None else project_within(sent, start),
        best_step_costs=torch.full((horizon,), torch.inf, dtype=dtype, device=device),
        sent=sent,
    )


def check_settings(optimizer: object, *counts: str) -> None:
    """Raises PlanningError for one of an optimizer's counts, by name, that is below 1."""
    for name in counts:
        if getattr(optimizer, name) < 1:
            raise PlanningError(name, "must be >= 1", getattr(optimizer, name))


def check_spreads(initial_std: float | tuple[float, ...], converged_below: float) -> None:
    """Raises PlanningError for spreads that no search can begin or end with."""
    entries = (initial_std,) if isinstance(initial_std, (int, float)) else initial_std
    if not all(math.isfinite(entry) and entry >= 0 for entry in entries):
        raise PlanningError("initial_std", "must be finite and >= 0", initial_std)
    if not converged_below >= 0:
        raise PlanningError("converged_below", "must be >= 0", converged_below)


def drawn_starts(search: Search, noise: Noise, count: int) -> Float[Tensor, "starts time action"]:
    """Sequences drawn around a search's mean and inside its limits; the first is the mean."""
    mean, std = search.distribution.mean, search.distribution.std
    shape = NoiseShape(count, mean.shape[0] // search.block, search.block, mean.shape[1])
    actions = mean + std * noise([search.stream], shape, mean.device)[0].to(mean.dtype)
    actions[0] = mean
    return project_within(search.limits, actions)


def stack(searches: Sequence[Search], block: int) -> SearchBatch:
    """Put searches side by side for one iteration of a world model with this block."""
    for search in searches:
        if search.block != block:
            raise PlanningError("world_model.block", f"must be {search.block}, as when the search began", block)
        if (search.sent is None) != (searches[0].sent is None):
            raise PlanningError("searches", "must all be bounded, or none", "both")
    contexts = zip(*(search.problem.context for search in searches), strict=True)
    return SearchBatch(
        context=tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in contexts),
        goal=_stack([search.problem.goal for search in searches]),
        limits=stack_limits([search.limits for search in searches]),
        mean=_stack([search.distribution.mean for search in searches]),
        std=_stack([search.distribution.std for search in searches]),
        half_range=_stack([search.half_range for search in searches]),
        best_actions=_stack([search.best_actions for search in searches]),
        best_step_costs=_stack([search.best_step_costs for search in searches]),
        memory=tuple(_stack(parts) for parts in zip(*(search.memory for search in searches), strict=True)),
        sent=None if searches[0].sent is None else stack_limits([s.sent for s in searches if s.sent is not None]),
    )


def evaluate(world_model: WorldModel, cost: CostFunction, batch: SearchBatch, candidates: Actions) -> StepCosts:
    """Predict every candidate and price it; a candidate with a NaN or infinite cost gets an infinite one."""
    return priced(world_model, cost, batch, candidates)[0]


def priced(
    world_model: WorldModel, cost: CostFunction, batch: SearchBatch, candidates: Actions, alike: Alike | None = None
) -> tuple[StepCosts, Latents]:
    """The same, and what was predicted; once for what candidates are known to have in common."""
    if alike is None:
        predicted = world_model.rollout(batch.context, candidates)
    else:
        predicted = shared_rollout(world_model, batch.context, candidates, alike)
    if candidates.requires_grad and not predicted.requires_grad:
        raise PlanningError("world_model.rollout", "must be differentiable in the actions", "no gradient")
    step_costs = cost(predicted, batch.goal, candidates).to(batch.best_step_costs.dtype)
    wanted = (*candidates.shape[:2], batch.best_step_costs.shape[-1])
    if step_costs.shape != wanted:
        raise PlanningError("cost", f"must return {wanted} [batch, samples, horizon]", tuple(step_costs.shape))
    finite = step_costs.sum(-1, keepdim=True).isfinite()
    return torch.where(finite, step_costs, torch.inf), predicted


def proposal_count(search: Search) -> int:
    """Proposals that compete in its next iteration: those of its problem, in its first."""
    proposals = search.problem.proposals
    return 0 if proposals is None or search.iterations else len(proposals)


def beside_proposals(
    batch: SearchBatch, searches: Sequence[Search], candidates: Actions
) -> tuple[Actions, Float[Tensor, "batch samples"] | None]:
    """Candidates with the proposals of searches in their first iteration after them, and what to add to their costs.

    Proposals take no candidate's place: where they are bad, a search goes on from what it would have without. What is
    added is infinite for the rows that stand in where another search of the batch has more proposals; None: nothing.
    """
    counts = [proposal_count(search) for search in searches]
    most = max(counts)
    if not most:
        return candidates, None
    rows = []
    for search, count, own in zip(searches, counts, candidates, strict=True):
        proposals = search.problem.proposals
        given = own[:0] if proposals is None or not count else to_device(proposals.to(own.dtype), own.device)
        rows.append(torch.cat([given, own[:1].expand(most - count, -1, -1)]))
    proposed = project_within(batch.limits, torch.stack(rows))
    place = torch.arange(most, device=candidates.device)
    missing = place >= to_device(torch.tensor(counts), candidates.device).unsqueeze(-1)
    added = torch.zeros(missing.shape, device=candidates.device).masked_fill(missing, torch.inf)
    return torch.cat([candidates, proposed], dim=1), torch.nn.functional.pad(added, (candidates.shape[1], 0))


def first_pricing(search: Search) -> int:
    """Candidates that a descent prices before its first iteration: starts and proposals, where there are any."""
    count = proposal_count(search)
    return count + search.memory[0].shape[0] if count else 0


@torch.no_grad()
def with_proposed_starts(world_model: WorldModel, cost: CostFunction, searches: Sequence[Search]) -> list[Search]:
    """Searches that descend from a few starts (the first entry of their memory), before their first iteration: the
    cheapest of starts and proposals in their place. The first of several starts, which is the warm one, stays."""
    rows = [row for row, search in enumerate(searches) if proposal_count(search)]
    if not rows:
        return list(searches)
    seeded = [searches[row] for row in rows]
    batch = stack(seeded, world_model.block)
    starts = batch.memory[0]
    candidates, missing = beside_proposals(batch, seeded, starts)
    step_costs = evaluate(world_model, cost, batch, candidates)
    if missing is not None:
        step_costs = step_costs + missing.unsqueeze(-1)
    best_actions, best_step_costs = keep_best(batch, candidates, step_costs)
    costs, count = step_costs.sum(-1), starts.shape[1]
    if count > 1:
        costs[:, 0] = -torch.inf
    chosen = costs.topk(count, largest=False).indices.sort(dim=-1).values  # those that stay keep their places
    kept = torch.take_along_dim(candidates, chosen[:, :, None, None], dim=1)
    shares = (chosen >= count).float().mean(-1).tolist()
    result = list(searches)
    for place, row in enumerate(rows):
        result[row] = replace(
            searches[row],
            memory=(kept[place], *searches[row].memory[1:]),
            best_actions=best_actions[place],
            best_step_costs=best_step_costs[place],
            proposed=shares[place],
        )
    return result


def proposed_of(searches: Sequence[Search]) -> Float[Tensor, " batch"]:
    """The share of proposals among the starts of searches that descend."""
    return to_device(torch.tensor([search.proposed for search in searches]), searches[0].best_actions.device)


def keep_best(batch: SearchBatch, candidates: Actions, step_costs: StepCosts) -> tuple[Tensor, Tensor]:
    """Actions and step costs of the best candidate so far: these ones' best, or the one a search already had."""
    lowest, index = step_costs.sum(-1).min(dim=1)
    better = (lowest < batch.best_step_costs.sum(-1))[:, None, None]
    found = torch.take_along_dim(candidates, index[:, None, None, None], dim=1).squeeze(1)
    found_costs = torch.take_along_dim(step_costs, index[:, None, None], dim=1).squeeze(1)
    best_actions = torch.where(better, found, batch.best_actions)
    return best_actions, torch.where(better.squeeze(-1), found_costs, batch.best_step_costs)


def spread_of(std: Float[Tensor, "batch time action"], half_range: Tensor) -> Float[Tensor, " batch"]:
    """Mean std as a fraction of the action range, over the entries that are free to move."""
    free = half_range > 0
    fractions = torch.where(free, std / (2 * half_range), 0.0)
    return fractions.sum((-2, -1)) / free.sum((-2, -1)).clamp(min=1)


def advance(
    searches: Sequence[Search],
    distribution: tuple[Tensor, Tensor],
    best: tuple[Tensor, Tensor],
    spread: Float[Tensor, " batch"],
    memory: tuple[Tensor, ...] = (),
    warm: StepCosts | None = None,
    proposed: Float[Tensor, " batch"] | None = None,
) -> list[Search]:
    """The searches after one iteration. The one place where an iteration waits for the device.

    `distribution` is mean and std [batch, time, action], `best` what `keep_best` returned; each `memory` tensor has a
    leading batch axis. `warm` are the step costs [batch, horizon] of a first iteration's candidate 0, where that is the
    mean, and `proposed` the share of proposals among the candidates it goes on from.
    """
    best_actions, best_step_costs = best
    shares = torch.zeros_like(spread) if proposed is None else proposed
    told = torch.stack([best_step_costs.sum(-1), spread, shares.to(spread.dtype)], dim=-1).tolist()
    starts_warm = [
        not s.iterations and s.problem.warm_start is not None and s.warm_step_costs is None for s in searches
    ]
    return [
        replace(
            search,
            distribution=ActionDistribution(distribution[0][row], distribution[1][row]),
            best_actions=best_actions[row],
            best_step_costs=best_step_costs[row],
            iterations=search.iterations + 1,
            iteration_costs=(*search.iteration_costs, told[row][0]),
            elite_spread=(*search.elite_spread, told[row][1]),
            memory=tuple(tensor[row] for tensor in memory),
            warm_step_costs=warm[row] if warm is not None and starts_warm[row] else search.warm_step_costs,
            proposed=search.proposed if search.iterations else told[row][2],
        )
        for row, search in enumerate(searches)
    ]


def why_over(search: Search, iterations: int, converged_below: float) -> StopReason | None:
    """`converged` once the elites' spread is small enough, `iterations` once all are done, else None: it goes on.

    A search without one finite cost has nothing to refine, and is over after its first iteration.
    """
    if search.elite_spread and search.elite_spread[-1] <= converged_below:
        return "converged"
    if search.iterations >= iterations or (search.iterations and not math.isfinite(search.best_cost)):
        return "iterations"
    return None


def finished_plan(search: Search, reason: StopReason, cost: CostFunction) -> Plan:
    """The plan of a search that stops here: its evaluated result if it has one, else the best candidate so far.

    Where the problem asks for more than that to give a plan up (`replace_margin`), the warm start instead.

    A search stopped before its first iteration answers with its warm start, or with the committed actions alone, which
    the robot executes anyway; cost NaN and no iterations. Without either there is nothing worth executing, and
    PlanningError says which limit left no time. The same where every candidate ever tried had a NaN or infinite cost.
    """
    if search.iterations == 0:
        committed = 0 if search.problem.committed is None else search.problem.committed.shape[0]
        if search.problem.warm_start is None and committed == 0:
            rule = "was hit before the first iteration could run, and there is no warm start to fall back on"
            raise PlanningError(reason, rule, "0 iterations")
        actions = search.distribution.mean if search.sent is None else search.best_actions
        if search.problem.warm_start is None:
            actions = actions[:committed]
        step_costs = torch.full_like(search.best_step_costs, torch.nan)
    elif not math.isfinite(search.best_cost):
        raise PlanningError("cost", "must be finite for at least one candidate", "NaN or infinity for all")
    elif search.result is not None and bool(search.result[1].isfinite().all()):
        actions, step_costs = search.result
    else:
        actions, step_costs = search.best_actions, search.best_step_costs
    kept = search.iterations > 0 and _keeps_warm_start(search, float(step_costs.sum()))
    if kept and search.warm_step_costs is not None:
        actions, step_costs = _warm_start(search), search.warm_step_costs
    shares = tuple(step_costs.tolist())
    arrival = search.problem.arrival
    if search.iterations and not (kept and arrival is not None):
        arrival = arrival_step(cost, shares) * search.block
    return from_fields(
        Plan,
        search,
        actions=actions,
        cost=math.fsum(shares) if search.iterations else math.nan,
        step_costs=shares,
        stop_reason=reason,
        seed=search.problem.seed,
        distribution=ActionDistribution(actions, search.distribution.std[: actions.shape[0]]),
        arrival=arrival,
        kept=kept,
    )


def _keeps_warm_start(search: Search, found: float) -> bool:
    """Whether what was found is not better enough than the warm start to take its place."""
    margin = search.problem.replace_margin
    if not margin or search.warm_step_costs is None:
        return False
    left = float(search.warm_step_costs.sum())
    return math.isfinite(left) and found > left * (1 - margin)


def _warm_start(search: Search) -> Tensor:
    """The warm start as it was evaluated: within the search's limits."""
    assert search.problem.warm_start is not None
    warm = to_device(search.problem.warm_start.float(), search.best_actions.device)
    return project_within(search.limits, warm)


def per_dimension(field: str, setting: float | tuple[float, ...], like: Tensor) -> float | Tensor:
    """A setting given once, or once per action dimension, ready to multiply `like` [..., action]."""
    if isinstance(setting, (int, float)):
        return float(setting)
    if len(setting) != like.shape[-1]:
        raise PlanningError(field, f"must have {like.shape[-1]} entries", len(setting))
    return to_device(torch.tensor(setting, dtype=like.dtype), like.device)


def _checked_warm_start(warm_start: Tensor, shape: tuple[int, int]) -> Tensor:
    if tuple(warm_start.shape) != shape:
        raise PlanningError("warm_start", f"must be {shape} [time, action]", tuple(warm_start.shape))
    if not bool(warm_start.isfinite().all()):
        raise PlanningError("warm_start", "must be finite", "NaN or infinity")
    return warm_start


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
