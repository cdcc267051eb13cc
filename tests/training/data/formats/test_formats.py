"""Every format gives the same episodes: what the simulated arm did, written to files and read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.training import recordings
from tests.support.training.recordings import Recorded, arm_episodes
from training.data.dataset import Dataset, DatasetError, ReadOptions
from training.data.formats.opening import open_dataset

pytest.importorskip("pyarrow", reason="needs the extra datasets")
pytest.importorskip("h5py", reason="needs the extra datasets")

Writer = Callable[[Path, list[Recorded]], Path]
FORMATS: list[tuple[str, Writer, str, str, float]] = [
    ("lerobot_2", recordings.write_lerobot_2, "lerobot v2.1", "shoulder", 0.0),
    ("lerobot_3", recordings.write_lerobot_3, "lerobot v3.0", "shoulder", 0.0),
    ("files", recordings.write_hdf5_files, "hdf5 (a file each)", "action_0", 10.0),
    ("groups.hdf5", recordings.write_hdf5_groups, "hdf5 (a group each)", "action_0", 0.0),
    ("table.h5", recordings.write_hdf5_table, "hdf5 (one table)", "action_0", 10.0),
    ("clips", recordings.write_clips, "clips", "shoulder", 0.0),
]


def pictures(dataset: Dataset, index: int) -> np.ndarray:
    return np.concatenate(list(dataset.frames(index)))


@pytest.mark.parametrize(("name", "write", "format_", "first", "rate"), FORMATS, ids=[entry[0] for entry in FORMATS])
def test_what_was_recorded_is_what_is_read(
    name: str, write: Writer, format_: str, first: str, rate: float, tmp_path: Path
) -> None:
    recorded = arm_episodes()
    dataset = open_dataset(write(tmp_path / name, recorded), ReadOptions(rate_hz=rate))
    header = dataset.header
    assert (header.format, header.rate_hz, header.action_names[0]) == (format_, 10.0, first)
    assert len(header.episodes) == len(recorded)
    assert len(header.proprioception_names) == 2
    for index in (2, 0, 1):  # in any order
        episode, truth = dataset.episode(index), recorded[index]
        assert episode.frames == len(truth.frames)
        assert episode.steps == len(truth.frames) - 1
        assert np.array_equal(episode.actions[: episode.steps], truth.actions[:-1])
        assert np.array_equal(episode.proprioception, truth.joints)
        shown = pictures(dataset, index)
        assert shown.shape == truth.frames.shape
        error = np.abs(shown.astype(int) - truth.frames).mean(axis=(1, 2, 3))
        assert error.max() < (0.01 if "hdf5" in format_ else 4.0)  # H.264 loses a little
        others = np.abs(shown[:, None].astype(int) - truth.frames[None]).mean(axis=(2, 3, 4))
        assert (others.argmin(axis=1) == np.arange(len(shown))).all()  # every frame is its own, none is a neighbor's


def test_images_inside_the_tables_are_read_too(tmp_path: Path) -> None:
    import io
    import json

    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    recorded = arm_episodes((4, 5))
    path = recordings.write_lerobot_2(tmp_path / "set", recorded)
    info = json.loads((path / "meta/info.json").read_text())
    info["features"][recordings.CAMERA]["dtype"] = "image"
    (path / "meta/info.json").write_text(json.dumps(info))
    for index, episode in enumerate(recorded):
        file = path / f"data/chunk-000/episode_{index:06d}.parquet"
        rows = parquet.read_table(file).to_pylist()
        for row, frame in zip(rows, episode.frames, strict=True):
            encoded = io.BytesIO()
            Image.fromarray(frame).save(encoded, "PNG")
            row[recordings.CAMERA] = {"bytes": encoded.getvalue(), "path": "frame.png"}
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert np.array_equal(pictures(open_dataset(path), 1), recorded[1].frames)


def test_encoded_images_in_hdf5_are_decoded(tmp_path: Path) -> None:
    import io

    import h5py
    from PIL import Image

    recorded = arm_episodes((5,))
    path = recordings.write_hdf5_files(tmp_path / "set", recorded)
    encoded = []
    for frame in recorded[0].frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=95)
        encoded.append(np.frombuffer(buffer.getvalue(), np.uint8))
    padded = np.zeros((5, max(map(len, encoded))), np.uint8)
    for row, content in zip(padded, encoded, strict=True):
        row[: len(content)] = content
    with h5py.File(path / "episode_0.hdf5", "a") as file:
        del file["observations/images/front"]
        file["observations/images/front"] = padded
    shown = pictures(open_dataset(path), 0)
    assert np.abs(shown.astype(int) - recorded[0].frames).mean() < 3


def test_several_cameras_must_be_chosen_between(tmp_path: Path) -> None:
    import h5py

    path = recordings.write_hdf5_groups(tmp_path / "set.h5", arm_episodes((4,)))
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/wrist_image"] = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(DatasetError, match="has 2 cameras; choose one of obs/front_image, obs/wrist_image"):
        open_dataset(path)
    assert pictures(open_dataset(path, ReadOptions(camera="obs/wrist_image")), 0).shape == (4, 8, 8, 3)
    with pytest.raises(DatasetError, match="camera must be one of"):
        open_dataset(path, ReadOptions(camera="top"))


def test_a_dataset_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    import h5py

    path = recordings.write_lerobot_2(tmp_path / "set", arm_episodes((4,)))
    info = (path / "meta/info.json").read_text()
    (path / "meta/info.json").write_text(info.replace('"data/chunk-', '"../data/chunk-'))
    with pytest.raises(DatasetError, match="outside itself"):
        open_dataset(path)
    (path / "meta/info.json").write_text(info.replace("{episode_index:06d}", "{episode_index.__class__}"))
    with pytest.raises(DatasetError, match="no such file"):
        open_dataset(path).episode(0)
    (tmp_path / "linked").mkdir()
    recordings.write_hdf5_files(tmp_path / "whole", arm_episodes((4,)))
    with h5py.File(tmp_path / "linked/episode_0.hdf5", "w") as file:
        file["action"] = h5py.ExternalLink(str(tmp_path / "whole/episode_0.hdf5"), "action")
    with pytest.raises(DatasetError, match="none of the layouts"):
        open_dataset(tmp_path / "linked")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object"),
        ('{"codebase_version": "v9"}', "must be v2.0, v2.1 or v3.0, got '9'"),
        ('{"codebase_version": "v2.1", "features": {}}', "features must name action"),
    ],
)
def test_a_description_at_fault_is_named(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(content)
    with pytest.raises(DatasetError, match=said):
        open_dataset(tmp_path)


def test_what_is_no_dataset_is_told_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"LeRobot dataset .* HDF5 .* clips"):
        open_dataset(tmp_path)
