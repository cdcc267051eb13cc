"""Datasets against the libraries they come from: what LeRobot and robomimic read, frame by frame, action by action.

`lerobot_sets/VERSION.tar.gz` was written and read by that LeRobot (see the README beside them). Where LeRobot or
robomimic is installed, it writes and reads here and now.
"""

from __future__ import annotations

import json
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.training.lerobot_sets import CUT, FRONT, JOINTS, THINNED, WRIST, cut_rows, write_sets
from tests.support.training.numbered import number_of
from tests.training.data.formats.test_hdf5 import write_groups
from training.data.dataset import ReadOptions
from training.data.formats.opening import open_dataset
from training.data.inspection import inspect

pytest.importorskip("pyarrow", reason="needs the extra datasets")
pytest.importorskip("h5py", reason="needs the extra datasets")

SETS = Path(__file__).parent / "lerobot_sets"
VERSIONS = {"0.3.3": "lerobot v2.1", "0.4.4": "lerobot v3.0", "0.6.0": "lerobot v3.0"}


def read_here(path: Path) -> list[dict[str, Any]]:
    """Every row of a dataset as it is read here, in the form of `read_by_lerobot`."""
    front, wrist = (open_dataset(path, ReadOptions(camera=camera)) for camera in (FRONT, WRIST))
    read = []
    for index in range(len(front.header.episodes)):
        episode = front.episode(index)
        fronts, wrists = (np.concatenate(list(dataset.frames(index))) for dataset in (front, wrist))
        for at in range(episode.frames):
            read.append(
                {
                    "episode": index,
                    "action": episode.actions[at].tolist(),
                    "state": episode.proprioception[at].tolist(),
                    "front": number_of(fronts[at]),
                    "wrist": number_of(255 - wrists[at]),
                }
            )
    return read


def assert_read_alike(folder: Path, format_: str) -> None:
    for name, rows in (("whole", 30), ("images", 30), ("thinned", 11), ("trimmed", 24)):
        theirs = json.loads((folder / f"{name}.json").read_text())
        assert len(theirs) == rows
        assert read_here(folder / name) == theirs, name
        assert all(row["front"] == row["wrist"] == round(row["action"][0]) for row in theirs)
        header = open_dataset(folder / name, ReadOptions(camera=FRONT)).header
        assert (header.format, header.rate_hz) == (format_, 10.0 if name == "thinned" else 30.0)
        assert header.action_names == header.proprioception_names == JOINTS
        assert inspect(open_dataset(folder / name, ReadOptions(camera=WRIST))).errors == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_sets_that_lerobot_wrote_are_read_as_lerobot_read_them(version: str, tmp_path: Path) -> None:
    with tarfile.open(SETS / f"{version}.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    cut_rows(tmp_path / "whole", tmp_path / "thinned", cut=0, step=THINNED)
    cut_rows(tmp_path / "whole", tmp_path / "trimmed", cut=CUT, step=1)
    assert_read_alike(tmp_path, VERSIONS[version])


@pytest.mark.skipif(find_spec("lerobot") is None, reason="needs lerobot")
def test_the_lerobot_that_is_installed_reads_what_is_read_here(tmp_path: Path) -> None:
    write_sets(tmp_path)
    info = json.loads((tmp_path / "whole/meta/info.json").read_text())
    assert_read_alike(tmp_path, f"lerobot {info['codebase_version']}")


@pytest.mark.skipif(find_spec("robomimic") is None, reason="needs robomimic")
@pytest.mark.parametrize("camera", ["agentview_rgb"])
def test_robomimics_own_reader_gives_what_is_read_here(camera: str, tmp_path: Path) -> None:
    """robomimic's `SequenceDataset` reads LIBERO's files as well: LIBERO trains through it."""
    import robomimic.utils.obs_utils as observations
    from robomimic.utils.dataset import SequenceDataset

    path = tmp_path / "task_demo.hdf5"
    write_groups(path, 40, demos=12)  # demo_10 and demo_11 come after demo_9, or they are other episodes
    observations.initialize_obs_utils_with_obs_specs({"obs": {"rgb": [camera], "low_dim": ["ee_states"]}})
    theirs = SequenceDataset(
        str(path), obs_keys=(camera, "ee_states"), dataset_keys=("actions",), load_next_obs=False, hdf5_use_swmr=False
    )
    here = open_dataset(path, ReadOptions(state_key="obs/ee_states"))
    at = 0
    for index, name in enumerate(here.header.episodes):
        episode, frames = here.episode(index), np.concatenate(list(here.frames(index)))
        assert name == theirs.demos[index]
        for row in range(episode.frames):
            item = theirs[at]
            assert np.array_equal(item["actions"][0].astype(np.float32), episode.actions[row])
            assert np.array_equal(item["obs"]["ee_states"][0].astype(np.float32), episode.proprioception[row])
            assert np.array_equal(np.asarray(item["obs"][camera][0], np.uint8), frames[row])
            at += 1
    assert at == len(theirs)
