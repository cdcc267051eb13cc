"""A recorder on a disk that is full, in processes that are killed: what it counts is what is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.recording.recorder import Recorder, RecorderSettings, files
from server.worker.replay import read
from tests.support.paths import ROOT
from tests.support.server import linear, recording

FOUND = recording.done(recording.job(), {"linear": linear.load("linear", "cpu")})

LIMITED = """
    import json, os, resource, signal, sys, time
    from pathlib import Path
    from tests.server.recording.test_full_disk import noisy
    from server.recording.recorder import Recorder, RecorderSettings
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    recorder = Recorder(RecorderSettings(Path(sys.argv[1]), max_bytes=1 << 28, file_bytes=1 << 26))
    for number in range(40):
        recorder.put(noisy(number))
        time.sleep(0.02)
    while recorder.dropped + recorder.written < 30:
        time.sleep(0.05)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    recorder.close(60.0)
    print(json.dumps([recorder.written, recorder.dropped]))
"""


def noisy(number: int) -> Any:
    """A record of a picture that does not compress."""
    noise = np.random.default_rng(number).integers(0, 256, (160, 160, 3), np.uint8)
    asked = recording.job()
    big = replace(asked, start=replace(asked.start, frames=(noise,)))
    return recording.record(big, FOUND, number + 1)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/clients/python/src"}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kept(folder: Path) -> int:
    return sum(len(read(path).records) for path in files(folder))


@pytest.mark.parametrize("room", [200, 900_000])
def test_what_is_counted_as_written_is_on_the_disk_and_no_empty_file_is_left(tmp_path: Path, room: int) -> None:
    """A file can grow to so many bytes: as on a disk that is full, writes stop short and then fail."""
    done = python(LIMITED, str(tmp_path), str(room))
    told, errors = done.communicate(timeout=180)
    assert done.returncode == 0, errors
    written, dropped = json.loads(told.splitlines()[-1])
    assert written + dropped == 40
    assert dropped > 0
    assert kept(tmp_path) == written
    assert all(path.stat().st_size > 1024 for path in files(tmp_path))
    assert "is full" in told + errors
    assert (told + errors).count("plans were not recorded") < 8


def test_a_recorder_that_starts_deletes_what_a_killed_one_left_empty(tmp_path: Path) -> None:
    killed = python(
        """
        import os, signal, sys
        from pathlib import Path
        from server.recording import recorder
        from tests.server.recording.test_full_disk import noisy
        recorder.FLUSH_S = 1000.0
        made = recorder.Recorder(recorder.RecorderSettings(Path(sys.argv[1])))
        made.put(noisy(0))
        while not recorder.files(Path(sys.argv[1])):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(tmp_path),
    )
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left = files(tmp_path)
    recorder = Recorder(RecorderSettings(tmp_path))
    recorder.put(noisy(1))
    recorder.close(30.0)
    assert recorder.written == 1
    now = files(tmp_path)
    assert len(now) == 1 + sum(path.stat().st_size >= 1024 for path in left if path.exists())
    assert kept(tmp_path) >= 1
