"""The values that travel through a search: action space, distribution, problem, plan. No algorithm lives here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from presage.user_error import UserError
from torch import Tensor

from planner.world_model import Context

StopReason = Literal["converged", "budget", "deadline", "iterations", "cancelled"]


class PlanningError(UserError, ValueError):
    """A request no plan can answer. `field` names what is at fault, `rule` what it breaks, `value` what was given."""

    def __init__(self, field: str, rule: str, value: object) -> None:
        super().__init__(f"{field} {rule}, got {value}")
        self.field, self.rule, self.value = field, rule, value


def refused(field: str, rule: str, value: object, reason: str = "") -> PlanningError:
    """A PlanningError as checks that are shared with the service make it."""
    return PlanningError(field, rule, value)


@dataclass(frozen=True)
class ActionSpace:
    """What the robot can be told to do, in its own units. Every sample and every result is projected into it."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]  # equal to low where a dimension is held there
    rate_hz: float
    slew: tuple[float, ...] | None = None  # largest change from one action to the next, per dimension
    frozen: tuple[float | None, ...] | None = None  # a number holds the dimension there, None leaves it free
    max_norm: float | None = None  # cap on the L2 (or L1) norm of one action
    norm_order: Literal[1, 2] = 2
    norm_of: tuple[str, ...] | None = None  # names of the dimensions the norm is of (one unit, say); None: all
    dwell: tuple[int, ...] | None = None  # actions a value is kept for at least, per dimension; 1 leaves it free
    mean: tuple[float, ...] | None = None  # of the actions a model was trained on: what published searches draw around
    std: tuple[float, ...] | None = None
    stated_rest: tuple[float, ...] | None = None  # the action that leaves the robot at rest, where somebody says
    strict: bool = (
        False  # every candidate keeps to it, those of published searches too, which are not bounded otherwise
    )

    def __post_init__(self) -> None:
        if not self.names:
            raise PlanningError("action_space.names", "must not be empty", self.names)
        for field in ("units", "low", "high", "slew", "frozen", "dwell", "mean", "std", "stated_rest"):
            value = getattr(self, field)
            if value is not None and len(value) != len(self.names):
                raise PlanningError(f"action_space.{field}", f"must have {len(self.names)} entries", len(value))
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise PlanningError(f"action_space.{name}", "must have finite low <= high", (low, high))
        for name, low, high, still in zip(self.names, self.low, self.high, self.stated_rest or (), strict=False):
            if not low <= still <= high:
                raise PlanningError(f"action_space.stated_rest.{name}", f"must lie in [{low}, {high}]", still)
        for name, low, high, held in zip(self.names, self.low, self.high, self.frozen or (), strict=False):
            if held is not None and not low <= held <= high:
                raise PlanningError(f"action_space.frozen.{name}", f"must lie in [{low}, {high}]", held)
        if self.slew is not None and not all(s > 0 for s in self.slew):
            raise PlanningError("action_space.slew", "must be positive", self.slew)
        if self.dwell is not None and not all(steps >= 1 and float(steps).is_integer() for steps in self.dwell):
            raise PlanningError("action_space.dwell", "must be whole numbers >= 1", self.dwell)
        if self.mean is not None and not all(math.isfinite(entry) for entry in self.mean):
            raise PlanningError("action_space.mean", "must be finite", self.mean)
        if self.std is not None and not all(math.isfinite(entry) and entry > 0 for entry in self.std):
            raise PlanningError("action_space.std", "must be finite and > 0", self.std)
        if self.norm_order not in (1, 2):
            raise PlanningError("action_space.norm_order", "must be 1 or 2", self.norm_order)
        if self.norm_of is not None and not (self.norm_of and set(self.norm_of) <= set(self.names)):
            raise PlanningError("action_space.norm_of", f"must name some of {self.names}", self.norm_of)
        if self.max_norm is not None:
            if not self.max_norm > 0:
                raise PlanningError("action_space.max_norm", "must be positive", self.max_norm)
            if self._least_norm() > self.max_norm:
                raise PlanningError("action_space.max_norm", f"must be >= {self._least_norm():g}", self.max_norm)
        if not self.rate_hz > 0:
            raise PlanningError("action_space.rate_hz", "must be positive", self.rate_hz)

    @property
    def dimensions(self) -> int:
        return len(self.names)

    @property
    def rest(self) -> tuple[float, ...]:
        """The action that leaves the robot at rest, per dimension in its own unit: what is stated, else zero.

        Where zero lies outside the bounds it is the bound nearest to zero. Never the middle of the bounds: of a base
        that was recorded driving forward, that is half its speed.
        """
        if self.stated_rest is not None:
            return self.stated_rest
        return tuple(max(low, min(high, 0.0)) for low, high in zip(self.low, self.high, strict=True))

    def _least_norm(self) -> float:
        """The smallest norm that bounds and frozen dimensions allow."""
        frozen = self.frozen or (None,) * self.dimensions
        least = [
            max(low, min(high, 0.0)) if held is None else held
            for name, low, high, held in zip(self.names, self.low, self.high, frozen, strict=True)
            if self.norm_of is None or name in self.norm_of
        ]
        return math.hypot(*least) if self.norm_order == 2 else math.fsum(map(abs, least))


