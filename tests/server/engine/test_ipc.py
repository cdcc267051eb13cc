"""The wire between front and engine: whole messages, large ones in parts, ends that close."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest_asyncio

from server.engine.ipc import EngineChannel, FrontChannel
from server.engine.messages import Cancel, Done, EmbedClipJob, EncodeDone, EncodeJob, Loaded, Submit, ToEngine

Ends = tuple[FrontChannel, EngineChannel]


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[tuple[FrontChannel, EngineChannel]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    front, engine = await FrontChannel.open(ours), EngineChannel(theirs)
    yield front, engine
    front.close()
    engine.close()
    await asyncio.sleep(0)


def submit(number: int, side: int) -> Submit:
    frame = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    return Submit(number, EncodeJob("linear", (frame, frame[::-1])))


def clip(number: int, megabytes: int) -> Submit:
    return Submit(number, EmbedClipJob("linear", np.full((megabytes, 1024, 1024 // 3, 3), number, np.uint8), "pooled"))


async def receive(engine: EngineChannel, count: int) -> list[ToEngine]:
    """What the engine's end reads, on a thread as blocking as the engine is."""

    def read() -> list[ToEngine]:
        messages: list[ToEngine] = []
        while len(messages) < count:
            arrived = engine.receive(10.0)
            assert arrived is not None
            messages += arrived
        return messages

    return await asyncio.to_thread(read)


def assert_same(received: ToEngine, sent: Submit) -> None:
    assert isinstance(received, Submit)
    assert received.number == sent.number
    assert isinstance(sent.job, (EncodeJob, EmbedClipJob))
    assert isinstance(received.job, (EncodeJob, EmbedClipJob))
    for left, right in zip(received.job.frames, sent.job.frames, strict=True):
        np.testing.assert_array_equal(left, right)


async def test_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    front, engine = ends
    sent = [submit(number, side) for number, side in enumerate((1, 8, 300, 2))]
    for message in sent:
        assert front.send(message) is None
    for received, message in zip(await receive(engine, 4), sent, strict=True):
        assert_same(received, message)


async def test_arrays_arrive_writable(ends: Ends) -> None:
    front, engine = ends
    front.send(submit(1, 4))
    (received,) = await receive(engine, 1)
    assert isinstance(received, Submit)
    assert isinstance(received.job, EncodeJob)
    received.job.frames[0][:] = 0


async def test_small_messages_pass_large_ones(ends: Ends) -> None:
    front, engine = ends
    large = clip(1, megabytes=12)
    sending = front.send(large)
    assert sending is not None
    await asyncio.sleep(0)
    front.send(Cancel(7))
    received = await receive(engine, 2)
    await sending
    assert received[0] == Cancel(7)
    assert_same(received[1], large)


async def test_a_large_message_can_be_taken_back(ends: Ends) -> None:
    front, engine = ends
    sending = front.send(clip(1, megabytes=12))
    assert sending is not None
    await asyncio.sleep(0.01)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    second = clip(2, megabytes=6)
    front.send(second)
    (received,) = await receive(engine, 1)
    assert_same(received, second)


async def test_a_reader_that_does_not_read_blocks_nobody(ends: Ends) -> None:
    front, engine = ends
    for number in range(20):
        front.send(submit(number, 500))  # far more than a socket holds
    assert len(await receive(engine, 20)) == 20


async def test_results_come_back_small_and_large(ends: Ends) -> None:
    front, engine = ends
    latents = np.arange(3_000_000, dtype=np.float32).reshape(3, -1)
    writer = threading.Thread(target=lambda: [engine.send(Loaded((), 1)), engine.send(Done(1, EncodeDone(latents)))])
    writer.start()
    assert await front.receive() == Loaded((), 1)
    done = await front.receive()
    assert isinstance(done, Done)
    assert isinstance(done.result, EncodeDone)
    np.testing.assert_array_equal(done.result.latents, latents)
    writer.join()


async def test_the_front_notices_when_the_engine_is_gone(ends: Ends) -> None:
    front, engine = ends
    engine.close()
    assert await front.receive() is None
    front.send(Cancel(1))  # lost, without a word


async def test_the_engine_notices_when_the_front_is_gone(ends: Ends) -> None:
    front, engine = ends
    front.close()
    await asyncio.sleep(0.01)
    assert engine.receive(1.0) is None


def test_an_end_in_the_middle_of_a_message_is_an_end() -> None:
    ours, theirs = socket.socketpair()
    engine = EngineChannel(theirs)
    ours.sendall(b"\x01\x00\x00\x00\xff")
    ours.close()
    assert engine.receive(1.0) is None
    engine.close()


async def test_waiting_for_a_message_ends(ends: Ends) -> None:
    _, engine = ends
    assert engine.receive(0.0) == []
