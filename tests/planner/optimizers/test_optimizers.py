"""What every optimizer must do, on systems with known optima."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from planner.anytime import Optimizer, plan_in_time
from planner.cost import ActionCost, GoalDistance, WeightedSum
from planner.optimizers.gradient import Gradient
from planner.optimizers.mppi import MPPI
from planner.types import PlanningError
from planner.world_model import Actions, Context, CostFunction, Latents, StepCosts
from tests.support.planner.every_optimizer import AnyOptimizer, changed, each_optimizer
from tests.support.planner.problems import Broken, cost_of, integrator, reach, space

EFFORT = WeightedSum(((1.0, GoalDistance()), (0.02, ActionCost())))


@each_optimizer
def test_warm_start_never_raises_cost(optimizer: Optimizer) -> None:
    for seed in range(10):
        warm = 2 * torch.rand(4, 2, generator=torch.Generator().manual_seed(seed)) - 1
        problem = reach(seed=seed, warm_start=warm)
        plan = plan_in_time(optimizer, integrator(), problem)
        assert plan.cost <= cost_of(warm, integrator(), problem) + 1e-7


@each_optimizer
def test_the_best_cost_never_rises_and_is_the_plans_own(optimizer: Optimizer) -> None:
    plan = plan_in_time(optimizer, integrator(), reach())
    assert list(plan.iteration_costs) == sorted(plan.iteration_costs, reverse=True)
    assert plan.cost == pytest.approx(plan.iteration_costs[-1], rel=1e-6)
    assert plan.cost == pytest.approx(cost_of(plan.actions, integrator(), reach()), rel=1e-5)
    assert plan.iterations == optimizer.iterations == len(plan.elite_spread)


@each_optimizer
def test_the_same_seed_gives_the_same_plan_and_another_seed_another(optimizer: Optimizer) -> None:
    first, again, other = (plan_in_time(optimizer, integrator(), reach(seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first.actions, again.actions)
    assert first.iteration_costs == again.iteration_costs
    assert not torch.equal(first.actions, other.actions)


@each_optimizer
def test_global_randomness_is_neither_used_nor_touched(optimizer: Optimizer) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plan_in_time(optimizer, integrator(), reach())
    assert torch.equal(torch.get_rng_state(), before)


@each_optimizer
def test_an_iteration_is_a_pure_function(optimizer: Optimizer) -> None:
    search = optimizer.start(reach(), 1)
    (once,) = optimizer.improve(integrator(), [search])
    (twice,) = optimizer.improve(integrator(), [search])
    assert torch.equal(once.best_actions, twice.best_actions)
    assert torch.equal(once.distribution.mean, twice.distribution.mean)
    assert search.iterations == 0


@dataclass(frozen=True)
class Watched:
    """An integrator that remembers what it was asked."""

    asked: list[Tensor] = field(default_factory=list)
    counted: list[int] = field(default_factory=list)  # 3 where a gradient was asked for as well
    block: int = 1

    def rollout(self, context: Context, actions: Actions) -> Latents:
        self.asked.append(actions.detach().clone())
        self.counted.append(3 if actions.requires_grad else 1)
        return integrator().rollout(context, actions)


@each_optimizer
def test_an_iteration_evaluates_as_many_steps_as_it_says(optimizer: Optimizer) -> None:
    search = optimizer.start(reach(), 1)
    while optimizer.stopped(search) is None:
        world, told = Watched(), optimizer.iteration_steps(search)
        (search,) = optimizer.improve(world, [search])
        assert told == sum(
            asked.shape[:3].numel() * times for asked, times in zip(world.asked, world.counted, strict=True)
        )


@each_optimizer
def test_every_candidate_obeys_the_action_space(optimizer: AnyOptimizer) -> None:
    previous = torch.tensor([0.4, -0.4])
    made = space(bound=0.5, slew=0.2, max_norm=0.6, frozen=(None, -0.25))
    world = Watched()
    problem = reach((9.0, 9.0), space=made, previous_action=previous)
    plan = plan_in_time(changed(optimizer, initial_std=3.0), world, problem)
    for actions in (*world.asked, plan.actions):
        assert (actions[..., 1] == -0.25).all()
        assert (actions.abs() <= 0.5).all()
        assert (actions.norm(dim=-1) <= 0.6).all()
        whole = torch.cat([previous.expand_as(actions[..., :1, :]), actions], dim=-2)
        assert (whole.diff(dim=-2).abs() <= 0.2).all()


@each_optimizer
def test_committed_actions_are_kept_exactly_and_the_rest_makes_up_for_them(optimizer: AnyOptimizer) -> None:
    committed = torch.tensor([[-0.7, 0.3], [-0.1, 0.9]])
    world = Watched()
    plan = plan_in_time(changed(optimizer, iterations=20), world, reach((0.1, 0.0), committed=committed))
    for actions in (*world.asked, plan.actions):
        assert torch.equal(actions[..., :2, :], committed.expand_as(actions[..., :2, :]))
    assert (plan.distribution.std[:2] == 0).all()
    assert plan.actions[2, 0] > 0.9
    assert plan.actions[2, 1] < -0.9


@each_optimizer
def test_a_plan_that_is_wholly_committed_converges_at_once(optimizer: Optimizer) -> None:
    committed = torch.full((4, 2), 0.25)
    plan = plan_in_time(optimizer, integrator(), reach(committed=committed))
    assert torch.equal(plan.actions, committed)
    assert (plan.stop_reason, plan.iterations) == ("converged", 1)


@each_optimizer
def test_a_nan_cost_is_never_chosen(optimizer: AnyOptimizer) -> None:
    plan = plan_in_time(changed(optimizer, cost=Broken()), integrator(), reach((-0.2, 0.3)))
    assert plan.actions[0, 0] <= 0
    assert plan.cost < 0.15
    assert torch.isfinite(plan.distribution.std).all()


@each_optimizer
def test_all_nan_is_an_error_with_a_name(optimizer: AnyOptimizer) -> None:
    with pytest.raises(PlanningError, match="cost must be finite for at least one candidate"):
        plan_in_time(changed(optimizer, cost=Broken(everywhere=True)), integrator(), reach())


@pytest.mark.parametrize("optimizer", [MPPI(), Gradient()], ids=["mppi", "gradient"])
@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 0},
        {"horizon": 0},
        {"initial_std": math.nan},
        {"initial_std": (0.5, -1.0)},
        {"converged_below": -1.0},
    ],
)
def test_settings_that_cannot_search_are_refused(optimizer: MPPI | Gradient, settings: dict[str, object]) -> None:
    with pytest.raises(PlanningError, match=next(iter(settings))):
        replace(optimizer, **settings)  # type: ignore[arg-type]


def test_settings_of_one_optimizer_alone_are_refused_as_well() -> None:
    for name, value in (("temperature", 0.0), ("narrowing", 1.5), ("samples", 0)):
        with pytest.raises(PlanningError, match=name):
            replace(MPPI(), **{name: value})  # type: ignore[arg-type]
    for name, value in (("step", 0.0), ("momentum", 1.0), ("memory", -0.1), ("starts", 0)):
        with pytest.raises(PlanningError, match=name):
            replace(Gradient(), **{name: value})  # type: ignore[arg-type]


def test_mppi_moves_to_the_weighted_average_of_its_samples() -> None:
    world = Watched()
    optimizer = MPPI(samples=32, iterations=1, horizon=4, temperature=0.5)
    (after,) = optimizer.improve(world, [optimizer.start(reach(), 1)])
    candidates = world.asked[0][0]
    costs = torch.tensor([cost_of(each, integrator(), reach()) for each in candidates])
    weights = torch.softmax(-costs / (0.5 * costs.std(correction=0)), dim=0)
    torch.testing.assert_close(after.distribution.mean, (weights[:, None, None] * candidates).sum(0))


def test_mppi_weighs_candidates_of_equal_cost_alike() -> None:
    def flat(predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
        return torch.ones(predicted.shape[:3])

    world = Watched()
    optimizer = MPPI(samples=32, horizon=4, cost=flat)
    (after,) = optimizer.improve(world, [optimizer.start(reach(), 1)])
    torch.testing.assert_close(after.distribution.mean, world.asked[0][0].mean(0))


@pytest.mark.parametrize("without", [torch.no_grad(), torch.inference_mode()])
@pytest.mark.parametrize("cost", [GoalDistance(), EFFORT])
def test_a_gradient_search_says_so_where_the_model_has_no_gradient(without: Any, cost: CostFunction) -> None:
    @dataclass(frozen=True)
    class Opaque:
        block: int = 1

        @without
        def rollout(self, context: Context, actions: Actions) -> Latents:
            return integrator().rollout(context, actions)

    with pytest.raises(PlanningError, match=r"world_model\.rollout must be differentiable"):
        Gradient(cost=cost).plan(Opaque(), reach())


@pytest.mark.parametrize("cost", [GoalDistance(), GoalDistance("l1"), GoalDistance("l2", over="last"), EFFORT])
def test_a_gradient_search_survives_standing_on_the_goal(cost: CostFunction) -> None:
    plan = Gradient(iterations=3, horizon=4, cost=cost).plan(integrator(), reach((0.0, 0.0)))
    assert plan.cost == 0
    assert torch.equal(plan.actions, torch.zeros(4, 2))
