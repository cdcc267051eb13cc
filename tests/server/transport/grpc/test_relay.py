"""The port of gRPC before admission: silent callers make room, strangers' bytes trickle, a robot's come as they are."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
import pytest_asyncio
import structlog
from presage.v1 import goals_pb2, models_pb2, observation_pb2

from benchmarks.attacks import http2
from server.service.application import Application
from server.transport.callers.connections import Connections
from server.transport.grpc.relay import STRANGERS_BYTES
from tests.support.server.transports import Service, eventually, grpc_refusal, open_service

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = (("x-api-key", "open-sesame"),)
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2.frame(4, 0, 0, b"")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(application: Application) -> AsyncIterator[Service]:
    limits = {"header_s": 1.0, "connections_per_address": 30}
    async with open_service(application, api_keys="open-sesame", limits=limits) as opened:
        yield opened


def connections(service: Service) -> Connections:
    assert service.gateway.relay is not None
    return service.gateway.relay.connections


async def connected(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = service.addresses.grpc.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def listed(service: Service) -> int:
    return len((await service.models.List(models_pb2.ModelsListRequest(), metadata=KEY, timeout=10)).models)


async def test_silent_connections_make_room_and_a_robot_keeps_its_own(service: Service) -> None:
    assert await listed(service) > 0
    silent = [await connected(service) for _ in range(100)]
    for _, writer in silent[::2]:
        writer.write(HELLO)
    assert len(connections(service)) <= 30
    async with grpc.aio.insecure_channel(service.addresses.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
    assert await listed(service) > 0
    for _, writer in silent:
        writer.close()
    await eventually(lambda: len(connections(service)) <= 2)


async def test_a_stranger_is_read_slowly_whatever_it_announces(service: Service) -> None:
    reader, writer = await connected(service)
    writer.write(HELLO + http2.call("/grpc.health.v1.Health/Check", 1))
    writer.write(http2.frame(0, 0, 1, b"\0" + struct.pack(">I", 30 * 2**20) + bytes(8000)))
    sent = 0
    try:
        for _ in range(2000):
            writer.write(http2.frame(6, 0, 0, bytes(8)) * 256)  # pings, which no window holds back
            sent += 17 * 256
            await asyncio.wait_for(writer.drain(), 0.5)
    except (asyncio.TimeoutError, OSError):
        pass
    assert sent < STRANGERS_BYTES + 8 * 2**20  # what the sockets between hold
    assert await listed(service) > 0
    writer.close()
    del reader


async def test_a_large_message_of_a_robot_is_read_at_once(service: Service) -> None:
    image = observation_pb2.Image(encoded=np.random.default_rng(0).bytes(4 * 2**20))
    refused = await asyncio.wait_for(
        grpc_refusal(service.goals.Create(goals_pb2.GoalsCreateRequest(image=image), metadata=KEY)), 20
    )
    assert refused.reason == "INVALID_IMAGE"


async def test_the_log_names_the_callers_own_address(service: Service) -> None:
    with structlog.testing.capture_logs() as logs:
        await grpc_refusal(service.models.List(models_pb2.ModelsListRequest()))
    (entry,) = [entry for entry in logs if entry.get("code") == "UNAUTHENTICATED"]
    assert entry["peer"].startswith("127.0.0.1:")
