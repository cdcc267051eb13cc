from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from planner import cost
from planner.cost import ActionCost, GoalDistance, WeightedSum
from planner.optimizers.cem import CEM
from planner.types import PlanningError
from tests.support.planner.every_optimizer import AnyOptimizer, changed, each_optimizer
from tests.support.planner.problems import LinearWorld, integrator, reach

GENERATOR = torch.Generator().manual_seed(0)
PREDICTED = torch.randn(2, 3, 4, 5, 6, generator=GENERATOR)  # batch, samples, horizon, tokens, channels
GOAL = torch.randn(2, 5, 6, generator=GENERATOR)
ACTIONS = torch.randn(2, 3, 8, 2, generator=GENERATOR)
DIFFERENCE = PREDICTED - GOAL[:, None, None]


def test_distances_are_means_over_the_latent() -> None:
    squared = GoalDistance("l2")(PREDICTED, GOAL, ACTIONS)
    torch.testing.assert_close(squared, DIFFERENCE.square().mean((-2, -1)))
    absolute = GoalDistance("l1")(PREDICTED, GOAL, ACTIONS)
    torch.testing.assert_close(absolute, DIFFERENCE.abs().mean((-2, -1)))
    cosine = GoalDistance("cosine")(3 * GOAL[:, None, None].expand_as(PREDICTED), GOAL, ACTIONS)
    torch.testing.assert_close(cosine, torch.zeros(2, 3, 4), atol=1e-6, rtol=0)
    cosine = GoalDistance("cosine")(-GOAL[:, None, None].expand_as(PREDICTED), GOAL, ACTIONS)
    torch.testing.assert_close(cosine, torch.full((2, 3, 4), 2.0))


def test_a_last_step_cost_is_zero_before_it() -> None:
    shares = GoalDistance("l2", over="last")(PREDICTED, GOAL, ACTIONS)
    assert torch.equal(shares[..., :-1], torch.zeros(2, 3, 3))
    torch.testing.assert_close(shares[..., -1], DIFFERENCE[:, :, -1].square().mean((-2, -1)))


def test_a_discount_weighs_each_step_by_its_power() -> None:
    whole = GoalDistance("l1")(PREDICTED, GOAL, ACTIONS)
    discounted = GoalDistance("l1", over="discounted", discount=0.5)(PREDICTED, GOAL, ACTIONS)
    torch.testing.assert_close(discounted, whole * torch.tensor([1, 0.5, 0.25, 0.125]))


def test_latents_may_be_plain_vectors_or_have_many_dimensions() -> None:
    vectors = GoalDistance()(PREDICTED.flatten(3), GOAL.flatten(1), ACTIONS)
    torch.testing.assert_close(vectors, GoalDistance()(PREDICTED, GOAL, ACTIONS))


def test_bfloat16_predictions_are_priced_in_float32() -> None:
    shares = GoalDistance()(PREDICTED.bfloat16(), GOAL, ACTIONS)
    assert shares.dtype == torch.float32
    torch.testing.assert_close(shares, GoalDistance()(PREDICTED, GOAL, ACTIONS), rtol=0.02, atol=0)


def test_effort_counts_every_action_of_a_step_in_its_own_units() -> None:
    shares = ActionCost(scale=(2.0, 0.5))(PREDICTED, GOAL, ACTIONS)
    by_hand = ((ACTIONS[..., 0] / 2).square() + (ACTIONS[..., 1] / 0.5).square()) / 2
    torch.testing.assert_close(shares, by_hand[..., 0::2] + by_hand[..., 1::2])


def test_a_weighted_sum_adds_weight_times_cost() -> None:
    both = WeightedSum(((1.0, GoalDistance()), (0.1, ActionCost())))(PREDICTED, GOAL, ACTIONS)
    by_hand = GoalDistance()(PREDICTED, GOAL, ACTIONS) + 0.1 * ActionCost()(PREDICTED, GOAL, ACTIONS)
    torch.testing.assert_close(both, by_hand)


