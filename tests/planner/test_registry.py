"""Optimizers asked for by name, and the part of an action space they search."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from presage.optimizers import OPTIMIZERS

from planner import registry
from planner.cost import GoalDistance
from planner.optimizers.cem import CEM
from planner.types import ActionSpace, PlanningError, Problem
from tests.support.planner.problems import integrator, space

SPACE = ActionSpace(("x", "y", "grip"), ("m", "m", "1"), (-1.0, -1.0, 0.0), (1.0, 1.0, 2.0), 10.0)


SEARCHES = [name for name in OPTIMIZERS if name != "policy"]  # a policy searches nothing (test_proposals.py)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_name_plans_toward_the_goal(name: str) -> None:
    optimizer = registry.optimizer(name, samples=48, iterations=8, elites=6, horizon=2)
    assert (optimizer.iterations, optimizer.horizon) == (8, 2)
    problem = Problem((torch.zeros(1, 2),), torch.tensor([0.1, -0.1]), space(), seed=3)
    plan = optimizer.plan(integrator(), problem)
    assert plan.iterations <= 8
    still = GoalDistance()(torch.zeros(1, 1, 2, 2), problem.goal[None], torch.zeros(1, 1, 2, 2)).sum()
    assert plan.cost < still


def test_the_published_search_keeps_its_rules() -> None:
    chosen = registry.optimizer("vjepa2_ac", samples=64, iterations=3, elites=10, horizon=2)
    paper = CEM.vjepa2_ac_paper()
    assert isinstance(chosen, CEM)
    assert (chosen.noise, chosen.cost, chosen.gripper) == (paper.noise, paper.cost, paper.gripper)
    assert chosen.samples == 64
    assert registry.cost("vjepa2_ac") == GoalDistance("l1", over="last")


@pytest.mark.parametrize("name", ["lewm", "dino_wm", "jepa_wms"])
def test_the_published_searches_of_standardized_actions_keep_theirs(name: str) -> None:
    chosen = registry.optimizer(name, samples=64, iterations=3, elites=10, horizon=2)
    paper = registry.PUBLISHED[name]
    assert chosen == replace(paper, samples=64, iterations=3, elites=10, horizon=2)
    assert chosen.cost == GoalDistance("l2", over="last")
    assert (paper.unbounded, paper.initial_std, paper.result, paper.kept_count) == (True, 1.0, "mean", 0)
    assert registry.tail(name) == "mean"


def test_the_published_searches_have_their_published_sizes() -> None:
    sizes = {name: (s.samples, s.iterations, s.elites, s.horizon) for name, s in registry.PUBLISHED.items()}
    assert sizes == {
        "vjepa2_ac": (800, 10, 10, 1),
        "lewm": (300, 30, 30, 5),
        "dino_wm": (300, 30, 30, 5),
        "jepa_wms": (300, 30, 10, 6),
        "jepa_wms_droid": (300, 15, 10, 3),
    }


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in registry.PUBLISHED])
def test_a_discount_weighs_later_steps(name: str) -> None:
    assert registry.optimizer(name, 48, 8, 6, 2, discount=2.5).cost == GoalDistance(over="discounted", discount=2.5)
    assert registry.cost(name, 2.5) == GoalDistance(over="discounted", discount=2.5)
    assert registry.optimizer(name, 48, 8, 6, 2).cost == GoalDistance()


@pytest.mark.parametrize(
    ("name", "discount"), [("cem", 0.0), ("cem", 11.0), ("mppi", math.nan), ("vjepa2_ac", 0.9), ("lewm", 2.0)]
)
def test_a_discount_that_cannot_be_is_refused(name: str, discount: float) -> None:
    with pytest.raises(PlanningError, match=r"planner.discount must be"):
        registry.optimizer(name, 48, 8, 6, 2, discount)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(PlanningError, match=r"planner.optimizer must be one of cem, .*got annealing"):
        registry.optimizer("annealing", 10, 1, 2, 1)


def test_dimensions_not_searched_rest_at_zero_and_never_in_the_middle_of_their_range() -> None:
    assert registry.searched(SPACE, ()) == SPACE
    assert registry.searched(SPACE, ("y",)).frozen == (0.0, None, 0.0)
    forward = replace(SPACE, low=(-0.1, 0.2, -0.9), high=(0.9, 0.6, -0.3))
    assert forward.rest == (0.0, 0.2, -0.3)  # zero, or the bound nearest to it
    assert registry.searched(forward, ("x",)).frozen == (None, 0.2, -0.3)
    assert registry.searched(replace(SPACE, stated_rest=(0.0, 0.5, 2.0)), ("x",)).frozen == (None, 0.5, 2.0)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_dimension_whose_bounds_are_one_value_is_held_there(name: str) -> None:
    optimizer = registry.optimizer(name, samples=48, iterations=8, elites=6, horizon=2)
    held = ActionSpace(("x", "y"), ("m", "m"), (-1.0, 0.25), (1.0, 0.25), 10.0)
    plan = optimizer.plan(integrator(), Problem((torch.zeros(1, 2),), torch.tensor([0.1, 0.05]), held, seed=3))
    assert plan.actions[:, 1].tolist() == [0.25, 0.25]
    assert plan.actions[:, 0].sum() > 0.5


def test_a_stated_rest_outside_the_bounds_is_refused() -> None:
    with pytest.raises(PlanningError, match=r"stated_rest.grip must lie in \[0.0, 2.0\], got 3.0"):
        replace(SPACE, stated_rest=(0.0, 0.0, 3.0))


def test_what_the_space_holds_stays_held() -> None:
    holding = ActionSpace(SPACE.names, SPACE.units, SPACE.low, SPACE.high, 10.0, frozen=(None, None, 0.5))
    assert registry.searched(holding, ("x", "grip")).frozen == (None, 0.0, 0.5)


def test_an_unknown_dimension_is_refused() -> None:
    with pytest.raises(PlanningError, match=r"planner.dimensions must be among x, y, grip, got z"):
        registry.searched(SPACE, ("x", "z"))


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("metric", ["l1", "l2", "rms"])
def test_every_search_takes_every_distance_over_its_own_steps(name: str, metric: Any) -> None:
    found = registry.adjusted(registry.optimizer(name, 48, 8, 6, 2), metric)
    assert found.cost == replace(registry.cost(name), metric=metric)


@pytest.mark.parametrize("name", SEARCHES)
def test_nothing_asked_for_changes_nothing(name: str) -> None:
    found = registry.optimizer(name, 48, 8, 6, 2)
    assert registry.adjusted(found) == found


def test_asked_for_all_iterations_of_a_search_roll_out_as_many() -> None:
    problem = Problem((torch.zeros(1, 2),), torch.ones(2), space(2), seed=0)
    world = integrator()
    for name, decay, counts in (("icem", None, [100, 80, 65]), ("icem", 1.0, [100, 100, 100])):
        search = registry.adjusted(registry.optimizer(name, 100, 3, 6, 1), sample_decay=decay)
        state, rolled = search.start(problem, 1), []
        for _ in range(3):
            rolled.append(search.iteration_steps(state))
            (state,) = search.improve(world, [state])
        assert rolled == counts
    narrow = registry.adjusted(registry.optimizer("mppi", 100, 3, 6, 1), narrowing=1.0)
    assert narrow == replace(registry.optimizer("mppi", 100, 3, 6, 1), narrowing=1.0)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("cem", {"metric": "l3"}, "planner.metric"),
        ("cem", {"narrowing": 0.5}, "planner.narrowing"),
        ("hybrid", {"narrowing": 0.5}, "planner.narrowing"),
        ("mppi", {"sample_decay": 0.5}, "planner.sample_decay"),
        ("gradient", {"sample_decay": 0.5}, "planner.sample_decay"),
        ("mppi", {"narrowing": 0.0}, "narrowing"),
        ("icem", {"sample_decay": 1.5}, "sample_decay"),
    ],
)
def test_a_setting_that_a_search_does_not_have_is_refused(name: str, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanningError) as raised:
        registry.adjusted(registry.optimizer(name, 48, 8, 6, 2), **settings)
    assert raised.value.field == field


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_with_no_plan_to_begin_with_begins_at_rest(name: str) -> None:
    optimizer = registry.optimizer(name, samples=16, iterations=4, elites=4, horizon=2)
    base = ActionSpace(("x", "grip"), ("m/s", ""), (-0.1, 0.0), (0.9, 1.0), 10.0, stated_rest=(0.0, 0.75))
    search = optimizer.start(Problem((torch.zeros(1, 2),), torch.tensor([0.1, 0.05]), base, seed=3), block=1)
    assert torch.equal(search.distribution.mean, torch.tensor([[0.0, 0.75]]).expand(2, -1))


def test_real_time_iteration_improves_a_plan_at_once_and_samples_where_there_is_none_and_now_and_then() -> None:
    optimizer = registry.optimizer("real_time_iteration", samples=60, iterations=4, elites=8, horizon=2)
    problem = Problem((torch.zeros(1, 2),), torch.tensor([0.1, 0.05]), space(), seed=1)
    warm = replace(problem, warm_start=torch.zeros(2, 2))
    sampled, stepped = (optimizer.start(each, block=1) for each in (problem, warm))
    assert optimizer.iteration_steps(sampled) == 60 * 2
    assert optimizer.iteration_steps(stepped) == 4 * (1 + 4 + 5) * 2  # starts x (it, its moves, its steps) x horizon
    explored = [optimizer.start(replace(warm, seed=seed), block=1) for seed in range(6)]
    assert [optimizer.iteration_steps(each) == 60 * 2 for each in explored] == [True, False, False] * 2
    assert optimizer.plan(integrator(), warm).cost < 1e-2 * float(warm.goal.square().mean())
