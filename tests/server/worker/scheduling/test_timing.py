"""Predictions of an engine's work: by kind, between counts, never for ever."""

from __future__ import annotations

import pytest

from server.worker.scheduling.timing import KINDS, Durations


def test_what_was_never_seen_is_not_predicted() -> None:
    assert Durations().predict("encode", 1) is None


def test_a_steady_duration_is_predicted_with_little_to_spare() -> None:
    durations = Durations()
    for _ in range(50):
        durations.observe("encode", 1, 0.1)
    assert durations.predict("encode", 1) == pytest.approx(0.1, rel=0.01)


def test_more_calls_take_at_most_as_many_times_longer() -> None:
    durations = Durations()
    for _ in range(50):
        durations.observe("iteration", 2, 0.2)
        durations.observe("iteration", 8, 0.3)
    assert durations.predict("iteration", 1) == pytest.approx(0.2, rel=0.01)
    assert durations.predict("iteration", 4) == pytest.approx(0.3, rel=0.01)
    assert durations.predict("iteration", 16) == pytest.approx(0.6, rel=0.01)


def test_kinds_unused_for_longest_are_forgotten() -> None:
    durations = Durations()
    for kind in range(KINDS + 1):
        durations.observe(kind, 1, 0.1)
    assert durations.predict(0, 1) is None
    assert durations.predict(KINDS, 1) is not None
    durations.forget()
    assert durations.predict(KINDS, 1) is None
