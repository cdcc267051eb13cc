from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from planner import registry
from planner.cost import ActionCost, GoalDistance, WeightedSum, arrival_step, residuals_of
from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import GaussNewton
from planner.receding import warm_start
from planner.types import Plan, PlanningError, Problem
from tests.support.planner.problems import integrator, reach, space

LEAST = GoalDistance(over="least")
PREDICTED = torch.randn(2, 6, 4, 3, generator=torch.Generator().manual_seed(1))
GOAL = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
ACTIONS = torch.zeros(2, 6, 8, 2)


def test_the_cheapest_step_counts_each_a_tenth_dearer_than_the_one_before() -> None:
    dearer = GoalDistance()(PREDICTED, GOAL, ACTIONS) * torch.tensor([1.0, 1.1, 1.2, 1.3])
    shares = LEAST(PREDICTED, GOAL, ACTIONS)
    torch.testing.assert_close(shares.sum(-1), dearer.min(-1).values)
    assert torch.equal((shares > 0).sum(-1), torch.ones(2, 6, dtype=torch.long))
    assert torch.equal(shares.argmax(-1), dearer.argmin(-1))


def test_a_perfect_step_is_still_told_from_the_others() -> None:
    exact = PREDICTED.clone()
    exact[:, :, 2] = GOAL.unsqueeze(1)
    shares = LEAST(exact, GOAL, ACTIONS)
    assert (shares.sum(-1) < 1e-30).all()
    assert arrival_step(LEAST, shares[0, 0].tolist()) == 3


def test_a_nan_step_makes_the_candidate_worthless() -> None:
    broken = PREDICTED.clone()
    broken[0, 1, 3, 0] = torch.nan
    assert LEAST(broken, GOAL, ACTIONS)[0, 1].sum().isnan()


@pytest.mark.parametrize("metric", ["l2", "l1", "cosine"])
def test_squared_residuals_add_up_to_the_cost(metric: str) -> None:
    cost = GoalDistance(metric, over="least")  # type: ignore[arg-type]  # one of them
    squares = cost.residuals(PREDICTED, GOAL, ACTIONS).square().sum(-1)
    torch.testing.assert_close(squares, cost(PREDICTED, GOAL, ACTIONS).sum(-1))


def test_residuals_of_a_group_are_of_the_step_that_counts_for_its_first() -> None:
    grouped = residuals_of(LEAST, PREDICTED, GOAL, ACTIONS, groups=2)
    steps = LEAST(PREDICTED, GOAL, ACTIONS)[:, [0, 3]].argmax(-1).repeat_interleave(3, dim=1)
    chosen = torch.take_along_dim(PREDICTED, steps[:, :, None, None], dim=2).squeeze(2)
    weight = (1 + 0.1 * steps).sqrt().unsqueeze(-1)
    torch.testing.assert_close(grouped, (chosen - GOAL.unsqueeze(1)) * weight / 3**0.5)
    both = WeightedSum(((1.0, LEAST), (0.5, ActionCost())))
    mixed = residuals_of(both, PREDICTED, GOAL, ACTIONS, groups=2)
    torch.testing.assert_close(mixed[..., :3], grouped)


class Detour:
    """A point in the plane whose goal has two parts: a lever is at home when x is 0, and y moves only while x is 1."""

    block = 1

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        x, y = context[0].unsqueeze(1).expand(-1, actions.shape[1], -1).unbind(-1)
        latents = []
        for action in actions.unbind(2):
            x = (x + action[..., 0]).clamp(0, 1)
            y = y + action[..., 1] * (x > 0.9)
            latents.append(torch.stack([x, y], dim=-1))
        return torch.stack(latents, dim=2)


AWAY = Problem((torch.zeros(1, 2),), torch.tensor([0.0, 0.5]), space(), seed=0)


