from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from planner.cost import ActionCost, GoalDistance, WeightedSum
from planner.noise import ColoredNoise, NoiseShape, Stream, WhiteNoise
from planner.optimizers.cem import CEM
from planner.types import PlanningError
from planner.world_model import Actions, Context, Latents, StepCosts
from tests.support.planner.problems import (
    Broken,
    FunctionWorld,
    LinearWorld,
    cost_of,
    integrator,
    least_squares,
    reach,
    space,
)

SPRING = LinearWorld(
    transition=torch.tensor([[1.0, 0.1], [-0.05, 0.95]]), effect=torch.tensor([[0.0, 0.05], [0.2, 0.0]]), block=2
)
SMALL = CEM(samples=64, iterations=5, elites=8, horizon=4, initial_std=0.5)


def test_a_search_equals_the_textbook_loop() -> None:
    problem = reach(seed=5, space=space(bound=0.5))
    mean, std = torch.zeros(4, 2), torch.full((4, 2), 0.25)
    shape = NoiseShape(samples=64, horizon=4, block=1, action=2)
    for iteration in range(3):
        noise = WhiteNoise()([Stream(5, iteration)], shape, torch.device("cpu"))[0]
        candidates = [(mean + std * each).clamp(-0.5, 0.5) for each in noise]
        candidates[0] = mean
        candidates.sort(key=lambda each: cost_of(each, integrator(), problem))
        elites = torch.stack(candidates[:8])
        mean, std = elites.mean(0), elites.std(0)
    plan = CEM(
        samples=64, iterations=3, elites=8, horizon=4, initial_std=0.5, kept=0, noise=WhiteNoise(), result="mean"
    ).plan(integrator(), problem)
    torch.testing.assert_close(plan.actions, mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(plan.distribution.std, std, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("goal", [(0.3, -0.2), (-0.6, 0.1), (0.0, 0.5)])
def test_a_linear_quadratic_problem_is_solved_to_its_closed_form_optimum(goal: tuple[float, float]) -> None:
    problem = reach(goal, space=space(bound=3.0))
    cost = WeightedSum(((1.0, GoalDistance()), (0.02, ActionCost())))
    best_actions, best_cost = least_squares(SPRING, problem, horizon=4, effort=0.02)
    assert best_actions.abs().max() < 3.0  # the bounds are no part of this problem
    plan = CEM(iterations=25, horizon=4, initial_std=0.5, cost=cost).plan(SPRING, problem)
    assert best_cost - 1e-6 <= plan.cost <= 1.005 * best_cost
    torch.testing.assert_close(plan.actions.double(), best_actions, atol=0.15, rtol=0)


def test_an_optimum_at_the_bounds_is_found_there() -> None:
    plan = CEM(iterations=20, horizon=4).plan(integrator(), reach((5.0, -5.0)))
    torch.testing.assert_close(plan.actions, torch.tensor([[1.0, -1.0]]).expand(4, -1), atol=0.02, rtol=0)


@dataclass(frozen=True)
class Wall:
    """Goal distance, and a price for being near a disc in the way."""

    def __call__(self, predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
        inside = (0.25 - (predicted - torch.tensor([0.5, 0.0])).norm(dim=-1)).clamp(min=0)
        return GoalDistance()(predicted, goal, actions) + 50 * inside


def test_a_path_goes_round_an_obstacle() -> None:
    problem = reach((1.0, 0.0))
    around = CEM(iterations=20, horizon=12, cost=Wall(), noise=ColoredNoise(2.0, fade=0.8)).plan(integrator(2), problem)
    path = integrator(2).rollout(problem.context, around.actions.reshape(1, 1, 24, 2))[0, 0]
    assert (path - torch.tensor([0.5, 0.0])).norm(dim=-1).min() > 0.24
    assert (path[-1] - problem.goal).norm() < 0.1


def test_of_two_ways_the_better_is_taken_from_every_seed() -> None:
    def two_wells(latent: Tensor) -> Tensor:
        deep, shallow = (latent[..., :1] - 0.3).abs(), (latent[..., :1] + 0.2).abs() + 0.1
        return torch.minimum(deep, shallow)

    world = FunctionWorld(integrator(dimensions=1), two_wells)
    for seed in range(10):
        problem = replace(reach((0.0,), seed=seed, space=space(1)), goal=torch.zeros(1))
        plan = CEM(cost=GoalDistance(over="last")).plan(world, problem)
        assert plan.cost < 1e-3


def test_a_perfect_warm_start_is_returned() -> None:
    problem = reach((0.3, -0.2), space=space(bound=3.0))
    perfect = torch.zeros(4, 2)
    perfect[0] = torch.tensor([3.0, -2.0])
    plan = SMALL.plan(integrator(), replace(problem, warm_start=perfect))
    torch.testing.assert_close(plan.actions, perfect)
    assert plan.cost < 1e-12


def test_the_best_cost_never_rises_and_is_the_plans_own() -> None:
    problem = reach()
    plan = SMALL.plan(integrator(), problem)
    assert list(plan.iteration_costs) == sorted(plan.iteration_costs, reverse=True)
    assert plan.cost == pytest.approx(plan.iteration_costs[-1], rel=1e-6)
    assert plan.cost == pytest.approx(cost_of(plan.actions, integrator(), problem), rel=1e-5)
    assert len(plan.step_costs) == 4
    assert math.fsum(plan.step_costs) == pytest.approx(plan.cost)
    assert (plan.iterations, len(plan.iteration_costs), len(plan.elite_spread)) == (5, 5, 5)
    assert plan.stop_reason == "iterations"
    assert torch.equal(plan.distribution.mean, plan.actions)


def test_it_stops_when_the_elites_agree() -> None:
    plan = replace(SMALL, iterations=100, converged_below=0.01).plan(integrator(), reach())
    assert plan.stop_reason == "converged"
    assert plan.iterations < 100
    assert plan.elite_spread[-1] <= 0.01 < plan.elite_spread[-2]


def test_kept_elites_compete_again_without_another_rollout() -> None:
    search = replace(SMALL, kept=0.5).start(reach(), block=1)
    (first,) = replace(SMALL, kept=0.5).improve(integrator(), [search])
    (second,) = replace(SMALL, kept=0.5).improve(integrator(), [first])
    best, costs = second.memory
    assert best.shape == (4, 4, 2)
    assert costs.max() <= first.memory[1].max()
    for actions, cost in zip(best, costs, strict=True):
        assert cost.item() == pytest.approx(cost_of(actions, integrator(), reach()), rel=1e-5)


@dataclass(frozen=True)
class Counting:
    """An integrator that notes how many samples it was asked about."""

    counts: list[int] = field(default_factory=list)
    block: int = 1

    def rollout(self, context: Context, actions: Actions) -> Latents:
        self.counts.append(actions.shape[1])
        return integrator().rollout(context, actions)


def test_samples_decay_but_not_below_two_per_elite() -> None:
    world = Counting()
    replace(SMALL, sample_decay=0.5, iterations=4).plan(world, reach())
    assert world.counts == [64, 32, 16, 16]


def test_fewer_samples_are_drawn_the_more_the_elites_agree() -> None:
    world = Counting()
    plan = replace(SMALL, full_above=0.1, iterations=8).plan(world, reach())
    wanted = [max(16, math.ceil(64 * min(1.0, spread / 0.1))) for spread in plan.elite_spread[:-1]]
    assert world.counts == [64, *wanted]
    assert min(world.counts) == 16


def test_std_never_falls_below_its_floor() -> None:
    plan = replace(SMALL, iterations=20, min_std=0.1).plan(integrator(), reach())
    assert plan.distribution.std.min() >= 0.1


def test_momentum_keeps_part_of_the_old_distribution() -> None:
    eager = replace(SMALL, iterations=1).plan(integrator(), reach())
    slow = replace(SMALL, iterations=1, momentum_std=(0.9, 0.0)).plan(integrator(), reach())
    old = torch.full((4,), 0.5)
    torch.testing.assert_close(slow.distribution.std[:, 0], 0.1 * eager.distribution.std[:, 0] + 0.9 * old)
    torch.testing.assert_close(slow.distribution.std[:, 1], eager.distribution.std[:, 1])


def test_a_nan_cost_is_never_chosen() -> None:
    plan = replace(SMALL, cost=Broken()).plan(integrator(), reach((-0.2, 0.3)))
    assert plan.actions[0, 0] <= 0
    assert plan.cost < 0.15
    assert torch.isfinite(plan.distribution.std).all()


def test_fewer_finite_candidates_than_elites_still_refine() -> None:
    @dataclass(frozen=True)
    class OnlyOne:
        def __call__(self, predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
            shares = GoalDistance()(predicted, goal, actions)
            return torch.cat([shares[:, :1], torch.full_like(shares[:, 1:], torch.inf)], dim=1)

    plan = replace(SMALL, cost=OnlyOne()).plan(integrator(), reach())
    assert torch.equal(plan.actions, torch.zeros(4, 2))
    assert torch.isfinite(plan.distribution.std).all()


@pytest.mark.parametrize("result", ["best", "mean"])
def test_all_nan_is_an_error_with_a_name(result: str) -> None:
    broken = replace(SMALL, cost=Broken(everywhere=True), result=result)  # type: ignore[arg-type]
    with pytest.raises(PlanningError, match="cost must be finite for at least one candidate"):
        broken.plan(integrator(), reach())


def test_the_mean_is_priced_before_it_is_returned() -> None:
    problem = reach()
    plan = replace(SMALL, result="mean", noise=WhiteNoise()).plan(integrator(), problem)
    assert plan.cost == pytest.approx(cost_of(plan.actions, integrator(), problem), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"samples": 0}, "samples"),
        ({"iterations": 0}, "iterations"),
        ({"horizon": 0}, "horizon"),
        ({"elites": 1}, "elites"),
        ({"elites": 65}, "elites"),
        ({"initial_std": -1.0}, "initial_std"),
        ({"initial_std": (1.0, math.nan)}, "initial_std"),
        ({"min_std": -0.1}, "min_std"),
        ({"momentum_mean": 1.0}, "momentum_mean"),
        ({"converged_below": math.inf}, "converged_below"),
        ({"kept": 1.5}, "kept"),
        ({"sample_decay": 0.0}, "sample_decay"),
        ({"full_above": -0.1}, "full_above"),
        ({"result": "worst"}, "result"),
    ],
)
def test_settings_that_cannot_search_are_refused_by_name(settings: dict[str, object], field: str) -> None:
    with pytest.raises(PlanningError) as refused:
        replace(SMALL, **settings)  # type: ignore[arg-type]
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal": torch.tensor([math.nan, 0.0])}, "goal must be finite"),
        ({"warm_start": torch.zeros(3, 2)}, r"warm_start must be \(4, 2\)"),
        ({"warm_start": torch.full((4, 2), math.nan)}, "warm_start must be finite"),
        ({"context": (torch.zeros(2, 2),)}, "context must have a leading batch axis of 1"),
        ({"committed": torch.zeros(5, 2)}, r"committed must be \[at most 4, 2\]"),
    ],
)
def test_a_problem_that_cannot_be_searched_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(PlanningError, match=message):
        SMALL.plan(integrator(), replace(reach(), **changes))  # type: ignore[arg-type]


def test_settings_for_another_action_width_are_refused() -> None:
    with pytest.raises(PlanningError, match="momentum_std must have 2 entries, got 3"):
        replace(SMALL, momentum_std=(0.1, 0.1, 0.1)).plan(integrator(), reach())


def test_a_cost_of_the_wrong_shape_is_refused() -> None:
    def total(predicted: Latents, goal: Tensor, actions: Actions) -> Tensor:
        return predicted.mean((-2, -1))

    with pytest.raises(PlanningError, match=r"cost must return \(1, 64, 4\)"):
        replace(SMALL, cost=total).plan(integrator(), reach())
