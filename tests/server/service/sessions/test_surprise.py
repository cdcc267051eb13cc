"""Running statistics against those of the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest

from server.service.sessions.surprise import RunningStatistics


def test_mean_and_deviation_are_those_of_all_numbers_however_they_came() -> None:
    values = np.random.default_rng(0).normal(1e3, 1e-2, 300)
    known = RunningStatistics()
    for part in np.split(values, [1, 2, 40, 299]):
        known = known.including(part.tolist())
    assert known.count == 300
    assert known.mean == pytest.approx(values.mean(), rel=1e-12)
    assert known.deviation == pytest.approx(values.std(ddof=1), rel=1e-6)
    assert known.scores([values.mean() + 2 * values.std(ddof=1)]) == pytest.approx([2.0], rel=1e-5)


@pytest.mark.parametrize("known", [RunningStatistics(), RunningStatistics().including([0.0] * 9)])
def test_scores_are_finite_where_nothing_ever_varied(known: RunningStatistics) -> None:
    assert known.deviation == 0.0
    same, more = known.scores([0.0, 1.0])
    assert same == 0.0
    assert math.isfinite(more)
    assert more > 100
