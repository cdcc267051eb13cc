"""Connections before any request is admitted: what is endless ends, what is silent makes room for whoever asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
import structlog

from server.service.application import Application
from tests.support.server.transports import Service, eventually, open_service

pytestmark = pytest.mark.asyncio(loop_scope="session")

LIMITS = {"header_s": 0.5, "connections_per_address": 40, "stalled_s": 1.0}
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(application: Application) -> AsyncIterator[Service]:
    async with open_service(application, api_keys="open-sesame", limits=LIMITS) as opened:
        yield opened


async def connected(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = service.addresses.rest.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def poured(service: Service, *pieces: bytes, most: int = 4 * 2**20) -> tuple[bytes, int]:
    """What is answered to the first piece and then the second again and again, and how much of that was taken."""
    reader, writer = await connected(service)
    first, again = pieces
    taken = 0
    try:
        writer.write(first)
        while taken < most:
            writer.write(again)
            await asyncio.wait_for(writer.drain(), 5)
            taken += len(again)
    except OSError:
        pass
    try:
        answer = await asyncio.wait_for(reader.read(-1), 5)
    except OSError:
        answer = b""
    writer.close()
    return answer, taken


def refusal(answer: bytes) -> dict[str, object]:
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"431" in head.split(b"\r\n")[0]
    assert b"connection: close" in head.lower()
    problem: dict[str, object] = json.loads(content)
    assert problem["code"] == "HEAD_TOO_LARGE"
    return problem


ENDLESS = {
    "headers": (GET, b"X-A: %s\r\n" % (b"a" * 1000) * 64),
    "one header": (GET + b"X-A: ", b"a" * 65536),
    "one name": (GET, b"a" * 65536),
    "a path": (b"GET /", b"a" * 65536),
    "a method": (b"", b"A" * 65536),
    "many small headers": (GET, b"a:b\r\n" * 10_000),
    "chunk extensions": (
        b"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"a" * 65536,
    ),
    "trailers after a refusal": (
        b"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"X-A: %s\r\n" % (b"a" * 1000) * 64,
    ),
    "a body after a refusal": (
        b"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000000\r\n\r\n",
        b"a" * 65536,
    ),
    "requests in a row": (b"", (GET + b"\r\n") * 1000),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_does_not_end_is_ended(service: Service, name: str) -> None:
    _, taken = await poured(service, *ENDLESS[name], most=64 * 2**20)
    assert taken < 16 * 2**20  # what the sockets between hold
    assert (await service.rest.get("/livez")).status_code == 200


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (GET + b"X-A: %s\r\n\r\n" % (b"a" * 40_000), "headers"),
        (GET + b"a: b\r\n" * 200 + b"\r\n", "headers"),
        (b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"a" * 9000), "path"),
    ],
)
async def test_a_head_beyond_its_limits_is_refused_by_name(service: Service, request_: bytes, field: str) -> None:
    reader, writer = await connected(service)
    writer.write(request_)
    problem = refusal(await asyncio.wait_for(reader.read(-1), 5))
    assert problem["errors"][0]["field"] == field  # type: ignore[index]
    writer.close()


async def test_a_head_within_its_limits_is_served_in_pieces_too(service: Service) -> None:
    reader, writer = await connected(service)
    for piece in (GET, b"X-A: %s\r\n" % (b"a" * 20_000), b"a: b\r\n" * 90, b"\r\n"):
        writer.write(piece)
        await asyncio.sleep(0.02)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize("said", [b"", b"G", GET])
async def test_a_connection_that_sends_no_head_is_closed(service: Service, said: bytes) -> None:
    reader, writer = await connected(service)
    writer.write(said)
    assert await asyncio.wait_for(_end_of(reader), 5) == b""
    writer.close()


async def _end_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(-1)
    except OSError:
        return b""


async def test_silent_connections_make_room_for_whoever_asks(service: Service) -> None:
    kept = await connected(service)
    kept[1].write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: open-sesame\r\n\r\n")
    assert (await kept[0].readline()).startswith(b"HTTP/1.1 200")
    silent = []
    for _ in range(120):
        silent.append(await connected(service))
        if len(silent) % 10 == 0:
            reader, writer = await connected(service)
            writer.write(GET + b"\r\n")
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
            writer.close()
    assert len(service.gateway.connections) <= 40
    assert service.gateway.connections.refused >= 60
    kept[1].write(GET + b"\r\n")  # whoever showed a key is let go last
    await asyncio.wait_for(kept[0].readuntil(b'{"status":"live"}'), 5)
    for _, writer in silent:
        writer.close()
    kept[1].close()
    await eventually(lambda: len(service.gateway.connections) <= 2)


async def test_a_reply_that_nobody_takes_is_given_up(service: Service) -> None:
    _, writer = await connected(service)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(100):
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: open-sesame\r\n\r\n")
        await asyncio.sleep(0.005)
    open_now = len(service.gateway.connections)
    await eventually(lambda: len(service.gateway.connections) < open_now)
    writer.close()


async def test_a_caller_that_leaves_in_the_middle_of_a_body_is_no_error_of_the_service(service: Service) -> None:
    _, writer = await connected(service)
    head = b"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: open-sesame\r\nContent-Type: application/json\r\n"
    with structlog.testing.capture_logs() as logs:
        writer.write(head + b"Content-Length: 100\r\n\r\n{")
        await asyncio.sleep(0.2)
        writer.close()
        await eventually(lambda: any(entry.get("rpc") == "Planning.Plan" for entry in logs))
    assert [entry["code"] for entry in logs if "code" in entry] == ["CANCELLED"]