@pytest.mark.parametrize("metric", ["l2", "l1", "cosine"])
@pytest.mark.parametrize("over", ["sum", "last", "discounted"])
@pytest.mark.parametrize("limit", [1, 2 * PREDICTED[:, :1].numel(), PREDICTED.numel() - 1])
def test_a_distance_computed_in_pieces_is_the_same(
    metric: Any, over: Any, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    distance = GoalDistance(metric, over, discount=0.9 if over == "discounted" else 1.0)
    whole = distance(PREDICTED, GOAL, ACTIONS)
    monkeypatch.setattr(cost, "TEMPORARY_ELEMENTS", limit)
    torch.testing.assert_close(distance(PREDICTED, GOAL, ACTIONS), whole)


def test_large_latents_are_never_subtracted_all_at_once() -> None:
    largest = 0

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if func is Tensor.sub:
                largest = max(largest, made.numel())
            return made

    patches = torch.zeros(1, 1, 1, 256, 1408).expand(1, 100, 1, -1, -1)  # 36 M elements, of which one row is held
    with Watching():
        shares = GoalDistance("l1")(patches, torch.ones(1, 256, 1408), ACTIONS)
    torch.testing.assert_close(shares, torch.ones(1, 100, 1))
    assert 0 < largest <= cost.TEMPORARY_ELEMENTS


def test_a_users_own_function_is_a_cost_like_any_other() -> None:
    def backwards(predicted: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        return actions[..., 0].clamp(max=0).neg().unflatten(2, (predicted.shape[2], -1)).sum(-1)

    whole = WeightedSum(((1.0, GoalDistance()), (100.0, backwards)))
    plan = CEM(samples=64, iterations=4, elites=8, horizon=4, cost=whole).plan(integrator(), reach((-0.3, 0.2)))
    assert plan.actions[:, 0].min() > -1e-2
    assert plan.actions[0, 1] > 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GoalDistance("l3"),  # type: ignore[arg-type]
        lambda: GoalDistance(over="first"),  # type: ignore[arg-type]
        lambda: GoalDistance(discount=0),
        lambda: GoalDistance(discount=0.9),
        lambda: ActionCost(scale=0),
        lambda: ActionCost(scale=(1.0, -1.0)),
        lambda: WeightedSum(()),
        lambda: WeightedSum(((math.nan, GoalDistance()),)),
    ],
)
def test_a_cost_that_says_nothing_is_refused(wrong: object) -> None:
    with pytest.raises(PlanningError, match="cost"):
        wrong()  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("metric", ["l1", "l2", "rms", "cosine"])
@pytest.mark.parametrize("numbers", [1, 192, 4097, 256 * 1408, 576 * 1408])
def test_sums_over_latents_are_exact_to_two_parts_in_ten_million(numbers: int, metric: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(numbers)
    latents = torch.randn(1, 2, 1, numbers, generator=generator, dtype=torch.float64).to(dtype)
    goal = (1.2 * latents[:, 0, 0] + 0.1 * torch.rand(1, numbers, generator=generator)).to(dtype)
    found = GoalDistance(metric)(latents, goal, ACTIONS)
    exact, target = latents.double(), goal.double()[:, None, None]
    wanted = {
        "l1": (exact - target).abs().mean(-1),
        "l2": (exact - target).square().mean(-1),
        "rms": (exact - target).square().mean(-1).sqrt(),
        "cosine": 1 - torch.cosine_similarity(exact, target, dim=-1),
    }[metric]
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), wanted, rtol=2e-7, atol=1e-12 if metric == "cosine" else 0)


@pytest.mark.parametrize("metric", ["l1", "l2", "rms"])
def test_sums_have_the_slopes_of_what_they_sum(metric: Any) -> None:
    latents = torch.randn(1, 2, 1, 5000, requires_grad=True)
    goal = torch.randn(1, 5000)
    (slope,) = torch.autograd.grad(GoalDistance(metric)(latents, goal, ACTIONS).sum(), latents)
    exact = latents.detach().double().requires_grad_()
    difference = exact - goal.double()[:, None, None]
    total = {"l1": difference.abs().mean(-1), "l2": difference.square().mean(-1)}
    total["rms"] = total["l2"].sqrt()
    (wanted,) = torch.autograd.grad(total[metric].sum(), exact)
    torch.testing.assert_close(slope.double(), wanted, rtol=1e-4, atol=1e-8)


@each_optimizer
@pytest.mark.parametrize("metric", ["l1", "l2", "rms"])
@pytest.mark.parametrize("over", ["sum", "last"])
def test_every_optimizer_plans_in_float64_by_every_cost(optimizer: AnyOptimizer, metric: Any, over: Any) -> None:
    world, problem = LinearWorld(torch.eye(2).double(), 0.1 * torch.eye(2).double()), reach((0.3, -0.2))
    problem = replace(problem, context=tuple(part.double() for part in problem.context), goal=problem.goal.double())
    priced = GoalDistance(metric, over=over)
    plan = changed(optimizer, cost=priced).plan(world, problem)
    start = priced(problem.context[0][:, None, None].expand(1, 1, 4, -1), problem.goal[None], ACTIONS).sum()
    assert plan.cost < 0.5 * float(start)
