"""Which search runs in the time there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.messages import SearchSize, needed_iterations
from server.worker.scheduling.fitting import FEWEST_SAMPLES, Fitted, fitted

SIZE = SearchSize(samples=200, iterations=8, elites=20, horizon=5, needed=4)
PER_STEP_S = 1e-4  # an iteration of SIZE takes 0.1 s


def seconds(size: SearchSize) -> float:
    return size.steps_per_iteration * PER_STEP_S


def test_a_search_needs_half_of_its_models_iterations_or_of_its_own_where_they_are_fewer() -> None:
    assert [needed_iterations("cem", count, of_model=8) for count in (1, 2, 7, 8, 1000)] == [1, 1, 4, 4, 4]
    assert needed_iterations("real_time_iteration", 8, of_model=8) == 1


@pytest.mark.parametrize("left_s", [0.4, 0.5, float("inf")])
def test_a_search_that_gets_what_it_needs_runs_as_it_is(left_s: float) -> None:
    assert fitted(SIZE, 50, True, left_s, seconds) == Fitted(SIZE, 8)


def test_where_nothing_was_measured_a_search_is_tried_as_it_is() -> None:
    assert fitted(SIZE, 50, False, 0.01, lambda size: 0.0) == Fitted(SIZE, 8)


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize(
    ("left_s", "samples", "elites", "fitting"),
    [(0.39, 200, 20, 3), (0.06, 100, 10, 0), (0.03, 50, 5, 0), (0.001, FEWEST_SAMPLES, 2, 0)],
)
def test_where_a_search_does_not_fit_it_is_spread_over_plans_of_as_many_samples_as_fit(
    left_s: float, samples: int, elites: int, fitting: int, is_warm: bool
) -> None:
    wanted = replace(SIZE, optimizer="real_time_iteration", samples=samples, elites=elites, needed=1)
    assert fitted(SIZE, 50, is_warm, left_s, seconds) == Fitted(wanted, fitting)


def test_a_search_that_is_spread_over_plans_anyway_goes_on_as_it_is() -> None:
    stepping = replace(SIZE, optimizer="real_time_iteration", needed=1)
    assert fitted(stepping, 50, True, 0.0, seconds) == Fitted(stepping, 8)


def test_a_published_search_keeps_its_rules_and_draws_fewer_samples() -> None:
    published = replace(SIZE, optimizer="vjepa2_ac")
    chosen = fitted(published, 50, True, 0.2, seconds)
    assert (chosen.size.optimizer, chosen.size.samples, chosen.fitting) == ("vjepa2_ac", 100, 2)
    assert chosen.size.needed * seconds(chosen.size) <= 0.2


def test_more_numbers_than_steps_pay_for_are_searched_by_fewer_samples() -> None:
    wide = fitted(SIZE, 5000, True, 0.1, seconds)
    assert (wide.size.optimizer, wide.size.samples) == ("cem", 50)
