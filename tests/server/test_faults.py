"""Faults while robots are being served: engines killed and frozen, decoders killed, callers that stop reading.

What is lost is what was in progress, each call of it is told so by name, and everything else goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from presage.v1 import models_pb2, planning_pb2, sessions_pb2
from presage.values import PlannerSettings

from server.config import Settings
from server.errors import Reason, ServiceError
from server.service.application import HOUSEKEEPING_S, Application
from server.values.calls import GoalRequest, PlanRequest, SessionRequest
from tests.server.conftest import SETTINGS, START_S, changed
from tests.server.engine.test_supervisor import ENDLESS, HERE, plan, started
from tests.server.transport.grpc.test_service import goal, session
from tests.support.model import clips
from tests.support.server import linear
from tests.support.server.transports import (
    Refusal,
    Service,
    eventually,
    grpc_refusal,
    json_observation,
    open_service,
    proto_observation,
    proto_tensor,
    read_status,
    rest_refusal,
)

SEEN = linear.frame(0.2, 0.4)
GOAL = GoalRequest(image=linear.frame(0.5, 0.4))
ENDLESS_MESSAGE = models_pb2.PlannerSettings(samples=33, iterations=1000, elites=32)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def served(settings: Settings, **flags: Any) -> AsyncIterator[tuple[Application, Service]]:
    """A service with engines of its own, which a test may harm."""
    async with started(settings) as application:
        await application.wait_ready(START_S)
        async with open_service(application, **flags) as service:
            yield application, service


def kill(application: Application) -> int:
    (pid,) = application.engine_pids
    os.kill(pid, signal.SIGKILL)
    return pid


# Engines


async def test_an_engine_killed_in_the_middle_of_plans_is_told_on_both_transports_and_by_health() -> None:
    async with served(changed(models=("slow",))) as (application, service):
        goal_id = await goal(service, 0.5, 0.4, model="slow")
        session_id = await session(service, goal_id, model="slow")
        first = planning_pb2.PlanRequest(session_id=session_id, observation=proto_observation(SEEN))
        made = (await service.planning.Plan(first)).plan
        happened = planning_pb2.SurpriseRequest(
            session_id=session_id,
            observations=[proto_observation(SEEN)] * 9,
            actions=proto_tensor(np.zeros((16, 2), np.float32)),
        )
        assert (await service.planning.Surprise(happened)).steps_known == 8
        endless = planning_pb2.PlanRequest(
            session_id=session_id, observation=proto_observation(SEEN), planner=ENDLESS_MESSAGE, executed=1
        )
        body = {
            "goal_id": goal_id,
            "observation": json_observation(SEEN),
            "planner": {"samples": 33, "iterations": 1000, "elites": 32},
        }
        watch = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        by_grpc = asyncio.ensure_future(grpc_refusal(service.planning.Plan(endless)))
        by_rest = asyncio.ensure_future(rest_refusal(service.rest.post("/v1/plans", json=body)))
        await eventually(lambda: application.calls_in_hand == 2)
        killed = kill(application)
        lost: list[Refusal] = [await by_grpc, await by_rest]
        assert [refusal.reason for refusal in lost] == ["ENGINE_LOST", "ENGINE_LOST"]
        assert [refusal.status for refusal in lost] == [grpc.StatusCode.UNAVAILABLE, 503]
        assert all(refusal.retry_after_s for refusal in lost)
        assert (await watch.read()).status == NOT_SERVING
        assert (await rest_refusal(service.rest.get("/readyz"))).status == 503
        assert (await service.rest.get("/livez")).status_code == 200
        assert (await service.rest.get("/v1/models")).status_code == 200
        assert application.calls_in_hand == 0
        assert (await watch.read()).status == SERVING
        watch.cancel()
        assert killed not in application.engine_pids
        again = planning_pb2.PlanRequest(session_id=session_id, observation=proto_observation(SEEN), executed=1)
        after = (await service.planning.Plan(again)).plan
        assert after.warm_started
        assert after.seed != made.seed
        surprise = await service.planning.Surprise(happened)  # judged by what was learned before
        assert (len(surprise.scores), surprise.steps_known) == (8, 16)
        reply = await service.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=session_id))
        assert reply.session.plans == 2


async def test_kills_under_load_lose_what_is_in_progress_and_nothing_else() -> None:
    async with served(SETTINGS) as (application, service):
        goal_id = await goal(service, 0.5, 0.4)
        sessions = [await session(service, goal_id) for _ in range(8)]
        answers: Counter[str] = Counter()
        answered: Counter[str] = Counter()
        over = asyncio.Event()

        async def robot(session_id: str) -> None:
            while not over.is_set():
                request = planning_pb2.PlanRequest(session_id=session_id, observation=proto_observation(SEEN))
                try:
                    await service.planning.Plan(request, timeout=30)
                    answers["OK"] += 1
                    answered[session_id] += 1
                except grpc.aio.AioRpcError as error:
                    answers[read_status(error).reason] += 1
                    await asyncio.sleep(0.05)

        robots = [asyncio.create_task(robot(session_id)) for session_id in sessions]
        for kills in (1, 2):
            count = answers["OK"]
            await eventually(lambda count=count: answers["OK"] > count + 20)
            kill(application)
            await eventually(lambda: not application.ready)
            await asyncio.wait_for(application.wait_ready(START_S), START_S)
            assert application.engine_restarts == kills
        over.set()
        await asyncio.gather(*robots)
        assert set(answers) <= {"OK", "ENGINE_LOST", "NOT_READY"}, answers
        for session_id in sessions:
            reply = await service.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=session_id))
            assert reply.session.plans == answered[session_id]
        assert application.calls_in_hand == 0


async def test_an_engine_that_is_frozen_is_noticed_and_replaced() -> None:
    async with started(changed(models=("slow",), engine_heartbeat_timeout_s=1.0)) as application:
        await application.wait_ready(START_S)
        session_id = (await application.create_session(SessionRequest())).session_id
        goal_id = (await application.create_goal(GOAL)).goal_id
        request = PlanRequest(HERE, session_id, goal_id=goal_id, planner=ENDLESS)
        running = asyncio.create_task(plan(application, request))
        await eventually(lambda: application.calls_in_hand == 1)
        (frozen,) = application.engine_pids
        os.kill(frozen, signal.SIGSTOP)
        with pytest.raises(ServiceError) as caught:
            await asyncio.wait_for(running, 60)
        assert caught.value.reason is Reason.ENGINE_LOST
        await application.wait_ready(START_S)
        assert frozen not in application.engine_pids
        quick = replace(request, planner=PlannerSettings(samples=16, iterations=2))
        assert (await plan(application, quick)).iterations_done >= 1


async def test_an_engine_at_long_work_is_not_taken_for_stuck() -> None:
    silence_s = 0.5 * linear.PONDEROUS_S  # shorter than an iteration, far shorter than the warm-up
    async with started(changed(models=("ponderous",), engine_heartbeat_timeout_s=silence_s)) as application:
        await application.wait_ready(START_S)
        goal_id = (await application.create_goal(GOAL)).goal_id
        request = PlanRequest(HERE, goal_id=goal_id, planner=PlannerSettings(samples=16, iterations=2))
        assert (await plan(application, request)).iterations_done == 2
        await asyncio.sleep(2 * silence_s)  # idle is not stuck either
        assert application.ready
        assert application.engine_restarts == 0


async def test_an_engine_that_does_not_get_ready_is_started_again() -> None:
    async with started(changed(engine_heartbeat_timeout_s=0.1, startup_timeout_s=2.0)) as application:
        await eventually(lambda: bool(application.engine_pids))
        (first,) = application.engine_pids
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(ServiceError) as caught:
            await application.wait_ready(1.0)
        assert caught.value.reason is Reason.NOT_READY
        assert application.engine_restarts == 0  # its time to start is not over, however silent it is
        await eventually(lambda: application.engine_restarts >= 1)


# Decoders


def decoders() -> list[int]:
    """The processes of this one that decode clips."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and b"model.video.decoder_worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the decoders in /proc")