def test_it_leaves_home_where_a_sum_is_charged_for_it() -> None:
    search = CEM(samples=400, iterations=10, elites=20, horizon=3)
    summed = replace(search, cost=GoalDistance()).plan(Detour(), AWAY)
    least = replace(search, cost=LEAST).plan(Detour(), AWAY)
    ends = [Detour().rollout(AWAY.context, plan.actions[None, None])[0, 0] for plan in (summed, least)]
    off = [(end - AWAY.goal).square().sum(-1).min().item() for end in ends]
    assert off[1] < 0.01
    assert off[1] < off[0]


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient", "hybrid", "gauss_newton"])
def test_a_plan_says_when_it_means_to_be_there(name: str) -> None:
    optimizer = registry.optimizer(name, samples=64, iterations=8, elites=8, horizon=4, over="least")
    world = integrator(block=2)
    plan = optimizer.plan(world, reach((0.15, 0.0)))
    assert plan.arrival is not None
    there = world.rollout((torch.zeros(1, 2),), plan.actions[None, None])[0, 0, plan.arrival // 2 - 1]
    torch.testing.assert_close(there, torch.tensor([0.15, 0.0]), atol=0.05, rtol=0)
    assert (plan.arrival_after(plan.arrival - 1), plan.arrival_after(plan.arrival)) == (1, None)


def test_every_other_cost_arrives_at_its_end() -> None:
    assert [arrival_step(GoalDistance(over=over), (0.5, 0.1, 0.3)) for over in ("sum", "last")] == [3, 3]  # type: ignore[arg-type]


def test_gauss_newton_reaches_what_least_asks_for() -> None:
    goal = (0.13, -0.11)
    plan = GaussNewton(horizon=4, cost=LEAST).plan(integrator(block=2), reach(goal))
    assert plan.cost < 1e-6


@pytest.mark.parametrize(
    ("name", "over", "discount"), [("cem", "mean", 1.0), ("cem", "least", 2.0), ("vjepa2_ac", "least", 1.0)]
)
def test_costs_that_there_are_not_are_named(name: str, over: str, discount: float) -> None:
    with pytest.raises(PlanningError, match=r"planner\.(cost|discount) must"):
        registry.cost(name, discount, over)


def _follow(plan: Plan, executed: int, margin: float, seed: int = 1) -> Problem:
    return replace(
        reach((0.5, 0.4), seed=seed),
        context=(0.1 * plan.actions[:executed].sum(0, keepdim=True),),
        warm_start=warm_start(plan, executed, space()),
        arrival=plan.arrival_after(executed),
        replace_margin=margin,
    )


def test_a_plan_is_kept_unless_another_beats_it_clearly() -> None:
    search = CEM(samples=32, iterations=3, elites=4, horizon=4, cost=LEAST)
    world = integrator(block=2)
    plan = search.plan(world, reach((0.5, 0.4)))
    kept = search.plan(world, _follow(plan, 1, margin=0.9))
    assert kept.kept
    torch.testing.assert_close(kept.actions[:-1], plan.actions[1:])
    assert plan.arrival is not None
    assert kept.arrival == plan.arrival - 1
    free = search.plan(world, _follow(plan, 1, margin=0.0))
    assert not free.kept
    assert free.cost <= kept.cost


def test_a_plan_that_no_longer_leads_there_is_replaced() -> None:
    search = CEM(samples=64, iterations=6, elites=8, horizon=4, cost=LEAST)
    plan = search.plan(integrator(block=2), reach((0.5, 0.4)))
    pushed = replace(_follow(plan, 1, margin=0.3), context=(torch.tensor([[-0.2, -0.3]]),))
    replanned = search.plan(integrator(block=2), pushed)
    assert not replanned.kept


@pytest.mark.parametrize("margin", [-0.1, 1.0, float("nan")])
def test_a_margin_is_a_share(margin: float) -> None:
    with pytest.raises(PlanningError, match="replace_margin must be at least 0 and below 1"):
        replace(reach(), replace_margin=margin)


def test_an_arrival_lies_ahead() -> None:
    with pytest.raises(PlanningError, match="arrival must be >= 1"):
        replace(reach(), arrival=0)