@dataclass(frozen=True)
class ActionDistribution:
    """A Gaussian per action and dimension, in robot units: what a search refines, and the next search's warm start."""

    mean: Float[Tensor, "time action"]
    std: Float[Tensor, "time action"]

    def shifted(self, executed: int, fill: ActionDistribution) -> ActionDistribution:
        """Drop the first `executed` actions and continue with the tail of `fill` (the search's own start)."""
        if executed < 0:
            raise PlanningError("executed", "must be >= 0", executed)
        kept = min(executed, self.mean.shape[0])
        mean = torch.cat([self.mean[kept:], fill.mean[self.mean.shape[0] - kept :]])
        std = torch.cat([self.std[kept:], fill.std[self.std.shape[0] - kept :]])
        return ActionDistribution(mean, std)


@dataclass(frozen=True)
class Problem:
    """One robot's question: from this context, reach that goal. Everything a search needs, as values."""

    context: Context  # every tensor with a leading batch axis of 1
    goal: Tensor  # [*latent]
    space: ActionSpace
    seed: int
    warm_start: Float[Tensor, "time action"] | None = None  # candidate 0, already shifted by what was executed
    previous_action: Float[Tensor, " action"] | None = None  # last action executed: where slew limit and dwell start
    held: tuple[float, ...] | None = None  # actions for which each of its dimensions was kept; needed for a dwell
    committed: Float[Tensor, "steps action"] | None = None  # actions under way: frozen at the head of every candidate
    proposals: Float[Tensor, "proposals time action"] | None = None  # candidates of the first iteration beside its own
    arrival: int | None = None  # actions after which the plan that the warm start is left of means to be there
    replace_margin: float = 0.0  # of its cost by which a plan must beat the warm start to take its place, below 1

    def __post_init__(self) -> None:
        if not 0 <= self.replace_margin < 1:
            raise PlanningError("replace_margin", "must be at least 0 and below 1", self.replace_margin)
        if self.arrival is not None and self.arrival < 1:
            raise PlanningError("arrival", "must be >= 1 action", self.arrival)


@dataclass(frozen=True)
class Plan:
    """What a search found, and how. `actions` never leave the action space."""

    actions: Float[Tensor, "time action"]  # robot units; the committed ones alone where no search ran and none led here
    cost: float
    step_costs: tuple[float, ...]  # predicted, one per model step; they sum to cost
    iteration_costs: tuple[float, ...]  # best so far after each iteration, never rising
    elite_spread: tuple[float, ...]  # mean std of the elites after each iteration, as a fraction of the action range
    iterations: int
    stop_reason: StopReason
    seed: int
    distribution: ActionDistribution
    first_share: float = 1.0  # of its samples that the first iteration drew; below 1 where time had no room for all
    arrival: int | None = None  # the action after which it means to be at its goal; None where that is not known
    kept: bool = False  # it is the warm start: nothing found was better by the problem's `replace_margin`
    proposed: float = 0.0  # share of proposals among the candidates that the first iteration went on from

    def arrival_after(self, executed: int) -> int | None:
        """The next problem's `arrival`, once so many of its actions are executed; None once it is over."""
        return None if self.arrival is None or executed >= self.arrival else self.arrival - executed