async def test_a_decoder_that_dies_costs_one_request(tmp_path: Path) -> None:
    content = clips.write(tmp_path / "clip.mp4", clips.moving_square(4, 32, 32)).read_bytes()
    before = decoders()
    async with served(SETTINGS) as (_, service):

        async def upload() -> Any:
            return await service.rest.post("/v1/embeddings/clips", files={"clip": ("clip.mp4", content)})

        assert (await upload()).status_code == 200
        found = set(decoders()) - set(before)
        for decoder in found:  # whichever is asked
            os.kill(decoder, signal.SIGSTOP)
        doomed = asyncio.create_task(upload())
        workers = service.gateway.application._clips._started()._workers
        await eventually(lambda: any(not worker.in_step for worker in workers))  # it waits for the decoder's answer
        for decoder in found:
            os.kill(decoder, signal.SIGKILL)
        refusal = (await doomed).json()
        assert (refusal["code"], refusal["errors"][0]["rule"]) == ("INVALID_CLIP", "decoder_crashed")
        assert (await upload()).status_code == 200


# Callers


@pytest.mark.asyncio(loop_scope="session")
async def test_a_thousand_sessions_expire(application: Application) -> None:
    before = application.sessions_open
    ids = [(await application.create_session(SessionRequest(ttl_s=0.2))).session_id for _ in range(1000)]
    kept = (await application.create_session(SessionRequest(ttl_s=600))).session_id
    await eventually(lambda: application.sessions_open == before + 1, patience_s=20 * HOUSEKEEPING_S)
    with pytest.raises(ServiceError) as caught:
        await application.get_session(ids[-1])
    assert caught.value.reason is Reason.UNKNOWN_SESSION
    await application.delete_session(kept)


