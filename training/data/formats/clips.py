"""A folder of clips with actions beside them: `NAME.mp4` and `NAME.npy` or `NAME.csv`, one row for each frame.

The last row may be missing, for no frame follows it. A CSV file may begin with a line of names. What the robot measured
at each frame stands in `NAME.proprioception.npy`, where it is there.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.video.probe import VideoDecodeError, survey
from training.data.dataset import DatasetError, DatasetHeader, Episode, ReadOptions, as_table, chosen_camera
from training.data.formats.names import natural, numbered, unique
from training.data.pictures import CLIP_LIMITS, absent, every_frame

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
TABLES = (".npy", ".csv")
MAX_TABLE_BYTES = 256 * 2**20


class ClipFolder:
    """A folder of clips and actions. Satisfies `training.data.dataset.Dataset`."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Raises DatasetError: no clip, or none that can be read and has actions."""
        clips = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
        self._clips = tuple(sorted(clips, key=lambda clip: natural(clip.name)))
        if not self._clips:
            raise DatasetError(f"{path}: holds no clips ({', '.join(SUFFIXES)})")
        self._state = options.state_key or "proprioception"
        self._tables = tuple(f".{options.action_key}{end}" if options.action_key else end for end in TABLES)
        chosen, first, rate = self._first_whole(path)
        _, names = _read_table(first)
        measured = chosen.with_suffix(f".{self._state}.npy")
        self._width = _read_table(measured)[0].shape[1] if measured.exists() else 0
        self.header = DatasetHeader(
            format="clips",
            path=path,
            rate_hz=options.rate_hz or rate,
            action_names=names,
            proprioception_names=numbered(self._state, self._width),
            cameras=("clip",),
            camera=chosen_camera(("clip",), options.camera, path),
            episodes=tuple(clip.name for clip in self._clips),
        )

    def episode(self, index: int) -> Episode:
        """The numbers of one episode. Raises DatasetError."""
        clip = self._clips[index]
        times, rate = _times(clip)
        if abs(rate - self.header.rate_hz) > 0.01 * self.header.rate_hz:
            raise DatasetError(
                f"{clip}: must have {self.header.rate_hz:g} frames a second like the first, got {rate:g}"
            )
        table = self._table_of(clip)
        if table is None:
            raise DatasetError(f"{clip}: has no actions: {clip.stem}{' or '.join(self._tables)} is missing")
        actions, _ = _read_table(table)
        measured = np.zeros((len(times), 0), np.float32)
        if self._width:
            measured, _ = _read_table(clip.with_suffix(f".{self._state}.npy"))
        return Episode(clip.name, len(times), actions, measured, times)

    def frames(self, index: int) -> Iterator[NDArray[np.uint8]]:
        """The clip's frames, in batches. Raises DatasetError."""
        yield from every_frame(self._clips[index])

    def _table_of(self, clip: Path) -> Path | None:
        return next((path for path in (clip.with_suffix(end) for end in self._tables) if path.exists()), None)

    def _first_whole(self, path: Path) -> tuple[Path, Path, float]:
        """The first clip that can be read, its actions and its frame rate."""
        reasons = []
        for clip in self._clips:
            try:
                table = self._table_of(clip)
                if table is not None:
                    return clip, table, _times(clip)[1]
                reasons.append(f"{clip.name} has no {clip.stem}{' or '.join(self._tables)}")
            except DatasetError as error:
                reasons.append(str(error))
        raise DatasetError(f"{path}: no clip can be read and has actions: {reasons[0]}")


def _times(clip: Path) -> tuple[NDArray[np.float64], float]:
    """When each frame is shown, in seconds since the first, and the mean rate."""
    if not clip.is_file():
        raise DatasetError(f"{clip}: {absent(clip)}")
    try:
        index = survey(clip, CLIP_LIMITS)
    except VideoDecodeError as error:
        raise DatasetError(f"{clip}: {error}") from error
    return index.timestamps_s, index.description.fps


def _read_table(path: Path) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Rows of numbers and their names. Raises DatasetError."""
    if not path.is_file():
        raise DatasetError(f"{path}: {absent(path)}")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DatasetError(f"{path}: has more than {MAX_TABLE_BYTES} bytes")
    if path.suffix == ".csv":
        return _read_csv(path)
    try:
        table = as_table(np.load(path, allow_pickle=False), str(path))
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(f"{path}: is not a readable array: {error}") from error
    return table, numbered("action", table.shape[1])


def _read_csv(path: Path) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: is not a CSV file: {error}") from error
    if not rows:
        raise DatasetError(f"{path}: is empty")
    names = None if all(_is_number(cell) for cell in rows[0]) else tuple(cell.strip() for cell in rows[0])
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise DatasetError(f"{path} row {number}: must have {len(rows[0])} numbers, got {len(row)}")
        if (number > 1 or names is None) and not all(_is_number(cell) for cell in row):
            raise DatasetError(f"{path} row {number}: must hold numbers, got {','.join(row)[:60]}")
    values = [[float(cell) for cell in row] for row in (rows if names is None else rows[1:])]
    table = np.array(values, np.float32).reshape(-1, len(rows[0]))
    return table, unique(names) if names else numbered("action", table.shape[1])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
