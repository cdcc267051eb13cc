"""Which search to run in the time there is: the one asked for, or one that makes more of little time.

A sampling search that is cut to its first iteration draws once, widely, and mostly ends with the plan it began with: a
robot stops short of its goal. In the same time Gauss-Newton steps improve the plan under way (`real_time_iteration`;
decision 15 has the measurements).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.engine.messages import SearchSize

FEWEST_SAMPLES = 16  # no search is made smaller than this
STEPPED_AS_MUCH = 4  # times the samples asked for: the most that one iteration of Gauss-Newton may roll out instead

IterationTime = Callable[[SearchSize], float]
"""Predicted seconds of an iteration that draws all samples of a search; 0 while nothing is known."""


@dataclass(frozen=True)
class Fitted:
    """The search to run, and how many iterations of the one asked for would have fit (all, where it is that one)."""

    size: SearchSize
    fitting: int


def fitted(size: SearchSize, moved: int, is_warm: bool, left_s: float, iteration_s: IterationTime) -> Fitted:
    """The search `size`, or another one where fewer iterations than it needs fit into `left_s` seconds.

    `moved`: the numbers of a plan that a search is free to choose. `is_warm`: it begins with what is left of a plan.
    """
    seconds = iteration_s(size)
    if size.needed * seconds <= left_s or (is_warm and size.optimizer == "real_time_iteration"):
        return Fitted(size, size.iterations)
    fitting = max(0, math.floor(left_s / seconds))
    if size.optimizer == "vjepa2_ac" or moved > STEPPED_AS_MUCH * size.samples:
        return Fitted(_thinned(size, lambda less: less.needed * iteration_s(less) <= left_s), fitting)
    stepping = replace(size, optimizer="real_time_iteration", needed=1)
    return Fitted(_thinned(stepping, lambda less: iteration_s(less) <= left_s), fitting)


def _thinned(size: SearchSize, fits: Callable[[SearchSize], bool]) -> SearchSize:
    """The search with half of its samples, as often as it takes to fit, but never fewer than `FEWEST_SAMPLES`."""
    while not fits(size) and size.samples > FEWEST_SAMPLES:
        samples = max(size.samples // 2, FEWEST_SAMPLES)
        size = replace(size, samples=samples, elites=max(2, size.elites * samples // size.samples))
    return size
