"""Clips on their way up over real gRPC, in chunks with a digest, and uploads that end early."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import presage
import pytest

from tests.support.client.protocol_behavior import Refusal
from tests.support.client.protocol_server import Running


def test_a_clip_goes_up_in_chunks_with_its_digest(client: Any, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(np.random.RandomState(0).bytes((5 << 19) + 17))
    told = []
    reply = client.embed_clip(
        path, "pooled", frames=4, step_distances=True, progress=lambda sent, total: told.append((sent, total))
    )
    size = path.stat().st_size
    assert server.behavior.chunks == [1 << 20, 1 << 20, (1 << 19) + 17]
    assert told == [(0, size), (1 << 20, size), (2 << 20, size), (size, size)]
    assert reply.embedding.tolist() == [size] * 4
    assert (reply.frame_times_s, reply.step_distances, reply.goal_distances) == ((0.0, 0.5), (1.5,), ())
    assert server.behavior.requests[-1].sampling.frames == 4
    assert server.behavior.requests[-1].step_distances


def test_a_refused_clip_says_why_before_it_is_all_sent(client: Any, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(8 << 20))
    server.behavior.refusals.append(Refusal("RESOURCE_EXHAUSTED", "TOO_LARGE", "header.total_bytes must be at most 9"))
    with pytest.raises(presage.InvalidRequest, match="at most 9") as caught:
        client.embed_clip(path)
    assert caught.value.reason == "TOO_LARGE"


def test_closing_ends_an_upload(client: Any, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(64 << 20))
    started, caught = threading.Event(), []

    def upload() -> None:
        try:
            client.embed_clip(path, progress=lambda sent, total: started.set() or time.sleep(0.02))
        except presage.PresageError as error:
            caught.append(error)

    thread = threading.Thread(target=upload)
    thread.start()
    assert started.wait(20.0)
    client.close()
    thread.join(20.0)
    assert [type(error) for error in caught] == [presage.Cancelled]


def test_what_fails_while_a_clip_is_read_reaches_the_caller(client: Any, tmp_path: Path) -> None:
    def broken(sent: int, total: int) -> None:
        raise KeyError("the progress bar fell over")

    path = tmp_path / "clip.mp4"
    path.write_bytes(b"12345")
    with pytest.raises(KeyError, match="fell over"):
        client.embed_clip(path, progress=broken)
    with pytest.raises(FileNotFoundError):
        client.embed_clip(tmp_path / "missing.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(presage.InvalidRequest, match="INVALID_CLIP"):
        client.embed_clip(tmp_path / "empty.mp4")
    for wrong in ({"fps": 0.0}, {"frames": 0}, {"fps": 1.0, "frames": 1}, {"kind": "mean"}):
        with pytest.raises(presage.InvalidRequest):
            client.embed_clip(path, **wrong)


def test_a_clip_that_changes_under_way_is_refused(client: Any, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(3 << 20))
    with pytest.raises(presage.InvalidRequest, match="CLIP_MISMATCH"):
        client.embed_clip(path, progress=lambda sent, total: path.write_bytes(b"1" * (2 << 20)))


async def test_a_cancelled_upload_stops_sending(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(64 << 20))
    loop, started = asyncio.get_running_loop(), asyncio.Event()

    def progress(sent: int, total: int) -> None:
        loop.call_soon_threadsafe(started.set)
        time.sleep(0.02)

    async with presage.AsyncClient(server.address) as client:
        upload = asyncio.ensure_future(client.embed_clip(path, progress=progress))
        await started.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
    assert len(server.behavior.chunks) < 64
