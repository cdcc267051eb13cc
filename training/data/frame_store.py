"""Frames at a model's size in one file that can be mapped: decoded and scaled once, used by every epoch and resume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.preprocessing import CropPolicy, fit
from training.data.dataset import DatasetError

FRAMES, LISTING = "frames.raw", "frames.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """Frames to keep: the first `frames` of what `read` gives; fewer are an error."""

    name: str
    frames: int
    read: Callable[[], Iterator[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Skipped:
    """What was left out."""

    name: str
    reason: str


@dataclass(frozen=True)
class Kept:
    """Which sources are in the file, in order, and which are not."""

    indices: tuple[int, ...]
    skipped: tuple[Skipped, ...]
    digest: str  # sha256 of the frames, hexadecimal


def keep_frames(
    store: Path,
    key: str,
    sources: Sequence[Source],
    image_size: int,
    crop_policy: CropPolicy,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Kept:
    """Write the frames of all sources that can be read into `store`, one source after the other.

    With `stride` each begins so many frames after the one before; what a shorter one leaves out takes no room on the
    disk. A file that was finished with the same `key` is used as it is. Raises DatasetError where the disk has no room.
    """
    listing = store / LISTING
    if listing.is_file() and (known := json.loads(listing.read_text()))["key"] == key and (store / FRAMES).is_file():
        return Kept(tuple(known["indices"]), tuple(Skipped(**entry) for entry in known["skipped"]), known["digest"])
    store.mkdir(parents=True, exist_ok=True)
    listing.unlink(missing_ok=True)
    size = image_size * image_size * 3
    needed, free = size * sum(source.frames for source in sources), shutil.disk_usage(store).free
    if needed > free:
        raise DatasetError(f"{store}: needs {needed / 1e9:.1f} GB for frames, {free / 1e9:.1f} GB are free")
    indices: list[int] = []
    skipped: list[Skipped] = []
    digest = hashlib.sha256()
    end = 0
    with (store / FRAMES).open("wb") as file:
        for index, source in enumerate(sources):
            file.seek(end)
            written, reason = 0, ""
            of_source = hashlib.sha256()
            try:
                for batch in source.read():
                    scaled = fit(torch.from_numpy(np.array(batch)), crop_policy, (image_size, image_size))
                    scaled = scaled[: source.frames - written].contiguous()
                    file.write(scaled.numpy().data)
                    of_source.update(scaled.numpy().data)
                    written += len(scaled)
                if written != source.frames:
                    reason = f"has {written} pictures, not {source.frames}"
            except DatasetError as error:
                reason = f"frames cannot be read: {error}"
            if reason:
                skipped.append(Skipped(source.name, reason))
            else:
                indices.append(index)
                digest.update(of_source.digest())
                end += size * (source.frames if stride is None else stride)
            if progress is not None:
                progress(index + 1, len(sources))
        file.truncate(end)
    temporary = listing.with_suffix(".new")
    listed = {"indices": indices, "skipped": [asdict(each) for each in skipped], "digest": digest.hexdigest()}
    temporary.write_text(json.dumps({"key": key, **listed}))
    os.replace(temporary, listing)
    return Kept(tuple(indices), tuple(skipped), digest.hexdigest())


def kept_frames(store: Path, image_size: int) -> NDArray[np.uint8]:
    """The frames in `store`, `[frames, image_size, image_size, 3]`.

    Mapped copy-on-write: torch warns of arrays that it may not write to, though nothing here does.
    """
    frames: NDArray[np.uint8] = np.memmap(store / FRAMES, np.uint8, "c")
    return frames.reshape(-1, image_size, image_size, 3)


def remove_frames(store: Path) -> None:
    """Give back the room that `keep_frames` took."""
    for name in (LISTING, FRAMES):
        (store / name).unlink(missing_ok=True)
