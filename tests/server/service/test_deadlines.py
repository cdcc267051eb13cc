"""An application against the clock: budgets, deadlines and cancelled calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.errors import Reason
from server.service.application import Application
from server.values.calls import (
    EmbedClipRequest,
    EmbedImagesRequest,
    GoalRequest,
    PlannerSettings,
    PlanRequest,
    RolloutRequest,
)
from tests.support.server.linear import SLOW_S, frame
from tests.support.server.requests import ENDLESS, HERE, QUICK, goal_at, plan, refused, session_toward
from tests.support.server.transports import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_budget_ends_a_plan_with_the_best_so_far(application: Application) -> None:
    goal = await goal_at(application, 0.2, model="slow")
    request = PlanRequest(HERE, model="slow", goal_id=goal, planner=ENDLESS, budget_ms=5 * SLOW_S * 1e3)
    reply = await plan(application, request)
    assert reply.stop_reason == "budget"
    assert 1 <= reply.iterations_done <= 5


async def test_a_deadline_ends_a_plan_before_it_passes(application: Application) -> None:
    goal = await goal_at(application, 0.2, model="slow")
    request = PlanRequest(HERE, model="slow", goal_id=goal, planner=ENDLESS)
    deadline = time.monotonic() + 2.0
    reply = await application.plan(request, deadline, time.monotonic())
    assert time.monotonic() <= deadline
    assert reply.stop_reason == "deadline"
    assert 1 <= reply.iterations_done <= 2.0 / SLOW_S


async def test_a_deadline_too_short_for_one_iteration_is_refused_at_once(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    for left_s in (-1.0, 0.0, SLOW_S / 2):
        await refused(plan(application, PlanRequest(HERE, model="slow", goal_id=goal), left_s=left_s), Reason.DEADLINE)


async def test_without_time_to_search_a_session_goes_on_with_its_plan(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    session = await session_toward(application, goal, model="slow")
    first = await plan(application, PlanRequest(HERE, session, planner=QUICK))
    rest = await plan(application, PlanRequest(HERE, session, executed=3), left_s=SLOW_S / 2)
    np.testing.assert_array_equal(rest.actions, first.actions[3:])
    assert (rest.iterations_done, rest.stop_reason, rest.degraded) == (0, "deadline", True)
    assert rest.step_costs == first.step_costs[1:]
    assert len(rest.warnings) == 1
    await refused(plan(application, PlanRequest(HERE, session, executed=3), left_s=SLOW_S / 2), Reason.DEADLINE)


async def test_cancelling_a_plan_frees_the_engine_and_the_observation(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    session = await session_toward(application, goal, model="slow")
    request = PlanRequest(replace(HERE, sequence=3), session, planner=ENDLESS)
    task = asyncio.create_task(plan(application, request))
    await eventually(lambda: application.calls_in_hand == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert application.calls_in_hand == 0
    again = await plan(application, replace(request, planner=QUICK))
    assert again.observation_sequence == 3


async def test_calls_with_a_deadline_that_has_passed_are_refused(application: Application, tmp_path: Path) -> None:
    past = time.monotonic() - 1
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: application.create_goal(GoalRequest(image=frame(0.777, 0.777)), past),
        lambda: application.rollout(RolloutRequest(HERE, np.zeros((2, 2), np.float32)), past),
        lambda: application.embed_images(EmbedImagesRequest((frame(0, 0),)), past),
        lambda: application.embed_clip(EmbedClipRequest(tmp_path / "clip.mp4"), past),
    ]
    for call in calls:
        await refused(call(), Reason.DEADLINE)


async def test_a_search_cut_below_what_it_needs_is_degraded_and_gives_the_numbers(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    settings = PlannerSettings(optimizer="vjepa2_ac")  # keeps its rules whatever the time: fewer samples take as long
    request = PlanRequest(HERE, model="slow", goal_id=goal, budget_ms=1.5 * SLOW_S * 1e3, planner=settings)
    reply = await plan(application, request)
    assert reply.degraded
    assert "iterations" in reply.shortage
    assert f"{reply.iterations_done} of 6 iterations fit 90 ms, 3 are needed" in reply.warnings
    unhurried = await plan(application, replace(request, budget_ms=None))
    assert (unhurried.degraded, unhurried.shortage, unhurried.warnings) == (False, (), ())


async def test_a_search_that_does_not_fit_its_budget_gives_way_to_real_time_iteration(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    session = await session_toward(application, goal, model="slow")
    await plan(application, PlanRequest(HERE, session, planner=QUICK))
    reply = await plan(application, PlanRequest(HERE, session, executed=2, budget_ms=1.5 * SLOW_S * 1e3))
    assert reply.provenance.planner.optimizer == "real_time_iteration"
    assert "optimizer" in reply.shortage
    took = f"real_time_iteration took their place, {reply.iterations_done} iterations"
    assert reply.warnings[0].endswith(took)
    assert reply.warnings[0].split(" of 6 iterations of cem fit 90 ms: ")[0] in ("0", "1", "2")


async def test_a_plan_that_is_only_what_it_began_with_is_never_green(application: Application) -> None:
    goal = await goal_at(application, 0.2, model="slow")  # where the robot is: nothing is better than rest
    session = await session_toward(application, goal, model="slow")
    await plan(application, PlanRequest(HERE, session, planner=QUICK))
    cut = await plan(application, PlanRequest(HERE, session, planner=ENDLESS, budget_ms=0.1 * SLOW_S * 1e3))
    assert (cut.stop_reason, cut.degraded) == ("budget", True)
    assert "unimproved" in cut.shortage
    assert any("found nothing better than what is left of the last plan" in warning for warning in cut.warnings)
