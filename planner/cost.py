"""Costs: distance to the goal, of groups of channels too, effort, and weighted sums. No search lives here.

Every cost returns each model step's share [batch, samples, horizon] of the total, in float32, or float64 where latents
are. Sums over latents are right to 1e-7 of their value: elites must not be chosen by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from presage.optimizers import Metric, check_metric
from torch import Tensor

from planner.transfer import to_device
from planner.types import PlanningError, refused
from planner.world_model import Actions, CostFunction, Latents, StepCosts

Residuals = Float[Tensor, "batch samples residuals"]

TEMPORARY_ELEMENTS = 1 << 24  # of a difference of latents computed at once: 64 MiB in float32


@runtime_checkable
class SumOfSquares(Protocol):
    """A cost that also tells what it is the sum of squares of, for searches that make use of that (`GaussNewton`)."""

    def residuals(self, predicted: Latents, goal: Tensor, actions: Actions) -> Residuals:
        """Any number for each candidate, whose squares add up to its total cost."""
        ...


@runtime_checkable
class GroupedResiduals(SumOfSquares, Protocol):
    """One that counts some steps of a candidate and not others, and can be told to count those of another candidate."""

    def grouped_residuals(self, predicted: Latents, goal: Tensor, actions: Actions, groups: int) -> Residuals:
        """`residuals` of `groups` groups of as many candidates each, all counting what the first of a group counts."""
        ...


def residuals_of(
    cost: CostFunction, predicted: Latents, goal: Tensor, actions: Actions, groups: int | None = None
) -> Residuals:
    """What a cost is the sum of squares of: its own answer, or else the root of each step's share (negative ones as 0).

    The roots serve any cost, but one number a step says little of where to go; NaN where a share is NaN. With `groups`,
    candidates come in so many groups, and residuals of one are comparable with those of the first of its group.
    """
    if groups is not None and isinstance(cost, GroupedResiduals):
        return cost.grouped_residuals(predicted, goal, actions, groups)
    if isinstance(cost, SumOfSquares):
        return cost.residuals(predicted, goal, actions)
    return _roots(cost(predicted, goal, actions))


def arrival_step(cost: CostFunction, step_costs: Sequence[float]) -> int:
    """The model step, counted from 1, at which a plan with these shares means to be at its goal.

    The one that counts, under a `GoalDistance` over "least"; the last one under every other cost.
    """
    if isinstance(cost, GoalDistance) and cost.over == "least":
        return max(range(len(step_costs)), key=lambda step: step_costs[step]) + 1
    return len(step_costs)


@dataclass(frozen=True)
class GoalDistance:
    """How far the predicted latents are from the goal's.

    `metric`: "l2" is the mean squared difference over all latent dimensions, "l1" the mean absolute difference, "rms"
    the root of the mean squared difference (the Euclidean distance, alike for latents of any width), "cosine" one minus
    the cosine of the two flattened latents. `over`: "sum" adds every step of the horizon, which rewards arriving early;
    "last" counts the last step alone (the published setting), under which a plan that is redone after its first steps
    keeps postponing its arrival; "discounted" weighs step k = 0, 1, ... by discount^k (above 1, later ones more);
    "least" counts the cheapest step alone, step k at 1 + `rise` k times its distance, so that a plan may leave a pose
    that is nearly the goal's, and of two ways there takes the shorter one.
    """

    metric: Metric = "l2"
    over: Literal["sum", "last", "discounted", "least"] = "sum"
    discount: float = 1.0
    rise: float = 0.1  # of "least": what each model step later adds to a distance, as a share of it

    def __post_init__(self) -> None:
        check_metric(self.metric, refused, "cost.metric")
        if self.over not in ("sum", "last", "discounted", "least"):
            raise PlanningError("cost.over", "must be sum, last, discounted or least", self.over)
        if not (math.isfinite(self.rise) and self.rise >= 0):
            raise PlanningError("cost.rise", "must be finite and >= 0", self.rise)
        if not (math.isfinite(self.discount) and self.discount > 0):
            raise PlanningError("cost.discount", "must be finite and > 0", self.discount)
        if self.discount != 1 and self.over != "discounted":
            raise PlanningError("cost.discount", f"must be 1 over {self.over}, which does not discount", self.discount)

    def __call__(self, predicted: Latents, goal: Float[Tensor, "batch *latent"], actions: Actions) -> StepCosts:  # noqa: F821  # a shape
        horizon = predicted.shape[2]
        if self.over == "last":
            last = latent_distance(self.metric, predicted[:, :, -1:], goal)
            return torch.nn.functional.pad(last, (horizon - 1, 0))
        distance = latent_distance(self.metric, predicted, goal)
        if self.over == "discounted":
            distance = distance * self.discount ** torch.arange(horizon, device=distance.device)
        if self.over == "least":
            distance = distance * self._weights(horizon, distance)
            lowest, step = distance.min(dim=-1, keepdim=True)  # NaN where any is: then nothing of the candidate counts
            counted = torch.arange(horizon, device=distance.device) == step
            # Not quite 0 at a perfect step: which one counts is told from the shares.
            return torch.where(counted, lowest.clamp(min=torch.finfo(distance.dtype).tiny), 0.0)
        return distance

    def residuals(self, predicted: Latents, goal: Float[Tensor, "batch *latent"], actions: Actions) -> Residuals:  # noqa: F821  # a shape
        """Scaled differences of latents: as they are ("l2"), of unit length ("cosine"), or signed roots ("l1")."""
        return self.grouped_residuals(predicted, goal, actions, predicted.shape[1])

    def grouped_residuals(self, predicted: Latents, goal: Tensor, actions: Actions, groups: int) -> Residuals:
        """The same of candidates in groups; over "least", the step that is cheapest for the first of a group counts."""
        if self.over == "least":
            return self._cheapest(predicted, goal, groups)
        return self._residuals(predicted, goal)

    def _weights(self, horizon: int, like: Tensor) -> Float[Tensor, " horizon"]:
        return 1 + self.rise * torch.arange(horizon, device=like.device, dtype=like.dtype)

    def _cheapest(self, predicted: Latents, goal: Tensor, groups: int) -> Residuals:
        """Residuals of one step of each candidate, the one that counts for the first of its group."""
        batch, samples, horizon = predicted.shape[:3]
        firsts = predicted.reshape(batch, groups, -1, *predicted.shape[2:])[:, :, 0]
        distance = latent_distance(self.metric, firsts, goal)
        weights = self._weights(horizon, distance)
        step = (distance * weights).nan_to_num(torch.inf, torch.inf).argmin(dim=-1)  # [batch, groups]
        step = step.repeat_interleave(samples // groups, dim=1)
        index = step.view(batch, samples, *(1 for _ in predicted.shape[2:]))
        chosen = torch.take_along_dim(predicted, index, dim=2)
        return self._residuals(chosen, goal) * weights.sqrt()[step].unsqueeze(-1)

    def _residuals(self, predicted: Latents, goal: Tensor) -> Residuals:
        if self.over == "last":
            predicted = predicted[:, :, -1:]
        found, wanted = _side_by_side(predicted, goal)
        if self.metric == "cosine":
            unit = torch.nn.functional.normalize
            residuals = (unit(found.float(), dim=-1) - unit(wanted.float(), dim=-1)) / math.sqrt(2)
        elif self.metric == "rms":
            residuals = _roots(latent_distance("rms", predicted, goal)).unsqueeze(-1)
        else:
            difference = found.float() - wanted.float()
            rooted = difference if self.metric == "l2" else difference.sign() * difference.abs().sqrt()
            residuals = rooted / math.sqrt(found.shape[-1])
        if self.over == "discounted":
            weights = self.discount ** torch.arange(residuals.shape[2], device=residuals.device)
            residuals = residuals * weights.sqrt().unsqueeze(-1)
        return residuals.flatten(2)


def latent_distance(metric: Metric, latents: Latents, goal: Float[Tensor, "batch *latent"]) -> StepCosts:  # noqa: F821  # a shape
    """How far each latent is from its robot's goal, right to 1e-7; see `GoalDistance` for the metrics.

    What would need a temporary above `TEMPORARY_ELEMENTS` is computed a few samples at a time, to the same result. The
    latents of large models are the largest tensors there are: 800 samples of 256 x 1408 tokens take 1.2 GB in float32.
    """
    per_sample = latents[:, :1].numel()
    at_once = max(1, TEMPORARY_ELEMENTS // max(1, per_sample))
    parts = [_distance(metric, part, goal) for part in torch.split(latents, at_once, dim=1)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _distance(metric: Metric, latents: Latents, goal: Tensor) -> StepCosts:
    flat, target = _side_by_side(latents, goal)
    precise = torch.float64 if torch.float64 in (flat.dtype, target.dtype) else torch.float32
    if metric == "cosine":  # near the goal it is a small difference of numbers near 1
        similarity: Tensor = torch.cosine_similarity(flat.double(), target.double(), dim=-1)
        return (1 - similarity).to(precise)
    difference = flat - target.to(precise)
    total = (_sum_of_sizes(difference) if metric == "l1" else _sum_of_squares(difference)) / flat.shape[-1]
    return (total.clamp(min=torch.finfo(torch.float64).tiny).sqrt() if metric == "rms" else total).to(precise)


SUMMED_AT_ONCE = 256  # numbers added up in float32; their sums are added in float64
SHORT = 4096  # rows of at most so many numbers are added in float64 at once


def _sum_of_sizes(difference: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch"]:
    """Sums of absolute values in float64. Takes `difference` over.

    40 rows of 256 x 1408 numbers take 130 ms on one thread, 127 of them for the difference itself; one float32 norm
    over whole rows took 147, and was off by 3e-5.
    """
    sizes = difference.abs() if difference.requires_grad else difference.abs_()
    if sizes.dtype == torch.float64 or sizes.shape[-1] <= SHORT:
        return sizes.sum(-1, dtype=torch.float64)
    parts, rest = _parted(sizes)
    return parts.sum(-1).sum(-1, dtype=torch.float64) + rest.sum(-1, dtype=torch.float64)


def _sum_of_squares(difference: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch"]:
    """Sums of squares in float64. A norm squares without a copy: 129 ms as above, of float32 over whole rows 129."""
    if difference.dtype == torch.float64 or difference.shape[-1] <= SHORT:
        return difference.square().sum(-1, dtype=torch.float64)
    parts, rest = _parted(difference)
    norms: Tensor = torch.linalg.vector_norm(parts, dim=-1)
    return norms.double().square().sum(-1) + rest.square().sum(-1, dtype=torch.float64)


def _parted(rows: Float[Tensor, "*batch numbers"]) -> tuple[Float[Tensor, "*batch parts part"], Tensor]:
    """Rows in parts of `SUMMED_AT_ONCE`, and what is left over."""
    whole = rows.shape[-1] // SUMMED_AT_ONCE * SUMMED_AT_ONCE
    return rows[..., :whole].reshape(*rows.shape[:-1], -1, SUMMED_AT_ONCE), rows[..., whole:]


@dataclass(frozen=True)
class ActionCost:
    """Effort: the mean over an action's dimensions of (action / scale)^2, added over the actions of each step.

    `scale` is in robot units, one per dimension (or one for all): what counts as an effort of 1.
    """

    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
        effort = (actions / _scale(self.scale, actions)).square().mean(-1)
        return _per_step(effort, predicted.shape[2])

    def residuals(self, predicted: Latents, goal: Tensor, actions: Actions) -> Residuals:
        """Every scaled number of every action."""
        return (actions / _scale(self.scale, actions)).flatten(2) / math.sqrt(actions.shape[-1])


@dataclass(frozen=True)
class WeightedSum:
    """Several costs at once: the sum of weight times cost."""

    terms: tuple[tuple[float, CostFunction], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise PlanningError("cost.terms", "must hold at least one cost", self.terms)
        for weight, _ in self.terms:
            if not math.isfinite(weight):
                raise PlanningError("cost.terms", "must have finite weights", weight)

    def __call__(self, predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
        shares = [weight * cost(predicted, goal, actions) for weight, cost in self.terms]
        return torch.stack(shares).sum(0)

    def residuals(self, predicted: Latents, goal: Tensor, actions: Actions) -> Residuals:
        """Those of its terms; with a weight below 0, which no square has, the root of each step's sum."""
        return self.grouped_residuals(predicted, goal, actions, predicted.shape[1])

    def grouped_residuals(self, predicted: Latents, goal: Tensor, actions: Actions, groups: int) -> Residuals:
        """The same of candidates in groups."""
        if any(weight < 0 for weight, _ in self.terms):
            return _roots(self(predicted, goal, actions))
        parts = [
            math.sqrt(weight) * residuals_of(cost, predicted, goal, actions, groups) for weight, cost in self.terms
        ]
        return torch.cat(parts, dim=-1)


