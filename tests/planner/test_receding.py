from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planner.optimizers.cem import CEM
from planner.receding import Execution, of_length, warm_start
from planner.types import ActionDistribution, PlanningError
from tests.support.planner.problems import integrator, reach, space

SETTINGS = CEM(samples=64, iterations=4, elites=8, horizon=3)
WORLD = integrator(block=2)
PLAN = SETTINGS.plan(WORLD, reach())


def test_the_rest_of_a_plan_starts_the_next_search() -> None:
    rest = warm_start(PLAN, 2, space())
    assert torch.equal(rest[:4], PLAN.actions[2:])
    assert torch.equal(rest[4:], torch.zeros(2, 2))
    held = warm_start(PLAN, 2, space(), tail="hold")
    assert torch.equal(held[4:], PLAN.actions[-1].expand(2, -1))
    assert torch.equal(warm_start(PLAN, 0, space()), PLAN.actions)
    assert torch.equal(warm_start(PLAN, 6, space()), torch.zeros(6, 2))


def test_a_tail_rests_at_zero_and_not_in_the_middle_of_the_bounds() -> None:
    base = replace(space(), low=(-0.1, 0.0), high=(0.9, 1.0))  # drives forward mostly; a gripper from 0 to 1
    assert torch.equal(of_length(9, PLAN.actions, base)[6:], torch.zeros(3, 2))
    told = replace(base, stated_rest=(0.0, 1.0))
    assert torch.equal(of_length(7, PLAN.actions, told)[6], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("time", [1, 4, 6, 9])
def test_what_is_left_is_cut_or_carried_on_to_any_length(time: int) -> None:
    at_rest, held = (of_length(time, PLAN.actions, space(), tail) for tail in ("rest", "hold"))
    assert torch.equal(at_rest[:6], PLAN.actions[:time])
    assert torch.equal(at_rest[6:], torch.zeros(max(0, time - 6), 2))
    assert torch.equal(held, PLAN.actions[torch.arange(time).clamp(max=5)])


def test_a_warm_start_obeys_slew_into_its_tail() -> None:
    made = space(slew=0.1)
    plan = SETTINGS.plan(WORLD, reach((0.9, 0.9), space=made))
    rest = warm_start(plan, 3, made)
    assert (rest.diff(dim=0).abs() <= 0.1).all()


def test_a_distribution_shifts_with_its_plan() -> None:
    fill = ActionDistribution(torch.zeros(6, 2), torch.ones(6, 2))
    shifted = PLAN.distribution.shifted(4, fill)
    assert torch.equal(shifted.mean, torch.cat([PLAN.actions[4:], torch.zeros(4, 2)]))
    assert torch.equal(shifted.std, torch.cat([PLAN.distribution.std[4:], torch.ones(4, 2)]))
    assert torch.equal(PLAN.distribution.shifted(9, fill).mean, fill.mean)
    with pytest.raises(PlanningError, match="executed must be >= 0"):
        PLAN.distribution.shifted(-1, fill)


def test_a_plan_is_executed_action_by_action_until_the_next_is_due() -> None:
    execution = Execution(PLAN, replan_after=2)
    assert execution.previous_action is None
    sent = []
    while not execution.due:
        action, execution = execution.next_action()
        sent.append(action)
    assert torch.equal(torch.stack(sent), PLAN.actions[:2])
    assert torch.equal(execution.remaining, PLAN.actions[2:])
    assert execution.previous_action is not None
    assert torch.equal(execution.previous_action, PLAN.actions[1])
    assert torch.equal(execution.warm_start(space()), warm_start(PLAN, 2, space()))


def test_actions_sent_while_planning_head_the_next_plan() -> None:
    execution = Execution(PLAN, replan_after=2, executed=2)
    under_way = execution.committed(2)
    problem = reach(committed=under_way, warm_start=execution.warm_start(space()))
    following = SETTINGS.plan(WORLD, problem)
    assert torch.equal(following.actions[:2], PLAN.actions[2:4])


def test_replanning_from_where_the_plan_leaves_off_reaches_the_goal() -> None:
    goal, position, warm = (0.55, -0.35), torch.zeros(1, 2), None
    for step in range(4):
        problem = replace(reach(goal, seed=step, warm_start=warm), context=(position,))
        execution = Execution(SETTINGS.plan(WORLD, problem), replan_after=2)
        while not execution.due:
            action, execution = execution.next_action()
            position = position + 0.1 * action
        warm = execution.warm_start(space())
    assert (position - torch.tensor(goal)).abs().max() < 0.05


def test_execution_outside_its_plan_is_refused() -> None:
    for wrong in ({"replan_after": 0}, {"replan_after": 7}, {"replan_after": 1, "executed": 7}):
        with pytest.raises(PlanningError, match="must be"):
            Execution(PLAN, **wrong)
    with pytest.raises(PlanningError, match="executed must be 0 to 6, got 7"):
        warm_start(PLAN, 7, space())
    with pytest.raises(PlanningError, match="must leave an action"):
        Execution(PLAN, replan_after=6, executed=6).next_action()
    with pytest.raises(PlanningError, match="committed must be 0 to 1 actions"):
        Execution(PLAN, replan_after=6, executed=5).committed(2)
