"""The flight recorder: what it keeps can be read back, stays within its bytes, and never holds a plan up."""

from __future__ import annotations

import json
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.engine.messages import PlanDone
from server.recording import records
from server.recording.recorder import Recorder, RecorderSettings, files
from server.recording.records import RecordError
from server.worker.replay import read
from tests.server.engine.test_serialization import same
from tests.support.server import linear, recording

MODELS = {"linear": linear.load("linear", "cpu")}


@pytest.fixture(scope="module")
def found() -> PlanDone:
    return recording.done(recording.job(), MODELS)


def closed(recorder: Recorder) -> Recorder:
    recorder.close(30.0)
    return recorder


def test_a_record_comes_back_as_it_was(found: PlanDone) -> None:
    made = recording.record(recording.job(), found)
    back = records.decode(records.encode(made, images=True))
    assert same(back.job, made.job)
    assert same(back.done, made.done)
    assert back.time_ns == made.time_ns
    assert back.reply["actions"] == made.reply.actions.tolist()
    assert (back.request["executed"], back.request["request_id"]) == (1, "r")


def test_a_record_tells_no_session_and_shows_no_picture_unless_wanted(found: PlanDone) -> None:
    made = recording.record(recording.job(), found)
    content = records.encode(made, images=False)
    assert b"the secret" not in content
    back = records.decode(content)
    assert back.job is not None
    assert back.job.start.frames == ()
    assert back.done is not None
    np.testing.assert_array_equal(back.done.latent, found.latent)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(version=1),
        lambda record: record.pop("job"),
        lambda record: record["job"]["message"].update({"#": "Popen"}),
        lambda record: record["job"]["arrays"].pop(),
        lambda record: record["job"].update(arrays=["not base64"]),
        lambda record: record.update(job=record["done"]),
    ],
)
def test_a_record_that_was_changed_is_refused(found: PlanDone, change: object) -> None:
    content = json.loads(records.encode(recording.record(recording.job(), found), images=True))
    change(content)  # type: ignore[operator]
    with pytest.raises(RecordError):
        records.decode(json.dumps(content).encode())


def test_records_are_read_in_order_from_a_file_for_its_owner_alone(tmp_path: Path, found: PlanDone) -> None:
    folder = tmp_path / "kept" / "here"
    recorder = Recorder(RecorderSettings(folder, models=("arm", "/some/package")))
    for sequence in (1, 2, 3):
        recorder.put(recording.record(recording.job(), found, sequence))
    assert (closed(recorder).written, recorder.dropped) == (3, 0)
    (path,) = files(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    read_back = read(path)
    assert read_back.models == ("arm", "/some/package")
    assert read_back.is_whole
    assert [each.reply["observation_sequence"] for each in read_back.records] == [1, 2, 3]


def test_all_files_together_stay_within_their_bytes_and_the_newest_plans_stay(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    asked = recording.job()
    found = recording.done(asked, MODELS)
    settings = RecorderSettings(tmp_path, max_bytes=600_000, file_bytes=150_000)
    (tmp_path / "notes.txt").write_text("not the recorder's")
    for turn in range(3):  # as a service that is started again
        recorder = Recorder(settings)
        for sequence in range(1, 31):
            noise = generator.integers(0, 256, (64, 64, 3), np.uint8)  # nothing to compress
            big = replace(asked, start=replace(asked.start, frames=(noise,)))
            recorder.put(recording.record(big, found, 100 * turn + sequence))
            if sequence % 10 == 0:
                while recorder.written + recorder.dropped < sequence:
                    time.sleep(0.005)
                assert sum(path.stat().st_size for path in files(tmp_path)) <= settings.max_bytes
        assert (closed(recorder).written, recorder.dropped) == (30, 0)
    kept = sorted(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
    assert 3 <= len(kept) < 12
    assert all(path.stat().st_size <= settings.file_bytes for path in kept)
    assert sum(path.stat().st_size for path in kept) <= settings.max_bytes
    assert read(kept[-1]).records[-1].reply["observation_sequence"] == 230
    assert (tmp_path / "notes.txt").exists()


def test_what_comes_too_fast_is_dropped_and_counted(tmp_path: Path, found: PlanDone) -> None:
    recorder = Recorder(RecorderSettings(tmp_path))
    made = recording.record(recording.job(), found)
    for _ in range(5_000):
        recorder.put(made)
    closed(recorder)
    assert recorder.dropped > 0
    assert recorder.written + recorder.dropped == 5_000
    recorder.put(made)  # after the end: counted, no more
    assert recorder.written + recorder.dropped == 5_001


def test_a_disk_that_fails_costs_records_and_nothing_else(tmp_path: Path, found: PlanDone) -> None:
    folder = tmp_path / "kept"
    recorder = Recorder(RecorderSettings(folder, max_bytes=1 << 20, file_bytes=1 << 16))
    made = recording.record(recording.job(), found)
    shutil.rmtree(folder)
    recorder.put(made)
    while recorder.dropped < 1:
        time.sleep(0.005)
    folder.mkdir()
    recorder.put(made)
    assert (closed(recorder).written, recorder.dropped) == (1, 1)


def test_a_record_larger_than_a_file_is_dropped(tmp_path: Path, found: PlanDone) -> None:
    recorder = Recorder(RecorderSettings(tmp_path, max_bytes=1 << 16, file_bytes=1 << 14))
    asked = recording.job()
    huge = replace(asked, start=replace(asked.start, frames=(np.zeros((99, 99, 3), np.uint8),)))
    recorder.put(recording.record(huge, found))
    assert (closed(recorder).written, recorder.dropped) == (0, 1)
    assert files(tmp_path) == []


def test_plans_of_a_service_that_was_killed_can_be_read(tmp_path: Path, found: PlanDone) -> None:
    recorder = Recorder(RecorderSettings(tmp_path))
    recorder.put(recording.record(recording.job(), found))
    (path,) = _eventually(tmp_path)
    while path.stat().st_size < 1000:
        time.sleep(0.02)
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(path.read_bytes())
    closed(recorder)
    left = read(cut)
    assert (len(left.records), left.is_whole) == (1, False)


def _eventually(folder: Path) -> list[Path]:
    while not files(folder):
        time.sleep(0.005)
    return files(folder)


def test_what_is_no_file_of_plans_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"not a recording", b"\x89MCAP0\r\n" + b"\xff" * 100):
        path = tmp_path / "other.mcap"
        path.write_bytes(content)
        with pytest.raises(RecordError, match="other.mcap"):
            read(path)


@pytest.mark.parametrize(("max_bytes", "file_bytes", "field"), [(100, 10, "file_bytes"), (9_000, 8_192, "max_bytes")])
def test_settings_that_cannot_be_kept_are_refused(tmp_path: Path, max_bytes: int, file_bytes: int, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        RecorderSettings(tmp_path, max_bytes, file_bytes)
