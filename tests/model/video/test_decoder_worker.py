"""Decoding in processes of their own: the same frames as here, and no file or fault costs more than its request."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from model.video.decode import Clip, ClipLimits, FrameSampling, VideoDecodeError, decode
from model.video.decoder_worker import ClipDecoder
from tests.support.model import clips
from tests.support.model.clips import COUNT, KINDS, SHARP, SOURCE

NAMES = ["h264.mp4", "vp9.webm", "hevc_closed.mp4", "h264.ts", "palette.gif"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("clips")
    for name in NAMES:
        clips.write(where / name, SOURCE, **KINDS[name][0])
    return where


@pytest.fixture(scope="module")
def decoder() -> Iterator[ClipDecoder]:
    """One worker whose decode function misbehaves for files of certain names."""
    with ClipDecoder(decode_function=clips.treacherous_decode) as shared:
        yield shared


def test_a_worker_gives_what_decoding_here_gives(folder: Path, decoder: ClipDecoder) -> None:
    big = clips.write(folder / "big.mp4", clips.moving_square(12, 720, 1280), options=SHARP)  # 33 MB: several windows
    for path, sampling, size in [
        (folder / "h264.mp4", FrameSampling(frames=7), None),
        (folder / "h264.ts", FrameSampling(fps=10), (32, 48)),
        (big, FrameSampling(), None),
    ]:
        here, there = decode(path, sampling, size), decoder.decode(path, sampling, size)
        np.testing.assert_array_equal(there.frames, here.frames)
        np.testing.assert_array_equal(there.timestamps_s, here.timestamps_s)
        assert (there.description, there.reader) == (here.description, here.reader)
    with pytest.raises(VideoDecodeError, match="at most 10 are read") as caught:
        decoder.decode(big, limits=ClipLimits(max_bytes=10))
    assert caught.value.reason == "too_large"


def test_a_missing_file_is_the_callers_mistake(tmp_path: Path, decoder: ClipDecoder) -> None:
    with pytest.raises(FileNotFoundError):
        decoder.decode(tmp_path / "missing.mp4")


def test_many_threads_share_two_workers(folder: Path) -> None:
    names = NAMES * 3
    with ClipDecoder(workers=2) as shared, ThreadPoolExecutor(6) as threads:
        found: list[Clip] = list(threads.map(lambda name: shared.decode(folder / name, FrameSampling(frames=5)), names))
    for name, clip in zip(names, found, strict=True):
        np.testing.assert_array_equal(clip.frames, decode(folder / name, FrameSampling(frames=5)).frames)


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("abort", "decoder_crashed", "crashed on this clip (Aborted)"),
        ("exit", "decoder_crashed", "exit code 3"),
        ("hang", "timeout", "not decoded within 1 s"),
        ("memory", "too_large", "more memory"),
        ("mistake", "decoder_crashed", "LookupError"),
    ],
)
def test_trouble_in_a_decoder_costs_one_request(
    folder: Path, tmp_path: Path, decoder: ClipDecoder, name: str, reason: str, words: str
) -> None:
    path = tmp_path / f"{name}.mp4"
    path.write_bytes((folder / "h264.mp4").read_bytes())
    decoder.decode(folder / "h264.mp4")  # the worker has started: the timeout below is all the clip's
    with pytest.raises(VideoDecodeError) as caught:
        decoder.decode(path, timeout_s=1.0 if name == "hang" else 60.0)
    assert caught.value.reason == reason
    assert words in str(caught.value)
    assert decoder.decode(folder / "h264.mp4").frames.shape == (COUNT, 64, 80, 3)


def test_a_worker_that_died_while_idle_is_not_blamed_on_the_next_clip(folder: Path) -> None:
    with ClipDecoder() as shared:
        first = shared.decode(folder / "h264.mp4")
        shared._idle[0].process.kill()
        shared._idle[0].process.wait()
        np.testing.assert_array_equal(shared.decode(folder / "h264.mp4").frames, first.frames)


def test_workers_start_without_torch(folder: Path, tmp_path: Path, decoder: ClipDecoder) -> None:
    path = tmp_path / "modules.mp4"
    path.write_bytes((folder / "h264.mp4").read_bytes())
    with pytest.raises(VideoDecodeError) as caught:
        decoder.decode(path)
    loaded = str(caught.value).split()
    assert "model.video.decoder_worker" in loaded
    assert "torch" not in loaded
    assert "pytest" not in loaded


def test_waiting_for_a_busy_worker_ends_with_the_timeout(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "hang.mp4"
    path.write_bytes((folder / "h264.mp4").read_bytes())
    with ClipDecoder(decode_function=clips.treacherous_decode) as shared, ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(shared.decode, path)
        while shared._idle:
            time.sleep(0.005)
        with pytest.raises(VideoDecodeError, match="no decoder became free"):
            shared.decode(folder / "h264.mp4", timeout_s=0.1)
        shared.close()
        with pytest.raises(RuntimeError, match="closed while it decoded"):
            stuck.result()
        with pytest.raises(RuntimeError, match="is closed"):
            shared.decode(folder / "h264.mp4")


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files through /proc")
def test_a_closed_decoder_leaves_no_process_and_no_open_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "abort.mp4"
    path.write_bytes((folder / "h264.mp4").read_bytes())
    before, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
    shared = ClipDecoder(workers=2, decode_function=clips.treacherous_decode)
    shared.decode(folder / "h264.mp4")
    with pytest.raises(VideoDecodeError):
        shared.decode(path)
    processes = [worker.process for worker in shared._workers]
    shared.close()
    shared.close()
    assert all(process.returncode is not None for process in processes)
    assert set(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


def test_settings_of_a_decoder_are_checked() -> None:
    for settings, words in [({"workers": 0}, "workers"), ({"memory_bytes": 1}, "memory_bytes")]:
        with pytest.raises(ValueError, match=words):
            ClipDecoder(**settings)
    with pytest.raises(ValueError, match="top level"):
        ClipDecoder(decode_function=lambda *_: decode(Path()))


def test_mutated_files_give_frames_or_an_error_and_the_decoder_goes_on(folder: Path, tmp_path: Path) -> None:
    chance = random.Random(11)
    limits = ClipLimits(max_pixels=512 * 512)
    reasons: dict[str, int] = {}
    with ClipDecoder() as shared:
        for trial, name in enumerate(NAMES * 8):
            content = bytearray((folder / name).read_bytes())
            for _ in range(chance.choice([1, 4, 30])):
                content[chance.randrange(len(content))] = chance.randrange(256)
            if trial % 4 == 0:
                del content[chance.randrange(len(content)) :]
            path = tmp_path / f"{trial}_{name}"
            path.write_bytes(content)
            try:
                clip = shared.decode(path, FrameSampling(frames=4), (32, 32), limits)
                assert clip.frames.shape == (4, 32, 32, 3)
                reasons["frames"] = reasons.get("frames", 0) + 1
            except VideoDecodeError as error:
                reasons[error.reason] = reasons.get(error.reason, 0) + 1
        assert shared.decode(folder / "h264.mp4").frames.shape == (COUNT, 64, 80, 3)
    assert sum(reasons.values()) == 40
    assert reasons["frames"] >= 1
    assert reasons["damaged"] + reasons["truncated"] >= 1
