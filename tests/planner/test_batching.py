"""Robots share rollouts; none may notice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from planner.anytime import Optimizer, plan_in_time
from planner.search import Search
from planner.types import Plan, PlanningError, Problem
from tests.support.planner.every_optimizer import OPTIMIZERS, SMALL
from tests.support.planner.problems import integrator, reach, space

WORLD = integrator(block=3)


def mixed_problems() -> list[Problem]:
    """Ten robots that differ in goal, seed, limits, warm start, and in what they already execute."""
    problems = []
    spaces = [
        space(),
        space(slew=0.3),
        space(max_norm=0.9, norm_of=("y",)),
        space(max_norm=1.1, norm_order=1),
        space(dwell=(3, 1)),
    ]
    for seed in range(10):
        made = spaces[seed % 5]
        problem = reach((0.2 * seed - 0.7, 0.4 - 0.1 * seed), seed=seed, space=made)
        if seed % 3 == 1:
            problem = replace(problem, warm_start=torch.full((12, 2), 0.1))
        if seed % 3 == 2:
            problem = replace(problem, committed=torch.full((2, 2), 0.05 * seed))
        if made.slew is not None or made.dwell is not None:
            problem = replace(problem, previous_action=torch.tensor([0.1, 0.2]), held=(1, 4))
        problems.append(problem)
    return problems


def assert_same(plan: Plan, alone: Plan) -> None:
    torch.testing.assert_close(plan.actions, alone.actions, atol=1e-5, rtol=0)
    assert plan.cost == pytest.approx(alone.cost, rel=1e-4, abs=1e-7)
    assert plan.iterations == alone.iterations


@pytest.mark.parametrize(
    "optimizer",
    [*OPTIMIZERS.values(), replace(SMALL, result="mean")],
    ids=[*OPTIMIZERS, "mean"],
)
def test_a_plan_is_the_same_alone_and_in_company_that_joins_and_leaves(optimizer: Optimizer) -> None:
    problems = mixed_problems()
    waiting = [optimizer.start(problem, 3) for problem in problems]
    running: list[Search] = []
    done: dict[int, Plan] = {}
    while waiting or running:
        running += waiting[:2]  # two join before every iteration, so all stand at different iterations
        waiting = waiting[2:]
        running = optimizer.improve(WORLD, running)
        for search in [search for search in running if optimizer.stopped(search)]:
            done[search.problem.seed] = optimizer.finish(search, "iterations")
        running = [search for search in running if not optimizer.stopped(search)]
    assert len(done) == 10
    for problem in problems:
        assert_same(done[problem.seed], plan_in_time(optimizer, WORLD, problem))


def test_one_robots_nan_is_its_own() -> None:
    def cost(predicted: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        shares = (predicted - goal[:, None, None]).square().mean(-1)
        return torch.where(goal[:, None, None, 0] > 0.5, torch.nan, shares)

    cem = replace(SMALL, iterations=2, cost=cost)
    searches = [cem.start(reach(goal), 3) for goal in ((0.1, 0.1), (0.9, 0.1))]
    for _ in range(2):
        searches = cem.improve(WORLD, searches)
    assert_same(cem.finish(searches[0], "iterations"), cem.plan(WORLD, reach((0.1, 0.1))))
    with pytest.raises(PlanningError, match="cost must be finite"):
        cem.finish(searches[1], "iterations")


def test_one_rollout_serves_all_searches() -> None:
    batches = []

    class Counting:
        block = 3

        def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
            batches.append(actions.shape[0])
            return WORLD.rollout(context, actions)

    SMALL.improve(Counting(), [SMALL.start(problem, 3) for problem in mixed_problems()])
    assert batches == [10]


def test_a_search_belongs_to_the_block_it_began_with() -> None:
    search = SMALL.start(reach(), block=1)
    with pytest.raises(PlanningError, match=r"world_model\.block must be 1"):
        SMALL.improve(WORLD, [search])
