"""Sessions with goals one after another, with real engines behind: when they go on, and what their plans say of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from presage.values import Plan

from server.errors import Reason
from server.service.application import Application
from server.service.sessions.stages import MOST_STAGES
from server.values.calls import DistanceRequest, GoalStage, Observation, PlanRequest, SessionRequest
from tests.support.server.linear import frame, latent
from tests.support.server.requests import QUICK, goal_at, plan, refused

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def staged(application: Application, *stages: GoalStage) -> str:
    return (await application.create_session(SessionRequest(stages=stages, seed=1))).session_id


async def at(application: Application, session: str, right: float, executed: int = 0, **more: object) -> Plan:
    request = PlanRequest(Observation((frame(right, 0.4),)), session, executed=executed, planner=QUICK)
    return await plan(application, replace(request, **more))  # type: ignore[arg-type]


async def stage(application: Application, session: str) -> int | None:
    return (await application.get_session(session)).stage


async def test_an_observation_near_the_goal_is_planned_for_toward_the_next(application: Application) -> None:
    first, second, third = [await goal_at(application, right) for right in (0.4, 0.6, 0.8)]
    session = await staged(
        application, GoalStage(first, switch_below=1e-3), GoalStage(second, switch_below=1e-3), GoalStage(third)
    )
    assert (await application.get_session(session)).goal_id == first
    far = await at(application, session, 0.2)
    assert (far.provenance.goal_id, far.warnings) == (first, ())
    assert await stage(application, session) == 0
    near = await at(application, session, 0.4, executed=2)
    assert near.provenance.goal_id == second
    assert near.goal_distance == pytest.approx(float(np.square(latent(0.4, 0.4) - latent(0.6, 0.4)).mean()))
    assert near.warnings == (
        "stage 1 begins: the observation's goal_distance was at or below 0.001 in the stage before",
    )
    assert not near.warm_started
    told = await application.get_session(session)
    assert (told.stage, told.goal_id) == (1, second)
    on_the_way = await at(application, session, 0.5, executed=2)
    assert (on_the_way.provenance.goal_id, on_the_way.warm_started, on_the_way.warnings) == (second, True, ())
    assert (await at(application, session, 0.6, executed=2)).provenance.goal_id == third
    assert (await at(application, session, 0.8, executed=2)).provenance.goal_id == third  # the last one stays
    assert await stage(application, session) == 2


async def test_enough_executed_actions_end_a_stage_whatever_the_distance(application: Application) -> None:
    first, second, third = [await goal_at(application, right) for right in (0.4, 0.6, 0.8)]
    session = await staged(
        application, GoalStage(first, max_actions=3), GoalStage(second, max_actions=2), GoalStage(third, max_actions=1)
    )
    goals = [(await at(application, session, 0.2, executed)).provenance.goal_id for executed in (0, 2, 1, 1, 1, 6)]
    assert goals == [first, first, second, second, third, third]


async def test_a_switch_is_told_in_the_plan_that_makes_it(application: Application) -> None:
    first, second = await goal_at(application, 0.4), await goal_at(application, 0.6)
    session = await staged(application, GoalStage(first, max_actions=2), GoalStage(second))
    await at(application, session, 0.2)
    switched = await at(application, session, 0.3, executed=2)
    assert switched.warnings == ("stage 1 begins: 2 actions were executed in stage 0",)
    assert (await at(application, session, 0.3)).warnings == ()


async def test_distances_are_to_the_stage_that_is_pursued(application: Application) -> None:
    first, second = await goal_at(application, 0.4), await goal_at(application, 0.6)
    session = await staged(application, GoalStage(first, switch_below=1e-3), GoalStage(second))
    here = DistanceRequest((frame(0.4, 0.4),), session)
    assert (await application.distance(here)).distances[0] == pytest.approx(0.0, abs=1e-7)
    await at(application, session, 0.4)
    assert (await application.distance(here)).distances[0] > 0.01


async def test_a_reset_begins_with_the_first_stage(application: Application) -> None:
    first, second = await goal_at(application, 0.4), await goal_at(application, 0.6)
    session = await staged(application, GoalStage(first, max_actions=2), GoalStage(second))
    await at(application, session, 0.2)
    await at(application, session, 0.2, executed=2)
    assert await stage(application, session) == 1
    reset = await application.reset_session(session)
    assert (reset.stage, reset.goal_id) == (0, first)
    assert (await at(application, session, 0.2)).provenance.goal_id == first


async def test_a_plan_toward_a_goal_of_its_own_leaves_the_stages(application: Application) -> None:
    first, second, other = [await goal_at(application, right) for right in (0.4, 0.6, 0.9)]
    session = await staged(application, GoalStage(first, max_actions=2), GoalStage(second))
    named = await at(application, session, 0.2, goal_id=first)  # the present stage's: nothing changes
    assert (named.warnings, await stage(application, session)) == ((), 0)
    left = await at(application, session, 0.2, goal_id=other)
    assert left.provenance.goal_id == other
    assert "the stages end here" in left.warnings[0]
    told = await application.get_session(session)
    assert (told.stage, told.goal_id) == (None, other)


async def test_a_goal_that_was_let_go_stays_for_the_sessions_that_hold_it(application: Application) -> None:
    first, second = await goal_at(application, 0.41), await goal_at(application, 0.61)
    session = await staged(application, GoalStage(first, switch_below=1e-3), GoalStage(second))
    await application.delete_goal(second)
    await refused(application.get_goal(second), Reason.UNKNOWN_GOAL, "goal_id")
    assert (await at(application, session, 0.41)).provenance.goal_id == second
    await application.delete_session(session)
    other = (await application.create_session(SessionRequest())).session_id
    await refused(at(application, other, 0.41, goal_id=second), Reason.UNKNOWN_GOAL, "goal_id")
    assert await goal_at(application, 0.61) == second
    assert (await at(application, other, 0.41, goal_id=second)).provenance.goal_id == second


async def test_stages_that_cannot_be_followed_are_refused_by_name(application: Application) -> None:
    goal, foreign = await goal_at(application, 0.4), await goal_at(application, 0.4, model="slow")
    last = GoalStage(goal)
    for stages, reason, field in (
        ((GoalStage(goal), last), Reason.INVALID_FIELD, "stages[0]"),
        ((GoalStage(goal, switch_below=-1.0), last), Reason.INVALID_FIELD, "stages[0].switch_below"),
        ((GoalStage(goal, switch_below=float("nan")), last), Reason.INVALID_FIELD, "stages[0].switch_below"),
        ((GoalStage(goal, max_actions=-1), last), Reason.INVALID_FIELD, "stages[0].max_actions"),
        ((GoalStage(goal, max_actions=1), GoalStage("none")), Reason.UNKNOWN_GOAL, "stages[1].goal_id"),
        ((GoalStage(foreign),), Reason.INVALID_FIELD, "stages[0].goal_id"),
        ((GoalStage(""),), Reason.GOAL_REQUIRED, "stages[0].goal_id"),
        ((GoalStage(goal, 1.0),) * (MOST_STAGES + 1), Reason.TOO_LARGE, "stages"),
    ):
        await refused(application.create_session(SessionRequest(stages=stages)), reason, field)
    both = SessionRequest(goal_id=goal, stages=(last,))
    await refused(application.create_session(both), Reason.INVALID_FIELD, "goal_id")