@pytest.mark.asyncio(loop_scope="session")
async def test_calls_whose_deadline_passes_on_the_way_leave_no_trace_in_the_log(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_service(application) as service:
        made = await goal(service, 0.5, 0.4, model="slow")
        request = planning_pb2.PlanRequest(model="slow", goal_id=made, observation=proto_observation(SEEN))
        calls = [service.planning.Plan(request, timeout=0.0005 * (1 + number % 10)) for number in range(100)]
        codes = {await call.code() for call in calls}
        assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        await eventually(lambda: service.gateway.lifecycle.in_flight == 0 and application.calls_in_hand == 0)
    assert [record.message for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.asyncio(loop_scope="session")
async def test_a_stream_that_is_not_read_blocks_nobody(application: Application) -> None:
    async with open_service(application, shutdown_grace_s=0.0) as service:
        goal_id = await goal(service, 0.5, 0.4)
        stalled, lively = await session(service, goal_id), await session(service, goal_id)
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(service.addresses.grpc, options=options) as channel:
            call: Any = channel.stream_stream(
                "/presage.v1.Planning/Control",
                request_serializer=planning_pb2.ControlRequest.SerializeToString,
                response_deserializer=planning_pb2.ControlResponse.FromString,
            )()
            start = planning_pb2.ControlStart(session_id=stalled)
            await call.write(planning_pb2.ControlRequest(start=start))

            async def flood() -> None:
                beat = planning_pb2.ControlRequest(heartbeat=planning_pb2.ControlHeartbeat(nonce=1))
                seen = planning_pb2.ControlObservation(observation=proto_observation(SEEN))
                while True:
                    await call.write(beat)
                    await call.write(planning_pb2.ControlRequest(observation=seen))

            flooding = asyncio.create_task(flood())
            await asyncio.sleep(1.0)
            for _ in range(20):
                request = planning_pb2.PlanRequest(session_id=lively, observation=proto_observation(SEEN))
                assert (await service.planning.Plan(request, timeout=30)).plan.iterations_done >= 1
            assert (await service.rest.get("/readyz")).status_code == 200
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            call.cancel()
        await eventually(lambda: service.gateway.lifecycle.in_flight == 0)


@pytest.mark.asyncio(loop_scope="session")
async def test_an_answer_that_is_not_read_blocks_nobody(application: Application) -> None:
    """A thousand small answers of one connection, pipelined and left in the socket."""
    async with open_service(application, shutdown_grace_s=0.0) as service:
        host, _, port = service.addresses.rest.removeprefix("http://").partition(":")
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            lazy.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(lazy, (host, int(port)))
            asks = asyncio.create_task(loop.sock_sendall(lazy, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1000))
            await asyncio.sleep(1.0)
            for _ in range(10):
                assert (await service.rest.get("/v1/models")).status_code == 200
            asks.cancel()
            await asyncio.gather(asks, return_exceptions=True)
        assert (await service.rest.get("/readyz")).status_code == 200
