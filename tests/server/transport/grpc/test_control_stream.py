"""The control stream over a real channel: the newest observation wins, and no single failure ends the loop."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from presage.v1 import planning_pb2, sessions_pb2

from server.service.application import Application
from server.values.calls import Frame
from tests.server.transport.grpc.test_service import goal, session
from tests.support.server import linear
from tests.support.server.transports import Service, array_of, eventually, grpc_refusal, open_service, proto_observation

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIDDLE = linear.frame(0.5, 0.5)


async def start(service: Service, session_id: str, **options: Any) -> Any:
    call = service.planning.Control()
    await call.write(planning_pb2.ControlRequest(start=planning_pb2.ControlStart(session_id=session_id, **options)))
    return call


async def observe(call: Any, frame: Frame, sequence: int = 0, **options: Any) -> None:
    seen = planning_pb2.ControlObservation(observation=proto_observation(frame, sequence), **options)
    await call.write(planning_pb2.ControlRequest(observation=seen))


async def read(call: Any, kind: str) -> Any:
    reply = await asyncio.wait_for(call.read(), 30)
    assert reply.WhichOneof("message") == kind, reply
    return getattr(reply, kind)


async def test_each_observation_is_answered_by_a_plan_that_names_it(service: Service) -> None:
    call = await start(service, await session(service, await goal(service, 0.8, 0.5)))
    for sequence in (3, 9):
        await observe(call, MIDDLE, sequence, executed=2 if sequence == 9 else 0)
        answered = await read(call, "plan")
        assert answered.plan.observation_sequence == sequence
        assert list(answered.skipped_sequences) == []
        assert answered.plan.warm_started == (sequence == 9)
    await call.done_writing()
    assert await asyncio.wait_for(call.read(), 30) is grpc.aio.EOF


async def test_the_newest_observation_wins_and_the_skipped_ones_are_named(service: Service) -> None:
    call = await start(service, await session(service, await goal(service, 0.8, 0.5, "slow"), "slow"))
    await observe(call, MIDDLE)
    await eventually(lambda: service.gateway.application.calls_in_hand == 1)  # it is being planned for
    for _ in range(4):
        await observe(call, MIDDLE)
    first, second = await read(call, "plan"), await read(call, "plan")
    assert (first.plan.observation_sequence, second.plan.observation_sequence) == (1, 5)
    assert [*first.skipped_sequences, *second.skipped_sequences] == [2, 3, 4]
    call.cancel()


@pytest.mark.parametrize("is_named", [False, True])
async def test_what_was_executed_counts_from_the_plan_the_robot_had(service: Service, is_named: bool) -> None:
    call = await start(service, await session(service, await goal(service, 0.8, 0.5, "slow"), "slow"))
    await observe(call, MIDDLE)
    had = (await read(call, "plan")).plan
    await observe(call, MIDDLE)
    await eventually(lambda: service.gateway.application.calls_in_hand == 1)
    named = had.observation_sequence if is_named else 0
    await observe(call, MIDDLE, executed=2, committed=2, plan_sequence=named)  # before the plan being made is there
    between, late = (await read(call, "plan")).plan, (await read(call, "plan")).plan
    assert (had.observation_sequence, between.observation_sequence, late.observation_sequence) == (1, 2, 3)
    np.testing.assert_array_equal(array_of(late.actions)[:2], array_of(had.actions)[2:4])
    assert late.warm_started
    call.cancel()


async def test_a_plan_that_is_not_known_fails_its_observation_alone(service: Service) -> None:
    call = await start(service, await session(service, await goal(service, 0.8, 0.5)))
    await observe(call, MIDDLE)
    await read(call, "plan")
    await observe(call, MIDDLE, executed=1, plan_sequence=77)
    assert "plan_sequence must be" in (await read(call, "error")).message
    await observe(call, MIDDLE, executed=1)
    assert (await read(call, "plan")).plan.warm_started
    call.cancel()


async def test_a_loop_goes_from_stage_to_stage(service: Service) -> None:
    first, second = await goal(service, 0.5, 0.5), await goal(service, 0.8, 0.5)
    stages = [sessions_pb2.GoalStage(goal_id=first, switch_below=1e-3), sessions_pb2.GoalStage(goal_id=second)]
    made = await service.sessions.Create(sessions_pb2.SessionsCreateRequest(stages=stages))
    assert (made.session.goal_id, made.session.stage) == (first, 0)
    call = await start(service, made.session.session_id)
    for right, pursued in ((0.2, first), (0.5, second), (0.5, second)):
        await observe(call, linear.frame(right, 0.5))
        plan = (await read(call, "plan")).plan
        assert plan.provenance.goal_id == pursued
        assert plan.warm_started == (pursued == second and not plan.warnings)
    told = (await service.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=made.session.session_id))).session
    assert (told.goal_id, told.stage) == (second, 1)
    call.cancel()


async def test_a_new_goal_counts_for_the_observations_after_it(service: Service) -> None:
    right, left = await goal(service, 0.9, 0.5), await goal(service, 0.1, 0.5)
    call = await start(service, await session(service, right))
    await observe(call, MIDDLE)
    toward_right = await read(call, "plan")
    await call.write(planning_pb2.ControlRequest(goal=planning_pb2.ControlGoal(goal_id=left)))
    await observe(call, MIDDLE)
    toward_left = await read(call, "plan")
    assert (toward_right.plan.provenance.goal_id, toward_left.plan.provenance.goal_id) == (right, left)
    assert array_of(toward_right.plan.actions)[0, 0] > 0 > array_of(toward_left.plan.actions)[0, 0]
    call.cancel()


async def test_heartbeats_are_echoed_even_while_a_plan_is_made(service: Service) -> None:
    call = await start(service, await session(service, await goal(service, 0.8, 0.5, "slow"), "slow"))
    await observe(call, MIDDLE)
    await eventually(lambda: service.gateway.application.calls_in_hand == 1)
    await call.write(planning_pb2.ControlRequest(heartbeat=planning_pb2.ControlHeartbeat(nonce=42)))
    assert (await read(call, "heartbeat")).nonce == 42
    await read(call, "plan")
    call.cancel()


async def test_an_observation_that_cannot_be_used_is_told_and_the_loop_goes_on(service: Service) -> None:
    call = await start(service, await session(service, await goal(service, 0.8, 0.5)))
    await observe(call, linear.frame(0.5, 0.5)[:8], 1)
    refused = await read(call, "error")
    assert (refused.reason, refused.observation_sequence) == ("IMAGE_SIZE", 1)
    assert "observation.images[0]" in refused.message
    await call.write(planning_pb2.ControlRequest(goal=planning_pb2.ControlGoal(goal_id="nothing")))
    await observe(call, MIDDLE, 2)
    assert (await read(call, "error")).reason == "UNKNOWN_GOAL"
    await call.write(planning_pb2.ControlRequest(start=planning_pb2.ControlStart(session_id="again")))
    assert (await read(call, "error")).reason == "INVALID_FIELD"
    await call.write(planning_pb2.ControlRequest(goal=planning_pb2.ControlGoal(goal_id=await goal(service, 0.8, 0.5))))
    await observe(call, MIDDLE, 3)
    assert (await read(call, "plan")).plan.observation_sequence == 3
    await observe(call, MIDDLE, 3)
    assert (await read(call, "error")).reason == "STALE_OBSERVATION"
    call.cancel()


async def test_a_deleted_session_is_told_by_heartbeats_too(service: Service) -> None:
    name = await session(service, await goal(service, 0.8, 0.5))
    call = await start(service, name)
    await service.sessions.Delete(sessions_pb2.SessionsDeleteRequest(session_id=name))
    await call.write(planning_pb2.ControlRequest(heartbeat=planning_pb2.ControlHeartbeat(nonce=1)))
    await read(call, "heartbeat")
    assert (await read(call, "error")).reason == "UNKNOWN_SESSION"
    call.cancel()


async def test_settings_of_the_start_hold_for_every_plan(service: Service) -> None:
    planner = planning_pb2.ControlStart().planner
    planner.samples, planner.iterations, planner.elites, planner.horizon = 16, 2, 4, 2
    name = await session(service, await goal(service, 0.8, 0.5))
    call = await start(service, name, planner=planner, budget_ms=60_000)
    for _ in range(2):
        await observe(call, MIDDLE, seed=5)
        plan = (await read(call, "plan")).plan
        assert (plan.iterations_done, plan.seed, plan.provenance.planner.samples) == (2, 5, 16)
        assert array_of(plan.actions).shape == (2 * linear.ACTION.block, 2)
    call.cancel()


async def test_the_session_goes_on_after_a_reconnect(service: Service) -> None:
    name = await session(service, await goal(service, 0.8, 0.5))
    for sequence in (1, 2):
        call = await start(service, name)
        await observe(call, MIDDLE, executed=1 if sequence == 2 else 0)
        plan = (await read(call, "plan")).plan
        assert (plan.observation_sequence, plan.warm_started) == (sequence, sequence == 2)
        call.cancel()


async def test_a_robot_that_disconnects_frees_the_engine(service: Service) -> None:
    planner = planning_pb2.ControlStart().planner
    planner.iterations, planner.elites = 900, 32
    name = await session(service, await goal(service, 0.5, 0.5, "slow"), "slow")
    call = await start(service, name, planner=planner)
    await observe(call, MIDDLE)
    await eventually(lambda: service.gateway.application.calls_in_hand == 1)
    call.cancel()
    await eventually(lambda: service.gateway.application.calls_in_hand == 0, patience_s=10)
    await eventually(lambda: service.gateway.lifecycle.in_flight == 0)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (planning_pb2.ControlRequest(heartbeat=planning_pb2.ControlHeartbeat(nonce=1)), "INVALID_REQUEST"),
        (planning_pb2.ControlRequest(), "INVALID_REQUEST"),
        (planning_pb2.ControlRequest(start=planning_pb2.ControlStart()), "INVALID_FIELD"),
        (planning_pb2.ControlRequest(start=planning_pb2.ControlStart(session_id="nobody")), "UNKNOWN_SESSION"),
    ],
)
async def test_a_loop_must_open_with_a_session(
    service: Service, first: planning_pb2.ControlRequest, reason: str
) -> None:
    call = service.planning.Control()
    await call.write(first)
    assert (await grpc_refusal(call.read())).reason == reason


async def test_draining_lets_the_plan_in_progress_out_and_ends_the_loop(application: Application) -> None:
    async with open_service(application) as service:
        call = await start(service, await session(service, await goal(service, 0.8, 0.5, "slow"), "slow"))
        await observe(call, MIDDLE)
        await eventually(lambda: service.gateway.application.calls_in_hand == 1)
        service.gateway.lifecycle.draining.set()
        await read(call, "plan")
        assert (await grpc_refusal(call.read())).reason == "NOT_READY"
