"""LeRobot datasets, versions 2.0, 2.1 and 3.0: parquet tables beside MP4 files, described by `meta/info.json`.

Version 2 keeps a table and a clip for each episode; version 3 keeps many episodes in each file, and says in
`meta/episodes/` where one begins. A row's frame is the one nearest to the row's own timestamp, as LeRobot pairs them:
tables may be thinned or cut while their clips are left whole. Frames stored as images inside the tables are read too.
Needs pyarrow (the extra `datasets`). Statistics and language tasks are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import DatasetError, DatasetHeader, Episode, ReadOptions, as_table, chosen_camera
from training.data.formats.lerobot_layout import (
    INFO,
    EpisodePlace,
    counted,
    listed_places,
    positive_number,
    read_description,
    without_doubles,
)
from training.data.formats.names import names_of, numbered
from training.data.formats.parquet import read_columns, rows_of_numbers, whole_column
from training.data.pictures import CLIP_LIMITS, clip_starts, decoded_images, frames_at

if TYPE_CHECKING:
    from pyarrow import Table

ACTION, STATE = ("action", "actions"), ("observation.state", "state")


class LeRobot:
    """A LeRobot dataset's folder, open for reading. Satisfies `training.data.dataset.Dataset`."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Raises DatasetError: a description that is not one, a version not known, no action, no such camera or key."""
        info = read_description(path / INFO)
        version = str(info.get("codebase_version", "")).removeprefix("v")
        if version not in ("2.0", "2.1", "3.0"):
            raise DatasetError(f"{path / INFO}: codebase_version must be v2.0, v2.1 or v3.0, got {version!r}")
        features = info.get("features")
        if not isinstance(features, dict):
            raise DatasetError(f"{path / INFO}: must hold features, got {features!r}")
        self._action = _feature(features, options.action_key, ACTION, "action_key", path)
        if not self._action:
            raise DatasetError(f"{path / INFO}: features must name {ACTION[0]}; action_key says what else it is called")
        kinds = {name: str(feature.get("dtype")) for name, feature in features.items() if isinstance(feature, dict)}
        cameras = tuple(name for name, kind in kinds.items() if kind in ("video", "image"))
        camera = chosen_camera(cameras, options.camera, path)
        self._state = _feature(features, options.state_key, STATE, "state_key", path)
        self._table: tuple[Path, Table] | None = None
        places = listed_places(path, info, version[0], camera if kinds[camera] == "video" else "")
        self._places = without_doubles(places)
        self.header = DatasetHeader(
            format=f"lerobot v{version}",
            path=path,
            rate_hz=options.rate_hz or positive_number(info, "fps", path / INFO),
            action_names=_names(features[self._action], "action"),
            proprioception_names=_names(features[self._state], "state") if self._state else (),
            cameras=cameras,
            camera=camera,
            episodes=tuple(f"episode {place.index}" for place in self._places),
            notes=counted(info, len({place.index for place in places})),
        )

    def episode(self, index: int) -> Episode:
        """The numbers of one episode. Raises DatasetError."""
        place, name = self._places[index], self.header.episodes[index]
        table = self._rows(place, name)
        columns = {
            column: as_table(rows_of_numbers(table, column, name), f"{name}: {column}")
            for column in (self._action, self._state)
            if column
        }
        times = rows_of_numbers(table, "timestamp", name)[:, 0].astype(np.float64) if _timed(table) else None
        state = columns[self._state] if self._state else np.zeros((place.length, 0), np.float32)
        episode = Episode(name, place.length, columns[self._action], state, times)
        if place.clip is None or times is None or len(times) == 0 or not np.isfinite(times).all():
            return episode
        shown, note = self._clip_times(place, name, table)
        if place.clip_end_s is not None:
            half = 0.5 / self.header.rate_hz
            if shown[-1] > place.clip_end_s - place.clip_start_s + half:
                span = f"{place.clip_start_s:.3f} to {place.clip_end_s:.3f} s of {place.clip.name}"
                raise DatasetError(
                    f"{name}: its rows end {shown[-1]:.3f} s after its first frame, past its part, {span}"
                )
        return replace(episode, notes=(note,) if note else ())

    def frames(self, index: int) -> Iterator[NDArray[np.uint8]]:
        """The camera's frames, in batches. Raises DatasetError."""
        place, name = self._places[index], self.header.episodes[index]
        if place.clip is not None:
            shown, _ = self._clip_times(place, name, self._rows(place, name))
            yield from frames_at(place.clip, place.clip_start_s + shown)
            return
        column = whole_column(self._rows(place, name), self.header.camera, name)
        rows = (row["bytes"] if isinstance(row, dict) else row for row in column.to_pylist())
        encoded = (row if isinstance(row, bytes) else b"" for row in rows)
        yield from decoded_images(encoded, f"{name}: {self.header.camera}")

    def _clip_times(self, place: EpisodePlace, name: str, table: Table) -> tuple[NDArray[np.float64], str]:
        """When each row's frame is shown, in seconds since the first of the episode's part of its clip; and a note.

        That is the row's timestamp. A clock that counts from elsewhere (an epoch, a robot's start) is set by
        `frame_index`, the row's place in what was recorded. Without timestamps, `frame_index` alone tells.
        """
        assert place.clip is not None
        numbers = table.schema.names
        places = np.arange(table.num_rows, dtype=np.float64)
        if "frame_index" in numbers:
            places = rows_of_numbers(table, "frame_index", name)[:, 0].astype(np.float64)
        if not _timed(table):
            return places / self.header.rate_hz, ""
        times = rows_of_numbers(table, "timestamp", name)[:, 0].astype(np.float64)
        if not len(times) or not np.isfinite(times).all() or times[0] == 0:
            return times, ""
        if not self._counts_from_elsewhere(place, float(times[0])):
            begins = f"its rows begin {times[0]:.3f} s after the first frame of its clip, as their timestamps say"
            return times, begins if times[0] > 0 else ""
        note = f"its timestamps count from elsewhere ({times[0]:.3f} s): its first row is taken for frame {places[0]:g}"
        since = times - times[0]
        if len(times) < 2 or not (np.diff(places) > 0).all():
            return since, note
        period = float(np.polyfit(places, since, 1)[0])  # of `frame_index`, whose rate may not be the table's
        return since - float(np.median(since - period * places)), note

    def _counts_from_elsewhere(self, place: EpisodePlace, first_s: float) -> bool:
        """Whether an episode that begins at this time of its own clock cannot have begun so late in its clip."""
        assert place.clip is not None
        if first_s > CLIP_LIMITS.max_seconds:
            return True
        if place.clip_end_s is not None:
            return first_s >= place.clip_end_s - place.clip_start_s
        try:
            starts = clip_starts(place.clip)
        except DatasetError:  # whoever reads the clip says so
            return False
        return first_s > starts.end_s - place.clip_start_s + starts.period_s

    def _rows(self, place: EpisodePlace, name: str) -> Table:
        """The episode's rows; the file they came from stays open for the next episode, which often lies there too."""
        import pyarrow.compute as compute

        if place.problem:
            raise DatasetError(f"{name}: {place.problem}")
        wanted = [self._action, self._state, "timestamp", "frame_index", "episode_index"]
        wanted.append("" if place.clip else self.header.camera)
        if self._table is None or self._table[0] != place.table:
            self._table = place.table, read_columns(place.table, [column for column in wanted if column])
        table = self._table[1]
        if "episode_index" in table.schema.names:
            table = table.filter(compute.equal(table.column("episode_index"), place.index))
        if table.num_rows != place.length:
            raise DatasetError(f"{name}: must have {place.length} rows in {place.table}, got {table.num_rows}")
        return table


def _feature(features: Mapping[str, Any], key: str, usual: tuple[str, ...], option: str, path: Path) -> str:
    """The feature that is asked for, or the first usual one there is; empty where there is none."""
    known = [name for name, feature in features.items() if isinstance(feature, dict)]
    if key and key not in known:
        raise DatasetError(f"{path / INFO}: {option} must be a feature, one of {', '.join(known)}; got {key!r}")
    return key or next((name for name in usual if name in known), "")


def _timed(table: Table) -> bool:
    return "timestamp" in table.schema.names


def _names(feature: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    """One name for each number of a feature; numbered where none are kept, or more or fewer than it has."""
    shape = feature.get("shape")
    width = shape[0] if isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) else None
    if width is None:
        raise DatasetError(f"feature {prefix}: shape must be one number, got {shape!r}")
    return names_of(feature.get("names"), width) or numbered(prefix, width)
