"""Learning-rate schedules, as factors of the peak rate."""

from __future__ import annotations

import math


def warmup_stable_decay(step: int, steps: int, warmup: float, decay: float) -> float:
    """Rises linearly over the first `warmup` of the steps, stays, and falls linearly to 0 over the last `decay`.

    A run can be lengthened before its decay begins, for nothing before depends on `steps` but the warm-up (V-JEPA 2).
    """
    rising, falling = max(1, round(warmup * steps)), max(1, round(decay * steps))
    if step < rising:
        return (step + 1) / rising
    return min(1.0, (steps - step) / (falling + 1))


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
