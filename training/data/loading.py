"""Recordings to training episodes: numbers into memory, frames once to the model's size into a file that is mapped.

Episodes that cannot be used are left out and counted, with the reason. A file of frames that was finished is used
again by the next run with the same dataset and size.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from presage.fields import from_fields

from model.preprocessing import CropPolicy
from training.data.dataset import Dataset, DatasetError, Episode
from training.data.episodes import Episodes, held_notes
from training.data.frame_store import Progress, Skipped, Source, keep_frames, kept_frames
from training.data.inspection import counted, dangling_links, problems, repeat_of, repeats


def load_episodes(
    dataset: Dataset,
    store: Path,
    image_size: int,
    crop_policy: CropPolicy = "planning_antialiased",
    progress: Progress | None = None,
) -> tuple[Episodes, tuple[Skipped, ...]]:
    """Every usable episode, its frames `image_size` square and kept in the folder `store`, and those left out.

    Raises DatasetError: no usable episode, a rate nobody names, frames that the disk has no room for.
    """
    header = dataset.header
    if not header.rate_hz > 0:
        raise DatasetError(f"{header.path}: names no rate: say it with rate_hz")
    chosen, skipped = _numbers(dataset)
    sources = [
        Source(episode.name, episode.steps + 1, partial(dataset.frames, index)) for index, episode in chosen.items()
    ]
    longest = max((episode.steps for episode in chosen.values()), default=0)
    key = _key(dataset, list(chosen), image_size, crop_policy)
    kept = keep_frames(store, key, sources, image_size, crop_policy, longest + 1, progress)
    skipped += kept.skipped
    everything = list(chosen.values())
    used = [everything[index] for index in kept.indices]
    if not used:
        raise DatasetError(f"{header.path}: has no usable episode: {skipped[0].name}: {skipped[0].reason}")
    lengths = np.array([episode.steps for episode in used], np.int64)
    actions = [episode.actions[: episode.steps] for episode in used]
    recorded = np.concatenate(actions)
    episodes = from_fields(
        Episodes,
        header,
        frames=kept_frames(store, image_size).reshape(len(used), longest + 1, image_size, image_size, 3),
        actions=_padded(actions, longest),
        action_units=("as recorded",) * len(header.action_names),
        action_low=tuple(recorded.min(axis=0).tolist()),
        action_high=tuple(recorded.max(axis=0).tolist()),
        source=_source(dataset, lengths, skipped),
        probe_targets=_targets([episode.proprioception for episode in used], longest + 1),
        lengths=lengths,
        proprioception=_padded([episode.proprioception for episode in used], longest + 1),
        crop_policy=crop_policy,
        frames_digest=kept.digest,
        notes=(
            *header.notes,
            *counted(note for episode in used for note in episode.notes),
            *dangling_links(header.path),
        ),
    )
    return replace(episodes, notes=(*episodes.notes, *held_notes(episodes.held()))), tuple(skipped)


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
    for index, original in repeats(dataset, chosen).items():
        del chosen[index]
        skipped.append(Skipped(dataset.header.episodes[index], repeat_of(dataset.header, original)))
    return chosen, skipped


def _key(dataset: Dataset, chosen: list[int], image_size: int, crop_policy: str) -> str:
    """What a file of frames is made of: the files of the dataset as they lie there, and how they are scaled.

    Links are followed to what they lead to, as in the hub's cache; one that leads nowhere counts for nothing.
    """
    digest = hashlib.sha256(f"frames 2 {dataset.header} {chosen} {image_size} {crop_policy}".encode())
    root = dataset.header.path
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if path.is_symlink() and not path.exists():
            continue
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
