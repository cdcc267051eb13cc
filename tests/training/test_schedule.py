"""Learning-rate factors."""

from __future__ import annotations

from training.schedule import warmup_cosine


def test_the_schedule_rises_and_then_falls_to_zero() -> None:
    factors = [warmup_cosine(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.001
