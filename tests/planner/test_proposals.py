from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from planner import registry
from planner.anytime import Optimizer
from planner.cost import GoalDistance
from planner.optimizers.cem import CEM
from planner.optimizers.policy import Policy
from planner.proposals import arrivals, proposals, with_proposals
from planner.types import Plan, PlanningError
from tests.support.planner.problems import integrator, reach

WORLD = integrator(block=2)
SEARCHES = ("cem", "icem", "mppi", "gradient", "hybrid", "gauss_newton", "vjepa2_ac")


@dataclass(frozen=True)
class Straight:
    """Proposes to go to the goal in equal moves, and notes what it was asked: the right answer for `integrator`."""

    longest: int = 8
    error: float = 0.0  # what each first proposal is off by, and later ones would make good

    def propose(self, context: tuple[Tensor, ...], goal: Tensor, steps_to_go: Tensor) -> Tensor:
        start = context[0].unsqueeze(1).expand(-1, steps_to_go.shape[1], -1)
        return self.propose_from(start, goal, steps_to_go) + self.error

    def propose_from(self, latents: Tensor, goal: Tensor, steps_to_go: Tensor) -> Tensor:
        move = (goal.unsqueeze(1) - latents) / (0.1 * steps_to_go.clamp(min=1).unsqueeze(-1))
        time = torch.arange(4, device=goal.device)
        moves = move.unsqueeze(2).expand(-1, -1, 4, -1)
        return torch.where((time < steps_to_go.unsqueeze(-1)).unsqueeze(-1), moves, 0.0)


def optimizer(name: str) -> Optimizer:
    return registry.optimizer(name, samples=24, iterations=4, elites=6, horizon=4)


def test_arrivals_are_every_model_step_that_is_known_and_what_a_plan_has_left() -> None:
    assert arrivals(4, 2, 8) == (2, 4, 6, 8)
    assert arrivals(4, 2, 5, carried=3) == (2, 3, 4)
    assert arrivals(2, 5, 3) == (5,), "one model step at least"
    assert arrivals(2, 5, 10, carried=40) == (5, 10)


def test_proposals_are_followed_through_the_model_and_asked_again() -> None:
    problem = reach((0.4, -0.2))
    found = proposals(Straight(error=0.05), WORLD, problem.context, problem.goal, 4, (4, 8))
    assert found.shape == (2, 8, 2)
    ends = WORLD.rollout(problem.context, found[None])[0]
    torch.testing.assert_close(ends[0, 1], problem.goal)  # there after two blocks, though the first was off
    torch.testing.assert_close(ends[1, 3], problem.goal)
    assert torch.equal(found[0, 4:], torch.zeros(4, 2)), "and at rest from then on"


def test_numbers_that_are_none_are_an_error_of_the_proposer() -> None:
    problem = reach()
    for name in ("cem", "policy"):
        with pytest.raises(PlanningError, match="proposer must propose finite actions"):
            with_proposals(problem, Straight(error=float("nan")), WORLD, optimizer(name))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_good_proposal_wins(name: str) -> None:
    problem = with_proposals(reach((0.17, -0.13)), Straight(), WORLD, optimizer(name))
    plan = optimizer(name).plan(WORLD, problem)
    if name != "vjepa2_ac":  # which answers with its last mean, as published
        assert problem.proposals is not None
        proposed = problem.proposals[None]
        told = optimizer(name).cost(WORLD.rollout(problem.context, proposed), problem.goal[None], proposed)
        assert plan.cost <= told.sum(-1).min() + 1e-6
    assert 0 < plan.proposed <= 1


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("seed", range(3))
def test_a_bad_proposer_changes_nothing(name: str, seed: int) -> None:
    problem = reach((0.37, -0.31), seed=seed)
    without = optimizer(name).plan(WORLD, problem)
    away = replace(problem, proposals=torch.full((5, 8, 2), 1.0) * torch.tensor([-1.0, 1.0]))
    plan = optimizer(name).plan(WORLD, away)
    assert plan.proposed < 1e-3
    torch.testing.assert_close(plan.actions, without.actions, atol=1e-4, rtol=0)
    assert plan.cost <= without.cost + 1e-6