def _roots(step_costs: StepCosts) -> Residuals:
    return step_costs.float().clamp(min=0).sqrt()


def _side_by_side(latents: Latents, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [batch, samples, horizon, numbers] and a goal [batch, 1, 1, numbers] that goes with them."""
    flat = latents.flatten(3) if latents.ndim > 3 else latents.unsqueeze(-1)
    return flat, goal.reshape(goal.shape[0], 1, 1, -1)


def _per_step(per_action: Float[Tensor, "batch samples time"], horizon: int) -> StepCosts:
    batch, samples, _ = per_action.shape
    return per_action.reshape(batch, samples, horizon, -1).sum(-1)


def _scale(scale: float | Sequence[float], actions: Tensor) -> float | Tensor:
    if isinstance(scale, (int, float)):
        return float(scale)
    if len(scale) != actions.shape[-1]:
        raise PlanningError("cost.scale", f"must have {actions.shape[-1]} entries", len(scale))
    return to_device(torch.tensor(scale, dtype=actions.dtype), actions.device)


def _check_scale(scale: float | Sequence[float]) -> None:
    for entry in (scale,) if isinstance(scale, (int, float)) else scale:
        if not (math.isfinite(entry) and entry > 0):
            raise PlanningError("cost.scale", "must be finite and > 0", entry)


@dataclass(frozen=True)
class ChannelDistance:
    """The sum of a distance over groups of channels of the last axis, each averaged by itself and weighed.

    `groups` are numbers of channels and their weights, in order. A goal may have fewer groups than a prediction, from
    the first on: then only these count (a goal image alone says nothing of what a robot should measure).
    """

    groups: tuple[tuple[int, float], ...]
    distance: GoalDistance = GoalDistance("l2", over="last")

    def __post_init__(self) -> None:
        if not self.groups:
            raise PlanningError("cost.groups", "must hold at least one group", self.groups)
        for channels, weight in self.groups:
            if channels < 1 or not (math.isfinite(weight) and weight >= 0):
                raise PlanningError("cost.groups", "must be channels >= 1 and weights >= 0", (channels, weight))

    def __call__(self, predicted: Latents, goal: Float[Tensor, "batch *latent"], actions: Actions) -> StepCosts:  # noqa: F821  # a shape
        parts = [weight * self.distance(*pair, actions) for weight, pair in self._split(predicted, goal)]
        return torch.stack(parts).sum(0)

    def residuals(self, predicted: Latents, goal: Float[Tensor, "batch *latent"], actions: Actions) -> Residuals:  # noqa: F821  # a shape
        """Those of every group, times the root of its weight."""
        pairs = self._split(predicted, goal)
        return torch.cat(
            [math.sqrt(weight) * self.distance.residuals(*pair, actions) for weight, pair in pairs], dim=-1
        )

    def _split(self, predicted: Latents, goal: Tensor) -> list[tuple[float, tuple[Tensor, Tensor]]]:
        """Every group that the goal has: its weight, and its channels of prediction and goal."""
        pairs, first = [], 0
        for channels, weight in self.groups:
            if first == goal.shape[-1]:
                break
            group = slice(first, first + channels)
            first += channels
            pairs.append((weight, (predicted[..., group], goal[..., group])))
        if first != goal.shape[-1] or first > predicted.shape[-1]:
            widths = [channels for channels, _ in self.groups]
            rule = f"must have the channels of whole groups {widths}, as predictions have"
            raise PlanningError("goal", rule, f"{goal.shape[-1]} of {predicted.shape[-1]}")
        return pairs
