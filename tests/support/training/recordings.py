"""Real recordings of the simulated arm, written the way each format is written elsewhere: real files, small ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.video.decode import write_clip
from simulation.episodes import collect
from simulation.robots.arm import LINK_LENGTHS

RATE = 10.0
SIZE = 64
CAMERA = "observation.images.front"


@dataclass(frozen=True)
class Recorded:
    """One episode as a recorder has it: as many actions as frames, the last of which leads nowhere."""

    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    joints: NDArray[np.float32]


def arm_episodes(lengths: tuple[int, ...] = (9, 6, 12), seed: int = 3, size: int = SIZE) -> list[Recorded]:
    """Episodes of so many frames each."""
    batch = collect("arm", len(lengths), max(lengths) - 1, seed, image_size=size)
    episodes = []
    for row, length in enumerate(lengths):
        actions = np.concatenate([batch.actions[row, : length - 1], np.full((1, 2), np.nan, np.float32)])
        episodes.append(Recorded(batch.frames[row, :length], actions, batch.proprioception[row, :length]))
    return episodes


def with_poses(episodes: list[Recorded]) -> list[Recorded]:
    """The same episodes of a robot that measures the pose of its tip: `x y z roll pitch yaw gripper`."""
    posed = []
    for episode in episodes:
        shoulder, heading = episode.joints[:, 0], episode.joints.sum(axis=1)
        poses = np.zeros((len(shoulder), 7), np.float32)
        poses[:, 0] = LINK_LENGTHS[0] * np.cos(shoulder) + LINK_LENGTHS[1] * np.cos(heading)
        poses[:, 1] = LINK_LENGTHS[0] * np.sin(shoulder) + LINK_LENGTHS[1] * np.sin(heading)
        poses[:, 5] = np.arctan2(np.sin(heading), np.cos(heading))
        posed.append(replace(episode, joints=poses))
    return posed


def write_lerobot_2(path: Path, episodes: list[Recorded]) -> Path:
    """Version 2.1: a table and a clip for each episode."""
    _write_info(
        path,
        "v2.1",
        episodes,
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    lines = []
    for index, episode in enumerate(episodes):
        _write_table(path / f"data/chunk-000/episode_{index:06d}.parquet", [_rows(index, episode)])
        clip = path / f"videos/chunk-000/{CAMERA}/episode_{index:06d}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        write_clip(clip, episode.frames, RATE)
        lines.append(json.dumps({"episode_index": index, "tasks": ["reach"], "length": len(episode.frames)}))
    (path / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return path


def write_lerobot_3(path: Path, episodes: list[Recorded]) -> Path:
    """Version 3.0: all episodes in one table and one clip, and a table that says where each begins."""
    _write_info(
        path,
        "v3.0",
        episodes,
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    _write_table(path / "data/chunk-000/file-000.parquet", [_rows(at, each) for at, each in enumerate(episodes)])
    clip = path / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    clip.parent.mkdir(parents=True)
    write_clip(clip, np.concatenate([episode.frames for episode in episodes]), RATE)
    places = []
    first = 0
    for index, episode in enumerate(episodes):
        end = first + len(episode.frames)
        place: dict[str, Any] = {"episode_index": index, "tasks": ["reach"], "length": len(episode.frames)}
        place |= {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": first, "dataset_to_index": end}
        place |= {f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0}
        place |= {f"videos/{CAMERA}/from_timestamp": first / RATE, f"videos/{CAMERA}/to_timestamp": end / RATE}
        places.append(place)
        first = end
    _write_table(path / "meta/episodes/chunk-000/file-000.parquet", [places])
    return path


def write_hdf5_files(path: Path, episodes: list[Recorded]) -> Path:
    """A file for each episode, as ALOHA keeps them."""
    import h5py

    path.mkdir(parents=True)
    for index, episode in enumerate(episodes):
        with h5py.File(path / f"episode_{index}.hdf5", "w") as file:
            file["action"] = episode.actions
            file["observations/qpos"] = episode.joints
            file.create_dataset("observations/images/front", data=episode.frames, compression="gzip")
    return path


def write_hdf5_groups(path: Path, episodes: list[Recorded]) -> Path:
    """A group for each episode, as robomimic keeps them."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": RATE}})
        for index, episode in enumerate(episodes):
            group = file.create_group(f"data/demo_{index}")
            group["actions"], group["obs/front_image"] = episode.actions, episode.frames
            group["next_obs/front_image"], group["obs/proprio"] = episode.frames, episode.joints
    return path


def write_hdf5_table(path: Path, episodes: list[Recorded]) -> Path:
    """One table over all episodes."""
    import h5py

    lengths = [len(episode.frames) for episode in episodes]
    with h5py.File(path, "w") as file:
        file["ep_len"], file["ep_offset"] = lengths, np.cumsum([0, *lengths[:-1]])
        file["pixels"] = np.concatenate([episode.frames for episode in episodes])
        file["action"] = np.concatenate([episode.actions for episode in episodes])
        file["proprio"] = np.concatenate([episode.joints for episode in episodes])
    return path


def write_clips(path: Path, episodes: list[Recorded]) -> Path:
    """Clips with actions beside them: the first in CSV, the others in NumPy's format."""
    path.mkdir(parents=True)
    for index, episode in enumerate(episodes):
        clip = path / f"reach_{index}.mp4"
        write_clip(clip, episode.frames, RATE)
        np.save(clip.with_suffix(".proprioception.npy"), episode.joints)
        if index == 0:
            rows = [",".join(f"{value:.9g}" for value in row) for row in episode.actions[:-1]]
            clip.with_suffix(".csv").write_text("\n".join(["shoulder,elbow", *rows]) + "\n")
        else:
            np.save(clip.with_suffix(".npy"), episode.actions)
    return path


def _write_info(path: Path, version: str, episodes: list[Recorded], data_path: str, video_path: str) -> None:
    (path / "meta").mkdir(parents=True)
    names, width = ["shoulder", "elbow"], episodes[0].joints.shape[1]
    info = {
        "codebase_version": version,
        "robot_type": "planar arm",
        "total_episodes": len(episodes),
        "total_frames": sum(len(episode.frames) for episode in episodes),
        "chunks_size": 1000,
        "fps": int(RATE),
        "data_path": data_path,
        "video_path": video_path,
        "features": {
            "action": {"dtype": "float32", "shape": [2], "names": {"motors": names}},
            "observation.state": {"dtype": "float32", "shape": [width], "names": None},
            CAMERA: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    }
    (path / "meta/info.json").write_text(json.dumps(info))


def _rows(index: int, episode: Recorded) -> list[dict[str, Any]]:
    return [
        {
            "action": episode.actions[at].tolist(),
            "observation.state": episode.joints[at].tolist(),
            "timestamp": np.float32(at / RATE).item(),
            "frame_index": at,
            "episode_index": index,
        }
        for at in range(len(episode.frames))
    ]


def _write_table(path: Path, groups: list[list[dict[str, Any]]]) -> None:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([row for group in groups for row in group]), path)
