"""HDF5 as labs keep it: folders of files, pictures as encoded rows, filters beside HDF5's own."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.training.numbered import numbered_frame, numbers_of
from training.data.dataset import DatasetError, ReadOptions
from training.data.formats.opening import open_dataset
from training.data.inspection import inspect

h5py = pytest.importorskip("h5py", reason="needs the extra datasets")

RATE = ReadOptions(rate_hz=10)


def numbered_episode(first: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    actions = np.random.default_rng(first).normal(size=(length, 2)).astype(np.float32)
    actions[:, 0] = np.arange(first, first + length)
    return np.stack([numbered_frame(number) for number in range(first, first + length)]), actions


def write_groups(path: Path, first: int, demos: int = 3, length: int = 8, rate: float = 20) -> None:
    """As robomimic and LIBERO write a task's demonstrations."""
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": rate}})
        for demo in range(demos):
            frames, actions = numbered_episode(first + demo * length, length)
            group = file.create_group(f"data/demo_{demo}")
            group.attrs["num_samples"] = length
            group["actions"], group["obs/agentview_rgb"] = actions.astype(np.float64), frames
            group["obs/ee_states"], group["dones"] = actions, np.zeros(length, np.uint8)


def write_table(path: Path, first: int, lengths: list[int], offsets: list[int] | None = None) -> None:
    """As LeWorldModel's sets are kept."""
    frames, actions = numbered_episode(first, sum(lengths))
    with h5py.File(path, "w") as file:
        file["ep_len"], file["ep_offset"] = lengths, offsets or np.cumsum([0, *lengths[:-1]])
        file["pixels"], file["action"], file["proprio"] = frames, actions, actions


def write_file(path: Path, first: int, length: int = 8) -> None:
    """As ALOHA writes an episode."""
    frames, actions = numbered_episode(first, length)
    with h5py.File(path, "w") as file:
        file["action"], file["observations/qpos"] = actions, actions
        file.create_dataset("observations/images/front", data=frames, compression="gzip")


def assert_paired(path: Path, options: ReadOptions = RATE) -> list[int]:
    """Every frame's own number is its action's; returns the first number of each episode."""
    dataset = open_dataset(path, options)
    firsts = []
    for index in range(len(dataset.header.episodes)):
        numbers = dataset.episode(index).actions[:, 0].astype(int).tolist()
        assert numbers_of(list(dataset.frames(index))) == numbers
        firsts.append(numbers[0])
    return firsts


def test_a_folder_of_files_with_many_episodes_is_all_of_them_in_natural_order(tmp_path: Path) -> None:
    for task in range(11):
        write_groups(tmp_path / f"task_{task}_demo.hdf5", 100 * task)
    assert assert_paired(tmp_path) == [100 * task + 8 * demo for task in range(11) for demo in range(3)]
    header = open_dataset(tmp_path).header
    assert (header.format, header.rate_hz) == ("hdf5 (a group each, 11 files)", 20.0)
    assert header.episodes[30] == "task_10_demo.hdf5: demo_0"


def test_a_folder_of_tables_is_all_of_them(tmp_path: Path) -> None:
    for shard in (0, 1, 10):
        write_table(tmp_path / f"shard-{shard}.h5", 100 * shard, [6, 9])
    assert assert_paired(tmp_path) == [0, 6, 100, 106, 1000, 1006]


