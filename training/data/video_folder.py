"""Reads folders of videos and images, with subfolders. For clips with actions see `training.data.formats.clips`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.preprocessing import CropPolicy
from model.video.probe import ClipIndex, VideoDecodeError, survey
from training.data.dataset import DatasetError, is_hidden
from training.data.formats.clips import SUFFIXES
from training.data.formats.names import natural
from training.data.frame_store import Progress, Skipped, Source, keep_frames, kept_frames
from training.data.pictures import CLIP_LIMITS, STAMP_SLACK_S, absent, decode_image, frames_at
from training.data.video_dataset import FrameDataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_IMAGE_BYTES = 64 * 2**20


def read_footage(
    paths: Sequence[Path],
    store: Path,
    image_size: int,
    fps: float,
    crop_policy: CropPolicy = "planning_antialiased",
    progress: Progress | None = None,
) -> tuple[FrameDataset, tuple[Skipped, ...]]:
    """All videos (at `fps` frames a second, or their own rate where it is lower) and images below `paths`.

    Frames are kept `image_size` square in the folder `store`. Files that cannot be read are left out, with the reason.
    Raises DatasetError: no such path, nothing to read, no room on the disk.
    """
    if not 0 < fps <= 1000:
        raise DatasetError(f"fps must be above 0 and at most 1000, got {fps}")
    sources: list[Source] = []
    skipped: list[Skipped] = []
    digest = hashlib.sha256(f"{image_size} {fps} {crop_policy}".encode())
    for path in _files(paths):
        if not path.exists():
            skipped.append(Skipped(str(path), absent(path)))
            continue
        try:
            sources.append(_image(path) if path.suffix.lower() in IMAGE_SUFFIXES else _video(path, fps))
        except DatasetError as error:
            skipped.append(Skipped(str(path), str(error)))
            continue
        status = path.stat()
        digest.update(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}".encode())
    kept = keep_frames(store, digest.hexdigest(), sources, image_size, crop_policy, progress=progress)
    skipped += kept.skipped
    if not kept.indices:
        first = f": {skipped[0].reason}" if skipped else ""
        raise DatasetError(f"{', '.join(map(str, paths))}: no video or image can be read{first}")
    lengths = np.array([sources[index].frames for index in kept.indices], np.int64)
    images = int((lengths == 1).sum())
    said = f"{len(lengths) - images} clips and {images} images, {lengths.sum()} frames at up to {fps:g} a second"
    left_out = f", {len(skipped)} files left out" if skipped else ""
    names = ", ".join(path.name for path in paths)
    footage = FrameDataset(
        frames=kept_frames(store, image_size),
        starts=lengths.cumsum() - lengths,
        lengths=lengths,
        crop_policy=crop_policy,
        source=f"{names}: {said}{left_out}",
        frames_digest=kept.digest,
    )
    return footage, tuple(skipped)


def _files(paths: Sequence[Path]) -> list[Path]:
    """Files that look like videos or images, in a steady order; links that lead in circles are not followed."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DatasetError(f"{path}: no such file or folder")
        found += [path] if path.is_file() else _below(path)
    chosen = [path for path in found if path.suffix.lower() in (*SUFFIXES, *IMAGE_SUFFIXES)]
    if not chosen:
        endings = " ".join((*SUFFIXES, *IMAGE_SUFFIXES))
        raise DatasetError(f"{', '.join(map(str, paths))}: holds none of {endings}")
    return chosen


def _below(path: Path) -> list[Path]:
    """The files in a folder and its subfolders, in natural order; hidden ones are passed over."""
    files = [file for file in path.rglob("*") if (file.is_file() or file.is_symlink()) and not is_hidden(file, path)]
    return sorted(files, key=lambda file: natural(file.relative_to(path).as_posix()))


def _video(path: Path, fps: float) -> Source:
    """The frames that are on screen at k / fps seconds, each of them once."""
    try:
        index: ClipIndex = survey(path, CLIP_LIMITS)
    except VideoDecodeError as error:
        raise DatasetError(f"{path}: {error}") from error
    shown = index.timestamps_s
    asked = np.arange(int((shown[-1] + STAMP_SLACK_S) * fps) + 1) / fps
    times = shown[np.unique(np.searchsorted(shown, asked + STAMP_SLACK_S, side="right") - 1)]
    return Source(str(path), len(times), partial(frames_at, path, times))


def _image(path: Path) -> Source:
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise DatasetError(f"{path}: has more than {MAX_IMAGE_BYTES} bytes")
    return Source(str(path), 1, partial(_read_image, path))


def _read_image(path: Path) -> Iterator[NDArray[np.uint8]]:
    yield decode_image(path.read_bytes(), str(path))[None]
