"""A decoder that a file has taken over reaches no network, no program, no process, and none of its owner's secrets."""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from pathlib import Path

import pytest

from model.video.decode import VideoDecodeError
from model.video.decoder_worker import ClipDecoder
from tests.support.model import clips
from tests.support.model.taken_over import attempt

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="there is no fence here"
)


def has_landlock() -> bool:
    version = ctypes.CDLL(None, use_errno=True).syscall(444, None, ctypes.c_size_t(0), 1)
    return int(version) >= 1


def test_a_decoder_that_was_taken_over_can_do_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESAGE_API_KEYS", "a-secret-of-the-service")
    clip = tmp_path / "clip"
    clip.write_bytes(b"taken over")
    with ClipDecoder(decode_function=attempt) as decoder, pytest.raises(VideoDecodeError) as caught:
        decoder.decode(clip)
    found = json.loads(str(caught.value).partition("{")[1] + str(caught.value).partition("{")[2])
    environment = found.pop("environment")
    assert set(environment) <= {"LC_ALL", "LC_CTYPE", "PATH", "LD_LIBRARY_PATH"}
    assert found.pop("thread") == "done", "decoders work on several threads"
    assert found.pop("file") in ("OSError", "PermissionError"), "it may not grow to a byte"
    assert not (tmp_path / "left-behind").exists() or (tmp_path / "left-behind").stat().st_size == 0
    memory = found.pop("memory")
    assert set(found.values()) == {"PermissionError"}, found
    assert memory == ("PermissionError" if has_landlock() else "done")


def test_a_fenced_decoder_decodes_and_says_that_it_is_fenced(tmp_path: Path) -> None:
    clip = clips.write(tmp_path / "clip.mp4", clips.SOURCE)
    with ClipDecoder() as decoder:
        assert len(decoder.decode(clip).frames) == clips.COUNT
        assert decoder.unfenced == ""
