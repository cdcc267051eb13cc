"""Intervals, percentiles and seeds against known values."""

from __future__ import annotations

import pytest

from training.evaluation.statistics import episode_seed, percentile, plan_seed, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_ends(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_in_success_and_failure() -> None:
    low, high = wilson_interval(97, 100)
    assert wilson_interval(3, 100) == pytest.approx((1 - high, 1 - low))


def test_wilson_interval_of_certainty_keeps_its_end_and_holds_the_rate() -> None:
    assert wilson_interval(100, 100)[1] == 1.0
    assert 0.96 < wilson_interval(100, 100)[0] < 0.97
    for successes in range(12):
        low, high = wilson_interval(successes, 11)
        assert 0 <= low <= successes / 11 <= high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_counts_that_cannot_be(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=r"(trials|successes) must be"):
        wilson_interval(successes, trials)


def test_percentile_interpolates_and_has_none_without_values() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([5.0], 95) == 5.0
    assert percentile([], 50) is None
    with pytest.raises(ValueError, match="percent must be 0 to 100, got 101"):
        percentile([1.0], 101)


def test_every_pair_and_every_evaluation_has_seeds_of_its_own() -> None:
    seeds = {episode_seed(seed, pair) for seed in range(20) for pair in range(100)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert episode_seed(7, 3) == episode_seed(7, 3)


def test_plan_seeds_stay_within_63_bits() -> None:
    assert plan_seed((1 << 63) - 1, 2) == 1
    assert [plan_seed(5, plan) for plan in range(3)] == [5, 6, 7]
