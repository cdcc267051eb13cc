"""A reply that its caller does not take is given up after a time, on both transports, with its connection."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from presage.v1 import goals_pb2, models_pb2, planning_pb2, sessions_pb2

from benchmarks.attacks import http2
from tests.server.conftest import START_S, changed, start
from tests.support.server import linear
from tests.support.server.transports import (
    Service,
    array_of,
    eventually,
    json_observation,
    json_tensor,
    open_service,
    proto_image,
    proto_observation,
    rest_refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = (("x-api-key", "open-sesame"),)
SEEN = linear.frame(0.2, 0.4)
LIST = "/presage.v1.Models/List"
STEPS = 65_536  # of a rollout, the most: 0.5 MB of latents


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service() -> AsyncIterator[Service]:
    application = await start(changed(iteration_s=60.0))
    await application.wait_ready(START_S)
    limits = {"stalled_s": 0.6, "reply_bytes_per_s": 1e7}
    async with open_service(application, api_keys="open-sesame", limits=limits) as opened:
        yield opened
    await application.stop(1.0)


@contextmanager
def connected(service: Service, window: int) -> Iterator[socket.socket]:
    host, _, port = service.addresses.grpc.rpartition(":")
    with http2.opened((host, int(port)), window=window) as connection:
        yield connection


async def ended(connection: socket.socket) -> bool:
    """Whether the service closes the connection."""

    def read() -> bool:
        connection.settimeout(5)
        with suppress(ConnectionError):
            while connection.recv(65_536):
                pass
        return True

    return await asyncio.to_thread(read)


async def idle(service: Service) -> None:
    await eventually(lambda: service.gateway.lifecycle.in_flight == 0)
    listing = await service.models.List(models_pb2.ModelsListRequest(), metadata=KEY)
    assert listing.models, "others are answered"


async def test_a_window_of_no_bytes_ends_after_its_time(service: Service) -> None:
    with connected(service, 0) as connection:
        connection.sendall(http2.asked(LIST, 1, b"", KEY) + http2.asked(LIST, 3, b"", KEY))
        await eventually(lambda: service.gateway.lifecycle.in_flight == 2)
        assert await ended(connection)
    await idle(service)


async def test_a_window_that_grows_by_a_byte_at_a_time_ends_too(service: Service) -> None:
    async def drip(connection: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection.sendall(http2.widened(1, 1))
                await asyncio.sleep(0.05)

    with connected(service, 0) as connection:
        connection.sendall(http2.asked(LIST, 1, b"", KEY))
        dripping = asyncio.create_task(drip(connection))
        assert await ended(connection)
        dripping.cancel()
    await idle(service)


async def test_a_control_stream_whose_plans_are_not_taken_ends(service: Service) -> None:
    made = await service.goals.Create(goals_pb2.GoalsCreateRequest(image=proto_image(SEEN)), metadata=KEY)
    goal_id = made.goal.goal_id
    asked = sessions_pb2.SessionsCreateRequest(goal_id=goal_id)
    session = (await service.sessions.Create(asked, metadata=KEY)).session.session_id
    start = planning_pb2.ControlRequest(start=planning_pb2.ControlStart(session_id=session))
    seen = planning_pb2.ControlRequest(observation=planning_pb2.ControlObservation(observation=proto_observation(SEEN)))
    with connected(service, 0) as connection:
        whole = http2.call("/presage.v1.Planning/Control", 1, KEY)
        whole += b"".join(http2.message_of(1, each.SerializeToString()) for each in (start, seen))
        connection.sendall(whole)
        await eventually(lambda: service.gateway.lifecycle.in_flight == 1)
        assert await ended(connection)
    await idle(service)


async def test_probes_whose_answers_are_not_taken_hold_no_place(service: Service) -> None:
    asked = health_pb2.HealthCheckRequest().SerializeToString()
    with connected(service, 0) as connection:
        for stream in range(1, 41, 2):
            connection.sendall(http2.asked("/grpc.health.v1.Health/Check", stream, asked))
        assert await ended(connection)
    await eventually(lambda: len(service.gateway.places.probes) == 0)


async def test_a_large_reply_over_rest_is_whole_and_in_every_format(service: Service) -> None:
    actions = np.zeros((2 * STEPS, 2), np.float32)
    body = {"observation": json_observation(SEEN), "actions": json_tensor(actions)}
    replies = [
        await service.rest.post("/v1/rollouts", json=body, headers={**dict(KEY), "accept": accept})
        for accept in ("application/json", "application/x-npy", "application/x-protobuf")
    ]
    assert [reply.status_code for reply in replies] == [200] * 3, replies[0].text[:300]
    told, file, message = replies
    latents = array_of(told.json()["latents"])
    assert latents.shape == (STEPS, 2)
    assert np.allclose(latents, latents[0], atol=1e-5), "nothing moves it"
    head = file.content.index(b"\n") + 1
    assert file.content[:6] == b"\x93NUMPY"
    assert np.array_equal(np.frombuffer(file.content[head:], "<f4").reshape(STEPS, 2), latents)
    assert np.array_equal(array_of(planning_pb2.RolloutResponse.FromString(message.content).latents), latents)
    assert service.gateway.shares.held("bytes", "default") == 0
    lists = await rest_refusal(
        service.rest.post("/v1/rollouts", params={"tensors": "lists"}, json=body, headers=dict(KEY))
    )
    assert (lists.status, lists.reason, lists.field) == (413, "TOO_LARGE", "tensors")


@pytest.mark.parametrize("drips", [False, True])
async def test_a_reply_over_rest_that_is_not_taken_ends_with_its_connection(service: Service, drips: bool) -> None:
    actions = np.zeros((2 * STEPS, 2), np.float32)
    body = json.dumps({"observation": json_observation(SEEN), "actions": json_tensor(actions)}).encode()
    host, _, port = service.addresses.rest.removeprefix("http://").rpartition(":")
    head = (
        "POST /v1/rollouts HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: open-sesame\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()

    def ask(connection: socket.socket) -> None:
        """Again and again, more than the system keeps of the replies."""
        with suppress(OSError):
            for _ in range(40):
                connection.sendall(head + body)

    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect((host, int(port)))
        asking = asyncio.create_task(asyncio.to_thread(ask, connection))
        while not asking.done():
            if drips:
                with suppress(OSError):
                    connection.recv(16)
            await asyncio.sleep(0.05)
        await idle(service)
        assert service.gateway.shares.held("bytes", "default") == 0
        assert await ended(connection)