def test_searches_with_and_without_proposals_share_a_rollout_and_plan_as_alone() -> None:
    for name in ("cem", "mppi", "gauss_newton", "gradient", "hybrid"):
        search = optimizer(name)
        problems = [reach((0.37, -0.31), seed=1), reach((0.2, 0.1), seed=2)]
        problems.append(with_proposals(reach((0.3, 0.3), seed=3), Straight(), WORLD, search))
        begun = [search.start(problem, WORLD.block) for problem in problems]
        together = search.improve(WORLD, begun)
        alone = [search.improve(WORLD, [each])[0] for each in begun]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.best_actions, other.best_actions, atol=1e-5, rtol=1e-5)
            assert one.proposed == pytest.approx(other.proposed, abs=1e-5)


def test_an_iteration_says_how_much_its_proposals_add() -> None:
    for name in ("cem", "mppi", "gauss_newton", "gradient"):
        search = optimizer(name)
        plain = search.start(reach(), WORLD.block)
        given = search.start(with_proposals(reach(), Straight(), WORLD, search), WORLD.block)
        assert search.iteration_steps(given) > search.iteration_steps(plain)


def test_the_policy_is_the_proposal_and_nothing_else() -> None:
    policy = Policy(horizon=4)
    problem = with_proposals(reach((0.4, -0.2)), Straight(), WORLD, policy)
    plan = policy.plan(WORLD, problem)
    torch.testing.assert_close(plan.actions[:4], torch.tensor([[0.5, -0.25]]).expand(4, -1))  # 4 / 0.1 / 8 steps
    assert (plan.iterations, plan.proposed, plan.arrival) == (1, 1.0, 8)
    told = GoalDistance()(WORLD.rollout(problem.context, plan.actions[None, None]), problem.goal[None], plan.actions)
    assert plan.cost == pytest.approx(told.sum().item(), rel=1e-5)
    later = with_proposals(replace(problem, arrival=3), Straight(), WORLD, policy)
    assert policy.plan(WORLD, later).arrival == 3
    assert torch.equal(policy.plan(WORLD, later).actions[3:], torch.zeros(5, 2))


def test_the_policy_keeps_to_the_action_space() -> None:
    policy = Policy(horizon=4)
    plan = policy.plan(WORLD, with_proposals(reach((4.0, -4.0)), Straight(), WORLD, policy))
    assert (plan.actions.abs() <= 1).all()


def test_a_policy_needs_a_proposer() -> None:
    with pytest.raises(PlanningError, match="planner.optimizer must not be policy for a model package that has no"):
        Policy().plan(WORLD, reach())


def test_proposals_fit_the_search() -> None:
    with pytest.raises(PlanningError, match=r"proposals must be"):
        CEM(horizon=4).plan(WORLD, replace(reach(), proposals=torch.zeros(2, 3, 2)))


def test_the_first_of_several_starts_stays() -> None:
    search = registry.optimizer("gauss_newton", samples=24, iterations=4, elites=6, horizon=4)
    polish = search.polish  # type: ignore[attr-defined]
    warm = torch.full((8, 2), 0.05)
    proposed = with_proposals(reach((0.37, -0.31)), Straight(), WORLD, search)
    problem = replace(proposed, warm_start=warm, replace_margin=0.5)
    begun = polish.start(problem, WORLD.block)
    after = polish.improve(WORLD, [begun])[0]
    plan: Plan = polish.finish(after, "iterations")
    told = GoalDistance()(WORLD.rollout(problem.context, warm[None, None]), problem.goal[None], warm)
    torch.testing.assert_close(after.warm_step_costs, told[0, 0])
    assert not plan.kept
