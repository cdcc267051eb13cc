"""Planning against the clock: one loop for every optimizer, which stops on time with the best plan so far.

Knows nothing of how an optimizer improves a search. The service's engine, which batches many searches, drives the same
protocol itself and shares `IterationClock`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from planner.search import Search
from planner.types import Plan, PlanningError, Problem, StopReason
from planner.world_model import CostFunction, WorldModel

THINNEST = 1 / 8  # of its samples: what is left of a first iteration where there is hardly any time


class Optimizer(Protocol):
    """A way of searching, in steps that can be stopped between, and shared between robots."""

    @property
    def horizon(self) -> int:
        """Model steps a plan looks ahead."""
        ...

    @property
    def iterations(self) -> int:
        """The most a search runs."""
        ...

    @property
    def cost(self) -> CostFunction:
        """What it makes small."""
        ...

    def start(self, problem: Problem, block: int) -> Search:
        """Check a problem and set up its search. Raises PlanningError."""
        ...

    def improve(self, world_model: WorldModel, searches: Sequence[Search]) -> list[Search]:
        """One iteration for all searches, in one batch; each may stand at a different iteration."""
        ...

    def iteration_steps(self, search: Search) -> int:
        """Model steps that its next iteration evaluates; one that is also differentiated counts three."""
        ...

    def stopped(self, search: Search) -> StopReason | None:
        """Why this search is over by itself, or None while it is worth improving."""
        ...

    def finish(self, search: Search, reason: StopReason) -> Plan:
        """The plan a search ends with. Raises PlanningError where there is none worth executing."""
        ...


class IterationClock:
    """Learns how long one iteration takes, so that the next one is only begun if it will end in time.

    The estimate is a moving mean plus three moving mean deviations (as TCP sets its timeouts): on a steady machine it
    costs a few percent of the time there was, on a noisy one it keeps its distance. Keep one clock per optimizer and
    shape for as long as the process runs.
    """

    def __init__(self, mean_s: float = 0.0, deviation_s: float = 0.0, smoothing: float = 0.25) -> None:
        self.mean_s, self.deviation_s, self.smoothing = mean_s, deviation_s, smoothing
        self._observed = 0 if mean_s == 0 else 2

    @property
    def estimate_s(self) -> float:
        """Seconds the next iteration may take; 0 while nothing was observed."""
        return self.mean_s + 3 * self.deviation_s

    def observe(self, seconds: float) -> None:
        """Learn from one iteration. The first pays for what a device prepares once: a faster second takes its place.

        Otherwise a slow first one could keep iterations of its size from being tried ever again.
        """
        self._observed += 1
        if self._observed == 1 or (self._observed == 2 and seconds < self.mean_s):
            self.mean_s, self.deviation_s = seconds, seconds / 8
            return
        error = seconds - self.mean_s
        self.mean_s += self.smoothing * error
        self.deviation_s += self.smoothing * (abs(error) - self.deviation_s)


class Pace:
    """What an optimizer's iterations on one model take, by how many model steps they evaluate.

    A sampling iteration of a hybrid takes many times as long as one that descends: each size has a clock of its own.
    """

    def __init__(self) -> None:
        self._clocks: dict[int, IterationClock] = {}

    def observe(self, steps: int, seconds: float) -> None:
        """Learn from one iteration."""
        self._clocks.setdefault(steps, IterationClock()).observe(seconds)

    def estimate_s(self, steps: int) -> float:
        """Seconds such an iteration may take; 0 while nothing was observed.

        Of a size not seen yet: in proportion to the next smaller one, but no more than the next larger one takes.
        """
        if steps in self._clocks:
            return self._clocks[steps].estimate_s
        smaller = max((seen for seen in self._clocks if seen < steps), default=None)
        larger = min((seen for seen in self._clocks if seen > steps), default=None)
        bounds = [] if smaller is None else [self._clocks[smaller].estimate_s * steps / smaller]
        bounds += [] if larger is None else [self._clocks[larger].estimate_s]
        return min(bounds, default=0.0)

    def guess_s(self, steps: int) -> float:
        """The same, with some hope for a size below all that were seen: half of it takes three quarters of the time."""
        seen = min(self._clocks, default=steps)
        return self.estimate_s(steps) if steps >= seen else self.estimate_s(seen) * (1 + steps / seen) / 2


def never() -> bool:
    """The cancellation of a request that nobody cancels."""
    return False


def plan_in_time(
    optimizer: Optimizer,
    world_model: WorldModel,
    problem: Problem,
    *,
    deadline: float | None = None,
    budget_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    cancelled: Callable[[], bool] = never,
    pace: Pace | None = None,
) -> Plan:
    """Improve until the optimizer is done, the time is up, or the caller gives up; always between two iterations.

    `deadline`, on `clock`'s scale in seconds, is hard: no iteration begins that is expected to end past it, not even
    the first (then the plan is the warm start, unevaluated, or PlanningError). `budget_s`, from now, is the time worth
    spending: the first iteration runs in any case. Where there is no time for all its samples, it draws a half, a
    quarter or an eighth of them (`Plan.first_share`), if the optimizer can. `cancelled` is asked before every
    iteration. `pace` carries what is known of an iteration's duration from plan to plan; without it the first iteration
    is begun on trust.
    """
    if budget_s is not None and not budget_s > 0:
        raise PlanningError("budget_s", "must be > 0", budget_s)
    pace = Pace() if pace is None else pace
    began = clock()
    search = optimizer.start(problem, world_model.block)
    if budget_s is not None:
        search = _thinned(optimizer, search, pace.guess_s, began + budget_s - clock())
    if deadline is not None:
        search = _thinned(optimizer, search, pace.estimate_s, deadline - clock())
    while True:
        now = clock()
        reason = optimizer.stopped(search)
        steps = optimizer.iteration_steps(search)
        if reason is None and cancelled():
            reason = "cancelled"
        if reason is None and deadline is not None and now + pace.estimate_s(steps) >= deadline:
            reason = "deadline"
        if reason is None and budget_s is not None and search.iterations:
            reason = "budget" if now + pace.estimate_s(steps) > began + budget_s else None
        if reason is not None:
            return optimizer.finish(search, reason)
        (search,) = optimizer.improve(world_model, [search])
        pace.observe(steps, clock() - now)


def _thinned(optimizer: Optimizer, search: Search, seconds: Callable[[int], float], left_s: float) -> Search:
    """The search with a first iteration that ends in time, or the shortest there is where none does."""
    steps = optimizer.iteration_steps(search)
    while seconds(steps) > left_s and search.first_share > THINNEST:
        thinner = replace(search, first_share=search.first_share / 2)
        if optimizer.iteration_steps(thinner) >= steps:
            break
        search, steps = thinner, optimizer.iteration_steps(thinner)
    return search
