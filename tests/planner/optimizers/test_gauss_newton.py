"""What is particular to Gauss-Newton steps; what all optimizers must do is tested beside the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from planner.cost import ActionCost, GoalDistance, WeightedSum, residuals_of
from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import MORE_CAUTIOUS, GaussNewton
from planner.optimizers.gradient import Gradient
from planner.optimizers.hybrid import Hybrid
from planner.types import PlanningError
from planner.world_model import Actions, Alike, Context, CostFunction, Latents, StepCosts
from tests.support.planner.problems import LinearWorld, integrator, least_squares, reach, space

SPRING = LinearWorld(torch.tensor([[1.0, 0.1], [-0.05, 0.95]]), torch.tensor([[0.0, 0.05], [0.2, 0.0]]), block=2)
EFFORT = WeightedSum(((1.0, GoalDistance()), (0.02, ActionCost())))
LINEAR = GaussNewton(starts=1, opening=0, horizon=4, cost=EFFORT, damping=(1e-6, 1e-3, 0.1))


def test_a_linear_world_under_squares_is_solved_in_one_step() -> None:
    problem = reach(space=space(bound=3.0))
    best, optimum = least_squares(SPRING, problem, horizon=4, effort=0.02)
    plan = replace(LINEAR, iterations=1).plan(SPRING, problem)
    assert plan.cost == pytest.approx(optimum, rel=1e-5)
    torch.testing.assert_close(plan.actions, best.float(), atol=1e-3, rtol=0)


def test_with_bounds_in_the_way_it_finds_what_a_long_descent_finds() -> None:
    problem = reach((0.6, -0.5), space=space(bound=0.8))
    descended = Gradient(starts=4, iterations=400, horizon=4, step=0.1, cost=EFFORT).plan(SPRING, problem)
    plan = replace(LINEAR, iterations=6).plan(SPRING, problem)
    assert plan.actions.abs().max() > 0.8 - 1e-6  # bounds are in the way
    assert plan.cost == pytest.approx(descended.cost, rel=1e-4)


@pytest.mark.parametrize("cost", [GoalDistance("l1"), GoalDistance("cosine", over="last"), EFFORT])
def test_costs_of_other_shapes_are_brought_as_low_as_by_much_sampling(cost: CostFunction) -> None:
    problem = replace(reach((0.3, -0.2)), context=(torch.tensor([[-0.1, 0.1]]),))
    sampled = CEM(samples=512, iterations=12, elites=24, horizon=4, cost=cost).plan(integrator(), problem)
    plan = GaussNewton(horizon=4, cost=cost).plan(integrator(), problem)  # 8 x 14 rollouts after 12 x 512
    assert plan.cost <= 1.01 * sampled.cost + 1e-4


def test_a_cost_that_names_no_squares_is_searched_by_its_steps() -> None:
    def crossed(predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
        return (predicted - goal[:, None, None]).abs().amax(-1)

    plan = GaussNewton(starts=2, iterations=10, horizon=4, cost=crossed).plan(integrator(), reach())
    sampled = CEM(samples=64, iterations=2, elites=8, horizon=4, cost=crossed).plan(integrator(), reach())
    assert plan.cost < sampled.cost


def test_the_model_is_asked_for_no_gradient() -> None:
    @dataclass(frozen=True)
    class Opaque:
        block: int = 1

        @torch.inference_mode()
        def rollout(self, context: Context, actions: Actions) -> Latents:
            return integrator().rollout(context, actions)

    assert GaussNewton(horizon=4).plan(Opaque(), reach()).cost < 0.13


@dataclass
class Sharing:
    """Says that it computes what is alike once, and looks whether it is alike."""

    inner: LinearWorld
    asked: int = 0

    @property
    def block(self) -> int:
        return self.inner.block

    def rollout(self, context: Context, actions: Actions) -> Latents:
        return self.inner.rollout(context, actions)

    def rollout_shared(self, context: Context, actions: Actions, alike: Alike) -> Latents:
        steps = actions.unflatten(2, (-1, self.block))
        assert (len(alike), len(alike[0])) == steps.shape[1:3]
        firsts = steps[:, torch.tensor(alike), torch.arange(steps.shape[2])]
        assert torch.equal(firsts, steps)
        assert any(first != sample for sample, firsts in enumerate(alike) for first in firsts)
        self.asked += 1
        return self.inner.rollout(context, actions)


@pytest.mark.parametrize("limits", [{}, {"slew": 0.3}, {"dwell": (2, 1)}, {"max_norm": 0.7}])
@pytest.mark.parametrize("committed", [0, 3])
def test_what_is_called_alike_is_alike_within_all_limits(limits: dict[str, Any], committed: int) -> None:
    asked = reach(
        space=space(**limits),
        previous_action=torch.tensor([0.1, -0.1]),
        held=(1.0, 1.0) if "dwell" in limits else None,
        committed=torch.full((committed, 2), 0.1) if committed else None,
    )
    world = Sharing(SPRING)
    optimizer = GaussNewton(starts=3, iterations=4, horizon=4)
    shared = optimizer.plan(world, asked)
    assert world.asked == 4
    assert torch.equal(shared.actions, optimizer.plan(SPRING, asked).actions)


def test_where_every_step_went_wrong_it_stays_and_tries_smaller_ones() -> None:
    @dataclass(frozen=True)
    class Spiky:
        """Nudges of 0.4 see a slope down; whatever lies beyond 0.01 of the start is dearer."""

        def __call__(self, predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
            moved = actions.abs().amax(dim=(-1, -2)).unsqueeze(-1)
            return torch.where(moved > 0.01, 2.0 + moved, 1.0 - moved).expand(*actions.shape[:2], 4)

    optimizer = GaussNewton(starts=1, horizon=4, cost=Spiky())
    (search,) = optimizer.improve(integrator(), [optimizer.start(reach(), 1)])
    points, caution = search.memory
    assert torch.equal(points[0], torch.zeros(4, 2))
    assert caution.tolist() == [MORE_CAUTIOUS]
    assert search.best_cost == 4.0
    while optimizer.stopped(search) is None:
        (search,) = optimizer.improve(integrator(), [search])
    assert search.best_cost <= 4.0


def test_its_opening_moves_whole_model_steps_and_leaves_the_best_of_its_starts() -> None:
    optimizer = GaussNewton(starts=3, iterations=3, opening=1, horizon=4, cost=EFFORT)
    problem = reach()
    search = optimizer.start(problem, 2)
    began = search.memory[0]
    assert optimizer.iteration_steps(search) == 3 * (1 + 4 * 2 + 5) * 4
    (search,) = optimizer.improve(SPRING, [search])
    (after,) = search.memory[0]
    changes = (after - began).unflatten(1, (4, 2))
    by_start = [torch.allclose(change[:, 0], change[:, 1], atol=1e-6) for change in changes]
    assert sum(by_start) == 1  # within the bounds a model step's two actions moved alike; the others were left behind
    assert torch.equal(after, search.best_actions)
    assert optimizer.iteration_steps(search) == (1 + 8 * 2 + 5) * 4


def test_after_sampling_an_iteration_still_evaluates_as_many_steps_as_it_says() -> None:
    asked: list[int] = []

    @dataclass(frozen=True)
    class Counted:
        block: int = 2

        def rollout(self, context: Context, actions: Actions) -> Latents:
            asked.append(actions.shape[1] * 4)
            return SPRING.rollout(context, actions)

    hybrid = Hybrid(CEM(samples=16, iterations=2, elites=4, horizon=4), GaussNewton(starts=2, iterations=4, horizon=4))
    search, told = hybrid.start(reach(), 2), []
    while hybrid.stopped(search) is None:
        told.append(hybrid.iteration_steps(search))
        asked.clear()
        (search,) = hybrid.improve(Counted(), [search])
        assert sum(asked) == told[-1]
    assert told == [64, 64, 112, 112, 88, 88]  # 16 samples; 2 x (1 + 8 + 5) in the opening; 1 + 16 + 5


def test_standing_on_the_goal_it_stays() -> None:
    plan = GaussNewton(iterations=3, horizon=4).plan(integrator(), reach((0.0, 0.0)))
    assert plan.cost == 0
    assert torch.equal(plan.actions, torch.zeros(4, 2))


def test_after_sampling_the_warm_start_is_among_what_is_polished() -> None:
    hybrid = Hybrid(CEM(samples=64, iterations=1, elites=8, horizon=4), GaussNewton(starts=2, horizon=4))
    warm = torch.full((4, 2), 0.9)
    (search,) = hybrid.improve(integrator(), [hybrid.start(reach(warm_start=warm), 1)])
    assert torch.equal(search.memory[0][0], search.best_actions)
    assert torch.equal(search.memory[0][1], warm)
    (search,) = hybrid.improve(integrator(), [hybrid.start(reach(), 1)])
    assert not torch.equal(search.memory[0][1], torch.zeros(4, 2))  # the second elite


@pytest.mark.parametrize(
    "cost",
    [
        GoalDistance(),
        GoalDistance("l1", over="last"),
        GoalDistance("cosine"),
        GoalDistance("l2", over="discounted", discount=0.8),
        ActionCost((0.5, 2.0)),
        EFFORT,
        WeightedSum(((1.0, GoalDistance()), (-0.1, ActionCost()))),
        lambda predicted, goal, actions: GoalDistance()(predicted, goal, actions) + 1,
    ],
    ids=["l2", "l1", "cosine", "discounted", "effort", "sum", "difference", "callable"],
)
@pytest.mark.parametrize("tokens", [(), (3,)], ids=["one latent", "tokens"])
def test_residuals_square_to_the_cost(cost: CostFunction, tokens: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    predicted = torch.randn(2, 6, 4, *tokens, 8, generator=generator)
    goal, actions = torch.randn(2, *tokens, 8, generator=generator), torch.randn(2, 6, 8, 2, generator=generator)
    total = cost(predicted, goal, actions).sum(-1)
    squares = residuals_of(cost, predicted, goal, actions).square().sum(-1)
    torch.testing.assert_close(squares, total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"starts": 0},
        {"iterations": 0},
        {"horizon": 0},
        {"opening": -1},
        {"nudge": 0.0},
        {"nudge": 1.5},
        {"damping": ()},
        {"damping": (0.1, -1.0)},
        {"damping": (float("nan"),)},
        {"initial_std": (0.5, -1.0)},
        {"converged_below": -1.0},
    ],
)
def test_settings_that_cannot_search_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(PlanningError) as refused:
        replace(GaussNewton(), **settings)
    assert refused.value.field == next(iter(settings))
