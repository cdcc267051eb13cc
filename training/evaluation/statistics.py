"""Statistics of evaluations: Wilson intervals, percentiles, and a seed for every episode.

Plain numbers in and out, NumPy at most: a robot without torch can use it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution's 97.5th percentile


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Lower and upper end of a success rate's confidence interval (E. B. Wilson 1927), both within 0 and 1.

    Unlike rate +- z x error it says something at 0 % and 100 %. ValueError unless trials >= 1 and successes fit them.
    """
    if trials < 1:
        raise ValueError(f"trials must be >= 1, got {trials}")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be 0 to {trials}, got {successes}")
    rate, weight = successes / trials, z * z / trials
    center = (rate + weight / 2) / (1 + weight)
    half = z * math.sqrt(rate * (1 - rate) / trials + weight / (4 * trials)) / (1 + weight)
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == trials else min(1.0, center + half)
    return low, high


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value that `percent` of the sorted values lie below, interpolated between neighbors; None without values."""
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be 0 to 100, got {percent}")
    return float(np.percentile(values, percent)) if len(values) else None


def episode_seed(seed: int, pair: int) -> int:
    """The 63-bit seed an episode's plans count up from; it depends on the evaluation's seed and the pair alone."""
    return int(np.random.SeedSequence([seed, pair]).generate_state(1, np.uint64)[0] >> 1)


def plan_seed(episode: int, plan: int) -> int:
    """The seed of an episode's plan number `plan` (0, 1, ...); planners treat neighboring seeds as unrelated."""
    return (episode + plan) % (1 << 63)
