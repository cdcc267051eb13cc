"""What is wrong with recordings is found and named by episode; what is whole is told apart from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.training import recordings
from tests.support.training.recordings import CAMERA, arm_episodes
from training.data.dataset import DatasetError, ReadOptions
from training.data.formats.opening import open_dataset
from training.data.inspection import Inspection, inspect
from training.data.loading import load_episodes

pytest.importorskip("pyarrow", reason="needs the extra datasets")
h5py = pytest.importorskip("h5py", reason="needs the extra datasets")


def problems(found: Inspection) -> dict[str, str]:
    return {episode.name: "; ".join(episode.problems) for episode in found.broken}


def test_a_whole_dataset_is_described_and_nothing_is_wrong(tmp_path: Path) -> None:
    recorded = arm_episodes((9, 6, 12))
    found = inspect(open_dataset(recordings.write_lerobot_3(tmp_path / "set", recorded)))
    assert found.errors == ()
    summary = found.summary()
    assert (summary["episodes"], summary["usable_episodes"], summary["steps"]) == (3, 3, 8 + 5 + 11)
    assert (summary["shortest_steps"], summary["median_steps"], summary["longest_steps"]) == (5, 8, 11)
    assert summary["frame_size"] == [64, 64]
    actions = np.concatenate([episode.actions[:-1] for episode in recorded])
    assert [entry["low"] for entry in summary["actions"]] == pytest.approx(actions.min(axis=0))
    assert [entry["std"] for entry in summary["actions"]] == pytest.approx(actions.std(axis=0))


def test_each_kind_of_broken_episode_is_named(tmp_path: Path) -> None:
    path = recordings.write_hdf5_groups(tmp_path / "set.h5", arm_episodes((6,) * 6))
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"][2, 1] = np.nan
        for name, rows in (("demo_2/actions", 4), ("demo_3/actions", 0), ("demo_4/obs/proprio", 5)):
            shortened = file[f"data/{name}"][:rows]
            del file[f"data/{name}"]
            file[f"data/{name}"] = shortened
        del file["data/demo_5/obs/front_image"]
    assert problems(inspect(open_dataset(path))) == {
        "demo_1": "has NaN or infinity in 1 rows of actions, first at step 2",
        "demo_2": "has 4 actions for 6 frames",
        "demo_3": "is empty: 6 frames and 0 actions",
        "demo_4": "has 5 rows of proprioception for 6 frames",
        "demo_5": "lacks obs/front_image",
    }


def test_videos_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = recordings.write_lerobot_2(tmp_path / "set", arm_episodes((40, 40, 40, 6)))
    clips = [path / f"videos/chunk-000/{CAMERA}/episode_{index:06d}.mp4" for index in range(4)]
    content = bytearray(clips[0].read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    clips[0].write_bytes(content)
    clips[1].write_bytes(clips[3].read_bytes())  # a clip of 6 frames where 40 are expected
    clips[2].unlink()
    found = problems(inspect(open_dataset(path)))
    assert sorted(found) == ["episode 0", "episode 1", "episode 2"]
    assert "damaged" in found["episode 0"]
    assert "has no frame at 0.600 s: 6 of 40 frames are there" in found["episode 1"]
    assert "no such file" in found["episode 2"]
    assert inspect(open_dataset(path), pictures=False).errors == ()  # which looks at numbers alone


def test_a_table_that_disagrees_with_the_listing_is_named(tmp_path: Path) -> None:
    path = recordings.write_lerobot_2(tmp_path / "set", arm_episodes((6, 6)))
    listing = path / "meta/episodes.jsonl"
    listing.write_text(listing.read_text().replace('"length": 6', '"length": 7', 1))
    (path / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1 and no more")
    found = problems(inspect(open_dataset(path)))
    assert "must have 7 rows" in found["episode 0"]
    assert "not a whole parquet file" in found["episode 1"]


def test_a_missing_rate_stands_in_the_way_and_a_constant_action_is_said(tmp_path: Path) -> None:
    recorded = arm_episodes((6, 6))
    for episode in recorded:
        episode.actions[:-1, 1] = 0.25
    path = recordings.write_hdf5_table(tmp_path / "set.h5", recorded)
    found = inspect(open_dataset(path))
    assert found.errors == ("the recording names no rate: say it with rate_hz",)
    assert found.notes == ("action action_1 is 0.25 throughout: plans hold it there",)
    loaded, _ = load_episodes(open_dataset(path, ReadOptions(rate_hz=10)), tmp_path / "store", 32)
    assert loaded.notes == found.notes
    with pytest.raises(DatasetError, match="names no rate"):
        load_episodes(open_dataset(path), tmp_path / "store", 32)


def test_a_clock_that_stumbles_is_named(tmp_path: Path) -> None:
    recorded = arm_episodes((6,))
    path = recordings.write_lerobot_2(tmp_path / "set", recorded)
    found = inspect(open_dataset(path, ReadOptions(rate_hz=30.0)), pictures=False)
    assert problems(found)["episode 0"] == "has 5 gaps in time, first 0.1 s at step 0 where 0.03333 s is expected"


def test_broken_episodes_are_left_out_of_a_loading_and_counted(tmp_path: Path) -> None:
    recorded = arm_episodes((9, 40, 12, 6))
    path = recordings.write_lerobot_2(tmp_path / "set", recorded)
    clip = path / f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
    clip.write_bytes(clip.read_bytes()[:700])
    episodes, skipped = load_episodes(open_dataset(path), tmp_path / "store", 32)
    assert [entry.name for entry in skipped] == ["episode 1"]
    assert "cut short or damaged" in skipped[0].reason
    assert "3 episodes of 5 to 11 steps, 1 left out" in episodes.source
    assert episodes.lengths is not None
    assert episodes.lengths.tolist() == [8, 11, 5]
    for row, truth in enumerate((recorded[0], recorded[2], recorded[3])):
        steps = len(truth.frames) - 1
        assert np.array_equal(episodes.actions[row, :steps], truth.actions[:-1])
        halved = truth.frames.reshape(steps + 1, 32, 2, 32, 2, 3).mean(axis=(2, 4))
        assert np.abs(episodes.frames[row, : steps + 1] - halved).mean() < 4
    assert episodes.action_high == tuple(
        np.concatenate([recorded[at].actions[:-1] for at in (0, 2, 3)]).max(axis=0).tolist()
    )


def test_frames_are_scaled_once_and_again_when_the_dataset_changes(tmp_path: Path) -> None:
    path = recordings.write_clips(tmp_path / "set", arm_episodes((6, 8)))
    first, _ = load_episodes(open_dataset(path), tmp_path / "store", 32)
    kept = np.array(first.frames)
    mark = (tmp_path / "store/frames.raw").stat().st_mtime_ns
    again, _ = load_episodes(open_dataset(path), tmp_path / "store", 32)
    assert np.array_equal(again.frames, kept)
    assert (tmp_path / "store/frames.raw").stat().st_mtime_ns == mark
    (path / "reach_0.mp4").write_bytes((path / "reach_1.mp4").read_bytes())
    changed, skipped = load_episodes(open_dataset(path), tmp_path / "store", 32)
    assert len(changed.frames) == 1
    assert "has 5 actions for 8 frames" in skipped[0].reason


def test_a_dataset_without_a_usable_episode_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    path = recordings.write_clips(tmp_path / "set", arm_episodes((6,)))
    (path / "reach_0.csv").write_text("shoulder,elbow\n1,nan\n1,1\n1,1\n1,1\n1,1\n")
    with pytest.raises(DatasetError, match=r"no usable episode: reach_0.mp4: has NaN or infinity in 1 rows"):
        load_episodes(open_dataset(path), tmp_path / "store", 32)
    (path / "reach_0.csv").write_text("shoulder,elbow\n1,2\n1,left\n")
    with pytest.raises(DatasetError, match=r"reach_0.csv row 3: must hold numbers, got 1,left"):
        open_dataset(path)
