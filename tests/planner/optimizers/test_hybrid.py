from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planner.cost import GoalDistance
from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import GaussNewton
from planner.optimizers.gradient import Gradient
from planner.optimizers.hybrid import Hybrid
from planner.types import PlanningError
from planner.vjepa2_ac import GripperRules
from tests.support.planner.problems import integrator, reach

SEARCH = CEM(samples=64, iterations=3, elites=8, horizon=4)
POLISH = Gradient(starts=4, iterations=6, horizon=4)


def test_its_first_half_is_the_cross_entropy_method() -> None:
    plan = Hybrid(SEARCH, POLISH).plan(integrator(), reach())
    sampled = SEARCH.plan(integrator(), reach())
    assert plan.iteration_costs[:3] == sampled.iteration_costs
    assert plan.elite_spread[:3] == sampled.elite_spread
    assert len(plan.iteration_costs) == 9


def test_its_second_half_descends_from_the_best_elites() -> None:
    hybrid, search = Hybrid(SEARCH, POLISH), SEARCH.start(reach(), 1)
    for _ in range(3):
        (search,) = hybrid.improve(integrator(), [search])
    starts = search.memory[0]
    assert starts.shape == (4, 4, 2)
    assert torch.equal(starts[0], search.best_actions)
    alone = POLISH.descend_from(POLISH.start(reach(), 1), starts)
    for _ in range(6):
        (search,) = hybrid.improve(integrator(), [search])
        (alone,) = POLISH.improve(integrator(), [alone])
    assert torch.equal(search.memory[0], alone.memory[0])
    assert hybrid.stopped(search) == "iterations"


@pytest.mark.parametrize("polish", [POLISH, GaussNewton(starts=2, iterations=6, horizon=4)])
def test_a_warm_start_is_polished_at_once_where_sampling_it_is_not_wanted(polish: Gradient | GaussNewton) -> None:
    always = Hybrid(SEARCH, polish)
    warmly = replace(always, search_when_warm=False)
    assert warmly.plan(integrator(), reach()).iteration_costs == always.plan(integrator(), reach()).iteration_costs
    warm = reach(warm_start=0.5 * torch.ones(4, 2))
    plan = warmly.plan(integrator(), warm)
    alone = polish.plan(integrator(), warm)
    assert (plan.iterations, plan.stop_reason) == (6, "iterations")
    assert plan.iteration_costs == alone.iteration_costs
    assert torch.equal(plan.actions, alone.actions)


def test_searches_with_and_without_a_warm_start_go_together() -> None:
    hybrid = Hybrid(SEARCH, POLISH, search_when_warm=False)
    problems = [reach(), reach(seed=1, warm_start=0.5 * torch.ones(4, 2))]
    searches = [hybrid.start(problem, 1) for problem in problems]
    for _ in range(POLISH.iterations):
        searches = hybrid.improve(integrator(), searches)
    assert [hybrid.stopped(search) for search in searches] == [None, "iterations"]
    alone = hybrid.plan(integrator(), problems[1])
    torch.testing.assert_close(hybrid.finish(searches[1], "iterations").actions, alone.actions, rtol=0, atol=1e-5)
    assert searches[0].iteration_costs == pytest.approx(hybrid.plan(integrator(), problems[0]).iteration_costs[:6])


def test_polish_takes_fewer_steps_to_the_floor_than_more_sampling() -> None:
    hybrid = Hybrid(replace(SEARCH, iterations=2), replace(POLISH, iterations=8))
    sampled = replace(SEARCH, iterations=4)
    assert hybrid.plan(integrator(), reach()).cost < sampled.plan(integrator(), reach()).cost  # 896 and 1024 steps


@pytest.mark.parametrize(
    ("search", "polish", "field"),
    [
        (SEARCH, replace(POLISH, horizon=5), "polish.horizon"),
        (SEARCH, replace(POLISH, cost=GoalDistance("l1")), "polish.cost"),
        (SEARCH, replace(POLISH, starts=5), "polish.starts"),
        (replace(SEARCH, kept=0.0), POLISH, "polish.starts"),
        (replace(SEARCH, result="mean"), POLISH, "search.result"),
        (replace(SEARCH, converged_below=0.1), POLISH, "search.converged_below"),
        (replace(SEARCH, gripper=GripperRules()), POLISH, "search.gripper"),
    ],
)
def test_halves_that_do_not_fit_are_refused_by_name(search: CEM, polish: Gradient, field: str) -> None:
    with pytest.raises(PlanningError) as refused:
        Hybrid(search, polish)
    assert refused.value.field == field
