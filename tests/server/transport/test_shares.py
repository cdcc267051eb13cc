"""No caller takes it all: what one key holds leaves room for another, and saying nothing holds nothing for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import httpx
import pytest
from presage.v1 import embeddings_pb2, models_pb2, planning_pb2, sessions_pb2

from server.config import Limits, share_of
from server.service.application import Application
from server.transport.callers.shares import Shares
from tests.server.transport.grpc.test_service import goal
from tests.server.transport.test_isolation import ANNA, BORIS, opened, shown, told
from tests.support.server import linear
from tests.support.server.transports import (
    Service,
    clip_messages,
    eventually,
    grpc_refusal,
    json_image,
    open_service,
    proto_observation,
    rest_refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

TWO = [ANNA, BORIS]
PLAN = "/presage.v1.Planning/Plan"


async def connected(service: Service, headers: bytes) -> asyncio.StreamWriter:
    """A connection over REST that has sent its headers, and never sends a body."""
    host, _, port = service.addresses.rest.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n" + headers + b"\r\n{")
    return writer


async def test_bodies_that_never_come_hold_one_keys_share_and_not_for_long(application: Application) -> None:
    limits = {"concurrent_calls": 8, "message_s": 2.0}
    async with open_service(application, api_keys=TWO, limits=limits) as service:
        held = [await connected(service, f"X-Api-Key: {ANNA}\r\n".encode()) for _ in range(8)]
        await eventually(lambda: service.gateway.lifecycle.in_flight == 4)
        refused = await rest_refusal(service.rest.get("/v1/models", headers=told(ANNA)))
        assert (refused.status, refused.reason, refused.field) == (429, "OVERLOADED", "calls")
        assert refused.rule == "must be at most 4 for one caller"
        assert (await service.rest.get("/v1/models", headers=told(BORIS))).status_code == 200
        await service.models.List(models_pb2.ModelsListRequest(), metadata=shown(BORIS))
        await eventually(lambda: service.gateway.lifecycle.in_flight == 0)
        assert (await service.rest.get("/v1/models", headers=told(ANNA))).status_code == 200
        for writer in held:
            writer.close()


async def test_grpc_calls_whose_message_never_comes_are_ended_by_name(application: Application) -> None:
    async with open_service(application, api_keys=TWO, limits={"concurrent_calls": 8, "message_s": 0.5}) as service:
        silent = [service.channel.stream_unary(PLAN)(metadata=shown(ANNA)) for _ in range(4)]
        await eventually(lambda: service.gateway.lifecycle.in_flight == 4)
        listing = models_pb2.ModelsListRequest()
        assert (await grpc_refusal(service.models.List(listing, metadata=shown(ANNA)))).reason == "OVERLOADED"
        await service.models.List(listing, metadata=shown(BORIS))
        for call in silent:
            ended = await grpc_refusal(call)
            assert (ended.reason, ended.field, ended.rule) == ("DEADLINE", "message", "must arrive within 0.5 s")


async def test_a_body_that_drips_is_ended_by_name(application: Application) -> None:
    async def dripping() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" "
            await asyncio.sleep(0.05)

    async with open_service(application, limits={"message_s": 0.5}) as service:
        call = service.rest.post("/v1/plans", content=dripping(), headers={"content-type": "application/json"})
        ended = await rest_refusal(call)
        assert (ended.reason, ended.field, ended.rule) == ("DEADLINE", "body", "must arrive within 0.5 s")


async def test_uploads_of_one_key_leave_slots_for_another(application: Application) -> None:
    go_on = asyncio.Event()

    async def waiting() -> AsyncIterator[embeddings_pb2.EmbedClipRequest]:
        for message in clip_messages(b"0123456789", chunk=5):
            yield message
            await go_on.wait()

    async with open_service(application, api_keys=TWO) as service:
        held = [service.embeddings.EmbedClip(waiting(), metadata=shown(ANNA)) for _ in range(2)]
        await eventually(lambda: service.gateway.uploads.active == 2)
        third = await grpc_refusal(service.embeddings.EmbedClip(clip_messages(b"0123"), metadata=shown(ANNA)))
        assert (third.reason, third.field) == ("OVERLOADED", "uploads")
        other = await grpc_refusal(service.embeddings.EmbedClip(clip_messages(b"0123"), metadata=shown(BORIS)))
        assert other.reason == "INVALID_CLIP", "it was received and looked at"
        go_on.set()
        assert [(await grpc_refusal(call)).reason for call in held] == ["INVALID_CLIP"] * 2


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({"upload_idle_s": 0.4, "upload_bytes_per_s": 100.0}, "must arrive with at least 100 bytes per second"),
        ({"upload_s": 0.5}, "must arrive within 0.5 s"),
    ],
)
async def test_an_upload_that_drips_loses_its_slot(application: Application, limits: Any, rule: str) -> None:
    async def dripping() -> AsyncIterator[embeddings_pb2.EmbedClipRequest]:
        for message in clip_messages(b"0123456789" * 20, chunk=1):
            yield message
            await asyncio.sleep(0.05)

    async def body() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="clip"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield b"0"
            await asyncio.sleep(0.05)

    async with open_service(application, limits=limits) as service:
        ended = await grpc_refusal(service.embeddings.EmbedClip(dripping()))
        assert (ended.reason, ended.field, ended.rule) == ("DEADLINE", "chunk", rule)
        headers = {"content-type": "multipart/form-data; boundary=x"}
        over_rest = await rest_refusal(service.rest.post("/v1/embeddings/clips", content=body(), headers=headers))
        assert (over_rest.reason, over_rest.field, over_rest.rule) == ("DEADLINE", "body", rule)
        assert service.gateway.uploads.active == 0


async def test_streams_of_one_key_leave_room_for_its_calls_and_for_others(application: Application) -> None:
    limits = {"streams_per_key": 2, "message_s": 0.5}
    async with open_service(application, api_keys=TWO, limits=limits) as service:
        name = await opened(service, ANNA)
        start = planning_pb2.ControlRequest(start=planning_pb2.ControlStart(session_id=name))
        streams = [service.planning.Control(metadata=shown(ANNA)) for _ in range(2)]
        for stream in streams:
            await stream.write(start)
            await stream.write(planning_pb2.ControlRequest(heartbeat=planning_pb2.ControlHeartbeat()))
            assert (await stream.read()).WhichOneof("message") == "heartbeat"
        refused = await grpc_refusal(service.planning.Control(metadata=shown(ANNA)).read())
        assert (refused.reason, refused.field) == ("OVERLOADED", "streams")
        silent = service.planning.Control(metadata=shown(BORIS))
        ended = await grpc_refusal(silent.read())
        assert (ended.reason, ended.rule) == ("DEADLINE", "must go on arriving at least every 0.5 s")
        for stream in streams:
            stream.cancel()


async def test_a_stream_that_falls_silent_is_ended_by_name(application: Application) -> None:
    async with open_service(application, limits={"stream_idle_s": 0.3}) as service:
        made = await service.sessions.Create(sessions_pb2.SessionsCreateRequest())
        stream = service.planning.Control()
        start = planning_pb2.ControlStart(session_id=made.session.session_id)
        await stream.write(planning_pb2.ControlRequest(start=start))
        ended = await grpc_refusal(stream.read())
        assert (ended.reason, ended.rule) == ("DEADLINE", "must go on arriving at least every 0.3 s")


async def test_bytes_of_one_keys_requests_leave_room_for_anothers(application: Application) -> None:
    async with open_service(application, api_keys=TWO, limits={"bytes_per_key": 20_000}) as service:
        large = {"image": json_image(linear.frame(0.2, 0.2)), "model": "x" * 30_000}
        refused = await rest_refusal(service.rest.post("/v1/goals", json=large, headers=told(ANNA)))
        assert (refused.reason, refused.field) == ("OVERLOADED", "bytes")
        ask = models_pb2.ModelsGetRequest(name="x" * 30_000)
        assert (await grpc_refusal(service.models.Get(ask, metadata=shown(ANNA)))).field == "bytes"
        small = {"image": json_image(linear.frame(0.2, 0.2))}
        for key in TWO:
            assert (await service.rest.post("/v1/goals", json=small, headers=told(key))).status_code == 201


async def test_a_call_that_leaves_gives_its_share_back(application: Application) -> None:
    async with open_service(application, api_keys=TWO) as service:
        for _ in range(3):
            with suppress(httpx.TimeoutException):
                await service.rest.post("/v1/plans", json={"observation": 1}, headers=told(ANNA), timeout=0.001)
            call = service.planning.Plan(planning_pb2.PlanRequest(), metadata=shown(ANNA), timeout=0.001)
            with suppress(grpc.aio.AioRpcError):
                await call
        await eventually(lambda: service.gateway.lifecycle.in_flight == 0)
        await eventually(lambda: not service.gateway.shares._held)


async def test_a_single_key_may_have_all_there_is_but_sessions_have_room_for_others(application: Application) -> None:
    async with open_service(application, api_keys=[ANNA]) as alone, open_service(application, api_keys=TWO) as shared:
        assert alone.gateway.shares.most("calls") == 256
        assert shared.gateway.shares.most("calls") == 128
    assert Shares(Limits(), lambda: None).most("uploads") == 2
    assert [share_of(most, 0) for most in (1, 2, 5)] == [1, 1, 3]


async def test_a_plan_over_grpc_is_still_one_message_and_one_answer(service: Service) -> None:
    goal_id = await goal(service, 0.4, 0.4)
    ask = planning_pb2.PlanRequest(goal_id=goal_id, observation=proto_observation(linear.frame(0.5, 0.5)), seed=3)
    by_message = (await service.planning.Plan(ask)).plan
    raw = await service.channel.unary_unary(PLAN)(ask.SerializeToString())
    assert planning_pb2.PlanResponse.FromString(raw).plan.actions == by_message.actions
    empty = service.channel.stream_unary(PLAN)(iter([]))
    assert (await grpc_refusal(empty)).rule == "must be sent"
