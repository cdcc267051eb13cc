"""Parser processes: what takes long is ended at the caller's deadline, what breaks one costs one request."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from PIL import Image

from server.errors import Faults, Reason, ServiceError
from server.transport import parsers
from server.transport.parsers import Parsers
from server.values import images
from server.values.caller import Caller, working_for
from tests.support.server.transports import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process]

PIXELS = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
CAP = 4096 * 4096


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[Parsers]:
    made = Parsers(workers=1)
    await made.start()
    yield made
    await made.close()


def saved(pixels: NDArray[np.uint8], container: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, container, **options)
    return buffer.getvalue()


def slow_picture() -> bytes:
    """A progressive JPEG within every limit on its header that takes a second or so to decode."""
    jpeg = saved(np.tile(PIXELS, (6, 4, 1)), "JPEG", progressive=True, quality=30)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * (64 - jpeg.count(b"\xff\xda")) + b"\xff\xd9"


def elsewhere(pool: Parsers, deadline: float | None = None) -> images.Elsewhere:
    async def decode(files: Any, max_pixels: int) -> Any:
        return await parsers.pictures(pool, deadline, files, max_pixels)

    return decode


async def test_a_picture_comes_out_the_same_wherever_it_is_decoded(pool: Parsers) -> None:
    sources = [("a", saved(PIXELS)), ("b", PIXELS[:8]), ("c", saved(PIXELS[::-1], "WEBP", lossless=True))]
    here = await images.decode(sources, CAP)
    there = await images.decode(sources, CAP, elsewhere(pool))
    assert len(there) == 3
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)


async def test_a_fault_in_a_picture_is_told_with_its_field(pool: Parsers) -> None:
    broken = [("images[0]", saved(PIXELS)), ("images[1]", saved(PIXELS)[:-2000])]
    with pytest.raises(ServiceError) as caught:
        await images.decode(broken, CAP, elsewhere(pool))
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_IMAGE, "images[1]")


async def test_a_picture_that_takes_long_is_ended_at_the_deadline_and_the_loop_goes_on_meanwhile(
    pool: Parsers,
) -> None:
    turns, done = 0, asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0.01)

    counting = asyncio.create_task(count())
    content = slow_picture()
    before = pool._slots[0]._process
    with pytest.raises(ServiceError) as caught:
        await images.decode([("image", content)], CAP, elsewhere(pool, time.monotonic() + 0.3))
    done.set()
    await counting
    assert caught.value.reason is Reason.DEADLINE
    assert turns >= 5
    assert before is not None
    await eventually(lambda: before.process.poll() is not None)
    assert len(await images.decode([("image", saved(PIXELS))], CAP, elsewhere(pool))) == 1


async def test_a_caller_that_goes_away_frees_the_process(pool: Parsers) -> None:
    before = pool._slots[0]._process
    task = asyncio.create_task(images.decode([("image", slow_picture())], CAP, elsewhere(pool)))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert before is not None
    await eventually(lambda: before.process.poll() is not None)
    assert len(await images.decode([("image", saved(PIXELS))], CAP, elsewhere(pool))) == 1


async def test_a_process_that_dies_costs_one_request(pool: Parsers) -> None:
    task = asyncio.create_task(images.decode([("image", slow_picture())], CAP, elsewhere(pool)))
    await asyncio.sleep(0.2)
    process = pool._slots[0]._process
    assert process is not None
    os.kill(process.process.pid, signal.SIGKILL)
    with pytest.raises(ServiceError) as caught:
        await task
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert len(await images.decode([("image", saved(PIXELS))], CAP, elsewhere(pool))) == 1


async def test_one_that_ends_late_leaves_the_next_caller_its_process(pool: Parsers) -> None:
    content = slow_picture()

    async def late() -> Reason:
        with pytest.raises(ServiceError) as caught:
            await images.decode([("image", content)], CAP, elsewhere(pool, time.monotonic() + 0.1))
        return caught.value.reason

    for _ in range(5):
        _, frames = await asyncio.gather(late(), images.decode([("b", saved(PIXELS))], CAP, elsewhere(pool)))
        np.testing.assert_array_equal(frames[0], PIXELS)


async def test_more_than_may_wait_are_refused(monkeypatch: pytest.MonkeyPatch, pool: Parsers) -> None:
    monkeypatch.setattr(parsers, "MOST_WAITING", 2)
    content = slow_picture()
    asked = [images.decode([("image", content)], CAP, elsewhere(pool, time.monotonic() + 1.0)) for _ in range(6)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    reasons = [answer.reason for answer in answers if isinstance(answer, ServiceError)]
    assert reasons.count(Reason.OVERLOADED) == 3
    assert pool._waiting == type(pool._waiting)()


async def test_memory_of_a_parser_is_bounded() -> None:
    pool = Parsers(workers=1, memory_bytes=64 * 2**20)
    try:
        with pytest.raises((Faults, ServiceError)) as caught:
            await pool.ask("json", ABOUT, [b'{"candidates":[%s0]}' % (b"0.25," * 2_000_000)], None)
        error = caught.value
        reason = error.faults[0].reason if isinstance(error, Faults) else error.reason
        assert reason in (Reason.TOO_LARGE, Reason.INVALID_REQUEST)
    finally:
        await pool.close()


ABOUT = {"kind": "ScoreRequest", "message": "presage.v1.ScoreRequest", "without": [], "known": {}}


async def test_one_caller_leaves_a_process_to_the_others() -> None:
    pool = Parsers(workers=2)
    await pool.start()
    content, quick = slow_picture(), saved(PIXELS)

    async def asked(name: str, picture: bytes, left_s: float) -> float:
        began = time.monotonic()
        with working_for(Caller(name=name)), contextlib.suppress(ServiceError):
            await images.decode([("image", picture)], CAP, elsewhere(pool, began + left_s))
        return time.monotonic() - began

    try:
        await asked("other", quick, 10)
        greedy = [asyncio.create_task(asked("greedy", content, 3.0)) for _ in range(6)]
        await asyncio.sleep(0.1)
        assert pool._held["greedy"] == 1
        assert len(pool._idle) == 1
        await asked("other", quick, 10)
        assert not any(task.done() for task in greedy)
        await asyncio.gather(*greedy)
        assert len(pool._idle) == 2
        assert not pool._held
    finally:
        await pool.close()
