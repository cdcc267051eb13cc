from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from planner.optimizers.cem import CEM
from planner.receding import warm_start
from planner.schedule import GoalSchedule, SubGoal
from planner.types import PlanningError
from tests.support.planner.problems import integrator, reach, space

NEAR, FAR, BACK = (torch.tensor([x, 0.0]) for x in (0.1, 5.0, 0.0))
SCHEDULE = GoalSchedule((SubGoal(NEAR, 10, 1e-3), SubGoal(FAR, 4, 1e-3), SubGoal(BACK, 3, 1e-3)))
ELSEWHERE = torch.tensor([0.5, 0.5])


def test_a_sub_goal_within_its_threshold_is_behind() -> None:
    assert torch.equal(SCHEDULE.goal, NEAR)
    still = SCHEDULE.advanced(ELSEWHERE, 3)
    assert (still.position, still.spent, still.outcomes) == (0, 3, ())
    moved = still.advanced(NEAR + 0.01, 2)  # mean squared distance 1e-4
    assert (moved.position, moved.spent, moved.outcomes) == (1, 0, ("reached",))
    assert torch.equal(moved.goal, FAR)


def test_a_sub_goal_out_of_reach_is_given_up_when_its_steps_are_spent() -> None:
    moved = SCHEDULE.advanced(NEAR, 1)
    for _ in range(4):
        assert torch.equal(moved.goal, FAR)
        moved = moved.advanced(ELSEWHERE, 1)
    assert (moved.position, moved.spent, moved.outcomes) == (2, 0, ("reached", "spent"))


def test_sub_goals_already_met_are_passed_together_and_the_last_goal_stays() -> None:
    same = GoalSchedule((SubGoal(NEAR, 5, 1e-3), SubGoal(NEAR, 5, 1e-3), SubGoal(BACK, 2)))
    moved = same.advanced(NEAR, 1)
    assert moved.outcomes == ("reached", "reached")
    ended = moved.advanced(ELSEWHERE, 2)
    assert ended.finished
    assert ended.outcomes == ("reached", "reached", "spent")
    assert torch.equal(ended.goal, BACK)
    assert ended.advanced(BACK, 7).outcomes == ended.outcomes


def test_the_metric_decides_what_is_near() -> None:
    goal = SubGoal(torch.tensor([1.0, 0.0]), 9, 1e-6)
    assert GoalSchedule((goal,), "cosine").advanced(torch.tensor([7.0, 0.0]), 1).finished
    assert not GoalSchedule((goal,), "l1").advanced(torch.tensor([7.0, 0.0]), 1).finished


def test_plans_lead_through_the_stages_in_order() -> None:
    stages = [torch.tensor(place) for place in ((0.3, 0.0), (0.3, 0.3), (-0.1, 0.3))]
    schedule = GoalSchedule(tuple(SubGoal(stage, 20, 2e-4) for stage in stages))
    position, warm, aimed = torch.zeros(1, 2), None, []
    cem, world = CEM(samples=64, iterations=4, elites=8, horizon=4), integrator()
    while not schedule.finished:
        aimed.append(schedule.position)
        problem = replace(reach(seed=len(aimed), warm_start=warm), context=(position,), goal=schedule.goal)
        plan = cem.plan(world, problem)
        position = position + 0.1 * plan.actions[:2].sum(0)
        warm = warm_start(plan, 2, space())
        schedule = schedule.advanced(position[0], 2)
    assert schedule.outcomes == ("reached",) * 3
    assert aimed == sorted(aimed)
    assert set(aimed) == {0, 1, 2}


def test_schedules_that_lead_nowhere_are_refused_by_name() -> None:
    wrong = {
        "sub_goal.latent": [
            lambda: SubGoal(torch.tensor([math.nan]), 1),
            lambda: GoalSchedule((SubGoal(NEAR, 1), SubGoal(torch.zeros(3), 1))),
        ],
        "sub_goal.steps": [lambda: SubGoal(NEAR, 0)],
        "sub_goal.reached_below": [lambda: SubGoal(NEAR, 1, -1.0), lambda: SubGoal(NEAR, 1, math.nan)],
        "sub_goals": [lambda: GoalSchedule(())],
        "schedule.metric": [lambda: GoalSchedule((SubGoal(NEAR, 1),), "l3")],  # type: ignore[arg-type]
        "outcomes": [lambda: GoalSchedule((SubGoal(NEAR, 1),), outcomes=("spent", "spent"))],
        "spent": [lambda: GoalSchedule((SubGoal(NEAR, 1),), spent=-1)],
        "executed": [lambda: SCHEDULE.advanced(NEAR, -1)],
        "latent": [
            lambda: SCHEDULE.advanced(torch.zeros(3), 1),
            lambda: SCHEDULE.advanced(torch.tensor([0.0, math.inf]), 1),
        ],
    }
    for field, attempts in wrong.items():
        for attempt in attempts:
            with pytest.raises(PlanningError) as refused:
                attempt()
            assert refused.value.field == field
