"""Recordings to training episodes: numbers into memory, frames once to the model's size into a file that is mapped.

Episodes that cannot be used are left out and counted, with the reason. A file of frames that was finished is used
again by the next run with the same dataset and size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.observation import CropPolicy, fit
from model.video_probe import VideoDecodeError
from training.datasets.dataset import Dataset, DatasetError, Episode
from training.datasets.inspection import problems
from training.datasets.pictures import unreadable
from training.episodes import Episodes

FRAMES, LISTING = "frames.raw", "frames.json"


@dataclass(frozen=True)
class Skipped:
    """An episode that was left out."""

    name: str
    reason: str


def load_episodes(
    dataset: Dataset,
    store: Path,
    image_size: int,
    crop_policy: CropPolicy = "planning_antialiased",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Episodes, tuple[Skipped, ...]]:
    """Every usable episode, its frames `image_size` square and kept in the folder `store`, and those left out.

    Raises DatasetError: no usable episode, a rate nobody names, frames that the disk has no room for.
    """
    header = dataset.header
    if not header.rate_hz > 0:
        raise DatasetError(f"{header.path}: names no rate: say it with rate_hz")
    chosen, skipped = _numbers(dataset)
    kept, missing = _frames(dataset, chosen, store, image_size, crop_policy, progress)
    skipped += missing
    rows = {index: chosen[index] for index in kept}
    if not rows:
        raise DatasetError(f"{header.path}: has no usable episode: {skipped[0].name}: {skipped[0].reason}")
    lengths = np.array([episode.steps for episode in rows.values()], np.int64)
    longest = max(episode.steps for episode in chosen.values())
    shape = (len(rows), longest + 1, image_size, image_size, 3)
    # Mapped copy-on-write: torch warns of arrays that it may not write to, though nothing here does.
    frames: NDArray[np.uint8] = np.memmap(store / FRAMES, np.uint8, "c", shape=shape)
    actions = _padded([episode.actions[: episode.steps] for episode in rows.values()], longest)
    recorded = np.concatenate([episode.actions[: episode.steps] for episode in rows.values()])
    return Episodes(
        frames=frames,
        actions=actions,
        action_names=header.action_names,
        action_units=("as recorded",) * len(header.action_names),
        action_low=tuple(recorded.min(axis=0).tolist()),
        action_high=tuple(recorded.max(axis=0).tolist()),
        rate_hz=header.rate_hz,
        source=_source(dataset, lengths, skipped),
        probe_targets=_targets([episode.proprioception for episode in rows.values()], longest + 1),
        lengths=lengths,
        crop_policy=crop_policy,
    ), tuple(skipped)


def _numbers(dataset: Dataset) -> tuple[dict[int, Episode], list[Skipped]]:
    """Episodes whose numbers can be used, by index."""
    chosen: dict[int, Episode] = {}
    skipped: list[Skipped] = []
    for index, name in enumerate(dataset.header.episodes):
        try:
            episode = dataset.episode(index)
        except DatasetError as error:
            skipped.append(Skipped(name, str(error)))
            continue
        said = problems(episode, dataset.header)
        if said:
            skipped.append(Skipped(name, "; ".join(said)))
        else:
            chosen[index] = episode
    return chosen, skipped


def _frames(
    dataset: Dataset,
    chosen: dict[int, Episode],
    store: Path,
    image_size: int,
    crop_policy: CropPolicy,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[int], list[Skipped]]:
    """Write the frames of the chosen episodes into `store`, one row for each; the indices of those that were whole."""
    key = _key(dataset, chosen, image_size, crop_policy)
    listing = store / LISTING
    if listing.is_file() and (known := json.loads(listing.read_text()))["key"] == key and (store / FRAMES).is_file():
        return known["kept"], [Skipped(**entry) for entry in known["skipped"]]
    store.mkdir(parents=True, exist_ok=True)
    listing.unlink(missing_ok=True)
    size = image_size * image_size * 3
    needed, free = size * sum(episode.frames for episode in chosen.values()), shutil.disk_usage(store).free
    if needed > free:
        raise DatasetError(f"{store}: needs {needed / 1e9:.1f} GB for frames, {free / 1e9:.1f} GB are free")
    stride = size * (max((episode.steps for episode in chosen.values()), default=0) + 1)
    kept: list[int] = []
    skipped: list[Skipped] = []
    with (store / FRAMES).open("wb") as file:
        for done, (index, episode) in enumerate(chosen.items()):
            file.seek(len(kept) * stride)  # what a shorter episode leaves out takes no room on the disk
            reason = ""
            written = 0
            try:
                for batch in dataset.frames(index):
                    scaled = fit(torch.from_numpy(np.array(batch)), crop_policy, (image_size, image_size))
                    scaled = scaled[: episode.steps + 1 - written].contiguous()
                    file.write(scaled.numpy().data)
                    written += len(scaled)
                if written != episode.steps + 1:
                    reason = f"has {written} pictures, not {episode.frames}"
            except (DatasetError, VideoDecodeError) as error:
                reason = f"frames cannot be read: {unreadable(error, dataset.header.path)}"
            if reason:
                skipped.append(Skipped(episode.name, reason))
            else:
                kept.append(index)
            if progress is not None:
                progress(done + 1, len(chosen))
        file.truncate(len(kept) * stride)
    temporary = listing.with_suffix(".new")
    temporary.write_text(json.dumps({"key": key, "kept": kept, "skipped": [asdict(entry) for entry in skipped]}))
    os.replace(temporary, listing)
    return kept, skipped


def remove_frames(store: Path) -> None:
    """Give back the room that `load_episodes` took."""
    for name in (LISTING, FRAMES):
        (store / name).unlink(missing_ok=True)


def _key(dataset: Dataset, chosen: dict[int, Episode], image_size: int, crop_policy: str) -> str:
    """What a file of frames is made of: the files of the dataset as they lie there, and how they are scaled."""
    digest = hashlib.sha256(f"{dataset.header} {sorted(chosen)} {image_size} {crop_policy}".encode())
    root = dataset.header.path
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _padded(rows: list[NDArray[np.float32]], length: int) -> NDArray[np.float32]:
    table = np.zeros((len(rows), length, rows[0].shape[1]), np.float32)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _targets(proprioception: list[NDArray[np.float32]], length: int) -> NDArray[np.float32] | None:
    """What a probe of the latents should find: of the robot's own measurements those that vary."""
    varying = np.concatenate(proprioception).std(axis=0) > 1e-6 if proprioception[0].shape[1] else np.zeros(0, bool)
    return _padded([row[:, varying] for row in proprioception], length) if varying.any() else None


def _source(dataset: Dataset, lengths: NDArray[np.int64], skipped: list[Skipped]) -> str:
    header = dataset.header
    left_out = f", {len(skipped)} left out" if skipped else ""
    span = f"{lengths.min()} to {lengths.max()}" if lengths.min() < lengths.max() else f"{lengths.max()}"
    return f"{header.path.name} ({header.format}, {header.camera}): {len(lengths)} episodes of {span} steps{left_out}"