def test_a_file_each_comes_in_natural_order_from_subfolders_too_and_hidden_files_are_passed_over(
    tmp_path: Path,
) -> None:
    for episode in range(12):
        write_file(tmp_path / f"episode_{episode}.hdf5", 20 * episode)
    (tmp_path / "more").mkdir()
    write_file(tmp_path / "more/episode_0.hdf5", 900)
    (tmp_path / "._episode_0.hdf5").write_bytes(b"\0\5\x16\7Mac OS X        " + bytes(100))
    (tmp_path / ".trash").mkdir()
    write_file(tmp_path / ".trash/episode_0.hdf5", 800)
    assert assert_paired(tmp_path) == [*range(0, 240, 20), 900]


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    write_groups(tmp_path / "task_0.hdf5", 0)
    write_groups(tmp_path / "task_1.hdf5", 100)
    write_groups(tmp_path / "task_2.hdf5", 200, rate=10)
    (tmp_path / "task_1.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    found = inspect(open_dataset(tmp_path))
    assert [each.name for each in found.broken] == ["task_1.hdf5", *(f"task_2.hdf5: demo_{at}" for at in range(3))]
    assert "is not a whole HDF5 file" in found.broken[0].problems[0]
    assert found.broken[1].problems == ("has 10 frames a second, the first file 20",)


def test_rows_that_a_table_lacks_or_that_two_episodes_claim_are_refused_by_episode(tmp_path: Path) -> None:
    write_table(tmp_path / "set.h5", 0, [10, 10, 10, 10], offsets=[0, 10, 15, 35])
    found = inspect(open_dataset(tmp_path / "set.h5", RATE))
    assert {each.name: each.problems for each in found.broken} == {
        "episode 1": ("shares rows with episode 2",),
        "episode 2": ("shares rows with episode 1",),
        "episode 3": ("has rows 35 to 45 of 40",),
    }


@pytest.mark.parametrize("kind", ["variable", "fixed", "padded"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_pictures_in_encoded_rows_are_seen_whatever_they_are_called(kind: str, form: str, tmp_path: Path) -> None:
    frames, actions = numbered_episode(0, 6)
    encoded = []
    for frame in frames:
        content = io.BytesIO()
        Image.fromarray(frame).save(content, form, quality=95)
        encoded.append(content.getvalue())
    longest = max(map(len, encoded))
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["action"] = actions
        if kind == "variable":
            rows = file.create_dataset("rgb", (6,), dtype=h5py.vlen_dtype(np.uint8))
            for at, content_ in enumerate(encoded):
                rows[at] = np.frombuffer(content_, np.uint8)
        elif kind == "fixed":
            file["rgb"] = np.array(encoded, f"S{longest}")
        else:
            file["rgb"] = np.stack([np.frombuffer(each.ljust(longest, b"\0"), np.uint8) for each in encoded])
        file["depths"] = np.zeros((6, 40), np.uint8)  # rows of bytes that are no pictures
    dataset = open_dataset(tmp_path / "set.h5", RATE)
    assert dataset.header.cameras == ("rgb",)
    assert numbers_of(list(dataset.frames(0))) == list(range(6))


def test_a_filter_that_is_missing_is_named_with_its_remedy(tmp_path: Path) -> None:
    frames, actions = numbered_episode(0, 6)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["action"] = actions
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((1, *frames.shape[1:]))
        made.set_filter(32999, h5py.h5z.FLAG_OPTIONAL)  # nobody has this one
        space = h5py.h5s.create_simple(frames.shape)
        pixels = h5py.h5d.create(file.id, b"pixels", h5py.h5t.NATIVE_UINT8, space, made)
        for at, frame in enumerate(frames):
            pixels.write_direct_chunk((at, 0, 0, 0), frame.tobytes())
    found = inspect(open_dataset(tmp_path / "set.h5", RATE))
    assert found.broken[0].problems == ("pixels is compressed with HDF5 filter 32999: pip install hdf5plugin",)


@pytest.mark.skipif(find_spec("hdf5plugin") is None, reason="needs hdf5plugin")
@pytest.mark.parametrize("name", ["Blosc", "Blosc2", "Zstd", "LZ4"])
def test_filters_of_hdf5plugin_are_read_where_it_is_installed(name: str, tmp_path: Path) -> None:
    import hdf5plugin

    write_table(tmp_path / "plain.h5", 0, [6, 9])
    with h5py.File(tmp_path / "plain.h5") as plain, h5py.File(tmp_path / "set.h5", "w") as file:
        for key in ("ep_len", "ep_offset", "action", "proprio"):
            file[key] = plain[key][:]
        file.create_dataset("pixels", data=plain["pixels"][:], compression=getattr(hdf5plugin, name)())
    assert assert_paired(tmp_path / "set.h5") == [0, 6]


def test_names_in_an_arrays_attributes_are_kept_and_arrays_can_be_named(tmp_path: Path) -> None:
    frames, actions = numbered_episode(0, 6)
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["pixels"] = frames
        file["teleop/delta"], file["robot/joints"] = actions, actions
        file["teleop/delta"].attrs["names"] = ["x", "y"]
    options = ReadOptions(rate_hz=10, action_key="teleop/delta", state_key="robot/joints")
    header = open_dataset(tmp_path / "set.h5", options).header
    assert (header.action_names, header.proprioception_names) == (("x", "y"), ("joints_0", "joints_1"))
    with pytest.raises(DatasetError, match="none of the layouts"):
        open_dataset(tmp_path / "set.h5", RATE)
    with pytest.raises(DatasetError, match="state_key must be an array, got 'robot/qpos'"):
        open_dataset(tmp_path / "set.h5", ReadOptions(rate_hz=10, action_key="teleop/delta", state_key="robot/qpos"))
