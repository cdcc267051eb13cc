"""LeRobot datasets, versions 2.0, 2.1 and 3.0: parquet tables beside MP4 files, described by `meta/info.json`.

Version 2 keeps a table and a clip for each episode; version 3 keeps many episodes in each file, and says in
`meta/episodes/` where one begins. A row's frame is the one nearest to the row's own timestamp, as LeRobot pairs them:
tables may be thinned or cut while their clips are left whole. Frames stored as images inside the tables are read too.
Needs pyarrow (the extra `datasets`). Statistics and language tasks are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import DatasetError, DatasetHeader, Episode, ReadOptions, as_table, chosen_camera
from training.data.names import names_of, numbered
from training.data.pictures import CLIP_LIMITS, absent, clip_starts, decoded_images, frames_at

if TYPE_CHECKING:
    from pyarrow import Table

INFO = Path("meta/info.json")
ACTION, STATE = ("action", "actions"), ("observation.state", "state")
MAX_META_BYTES = 256 * 2**20
MAX_TABLE_BYTES = 4 * 2**30  # of one parquet file, uncompressed
_TEMPLATES = {
    "2": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "3": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}


@dataclass(frozen=True)
class _Place:
    """Where an episode lies."""

    index: int  # its number in the tables
    length: int  # frames
    table: Path
    clip: Path | None  # None: the frames are images in the table
    clip_start_s: float = 0.0
    clip_end_s: float | None = None  # None: with the clip, or nobody says
    problem: str = ""  # what keeps it from being read at all


class LeRobot:
    """A LeRobot dataset's folder, open for reading. Satisfies `training.data.dataset.Dataset`."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Raises DatasetError: a description that is not one, a version not known, no action, no such camera or key."""
        info = _read_json(path / INFO)
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
        templates = tuple(
            str(info.get(key) or default)
            for key, default in zip(("data_path", "video_path"), _TEMPLATES[version[0]], strict=True)
        )
        locate = _places_2 if version[0] == "2" else _places_3
        places = locate(path, info, templates, camera if kinds[camera] == "video" else "")
        self._places = _without_doubles(places)
        self.header = DatasetHeader(
            format=f"lerobot v{version}",
            path=path,
            rate_hz=options.rate_hz or _number(info, "fps", path / INFO),
            action_names=_names(features[self._action], "action"),
            proprioception_names=_names(features[self._state], "state") if self._state else (),
            cameras=cameras,
            camera=camera,
            episodes=tuple(f"episode {place.index}" for place in self._places),
            notes=_counted(info, len({place.index for place in places})),
        )

    def episode(self, index: int) -> Episode:
        """The numbers of one episode. Raises DatasetError."""
        place, name = self._places[index], self.header.episodes[index]
        table = self._rows(place, name)
        columns = {
            column: as_table(_numbers(table, column, name), f"{name}: {column}")
            for column in (self._action, self._state)
            if column
        }
        times = _numbers(table, "timestamp", name)[:, 0].astype(np.float64) if _timed(table) else None
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
        column = _column(self._rows(place, name), self.header.camera, name)
        rows = (row["bytes"] if isinstance(row, dict) else row for row in column.to_pylist())
        encoded = (row if isinstance(row, bytes) else b"" for row in rows)
        yield from decoded_images(encoded, f"{name}: {self.header.camera}")

    def _clip_times(self, place: _Place, name: str, table: Table) -> tuple[NDArray[np.float64], str]:
        """When each row's frame is shown, in seconds since the first of the episode's part of its clip; and a note.

        That is the row's timestamp. A clock that counts from elsewhere (an epoch, a robot's start) is set by
        `frame_index`, the row's place in what was recorded. Without timestamps, `frame_index` alone tells.
        """
        assert place.clip is not None
        numbers = table.schema.names
        places = np.arange(table.num_rows, dtype=np.float64)
        if "frame_index" in numbers:
            places = _numbers(table, "frame_index", name)[:, 0].astype(np.float64)
        if not _timed(table):
            return places / self.header.rate_hz, ""
        times = _numbers(table, "timestamp", name)[:, 0].astype(np.float64)
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

    def _counts_from_elsewhere(self, place: _Place, first_s: float) -> bool:
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

    def _rows(self, place: _Place, name: str) -> Table:
        """The episode's rows; the file they came from stays open for the next episode, which often lies there too."""
        import pyarrow.compute as compute

        if place.problem:
            raise DatasetError(f"{name}: {place.problem}")
        wanted = [self._action, self._state, "timestamp", "frame_index", "episode_index"]
        wanted.append("" if place.clip else self.header.camera)
        if self._table is None or self._table[0] != place.table:
            self._table = place.table, _read_table(place.table, [column for column in wanted if column])
        table = self._table[1]
        if "episode_index" in table.schema.names:
            table = table.filter(compute.equal(table.column("episode_index"), place.index))
        if table.num_rows != place.length:
            raise DatasetError(f"{name}: must have {place.length} rows in {place.table}, got {table.num_rows}")
        return table


def _places_2(path: Path, info: Mapping[str, Any], templates: tuple[str, ...], camera: str) -> tuple[_Place, ...]:
    """Where version 2 keeps its episodes: `meta/episodes.jsonl` counts them, templates name their files."""
    listing = path / "meta" / "episodes.jsonl"
    chunk = int(_number(info, "chunks_size", path / INFO))
    places = []
    for line, text in enumerate(_read_text(listing).split("\n"), start=1):  # a task's text may hold other breaks
        if not text.strip():
            continue
        where = f"{listing} line {line}"
        entry = _json_object(text, where)
        index, length = _whole(entry, "episode_index", where), _whole(entry, "length", where)
        values = {"episode_chunk": index // chunk, "episode_index": index, "video_key": camera}
        table, clip = (_inside(path, _fill(template, values)) for template in templates)
        places.append(_Place(index, length, table, clip if camera else None))
    owners: dict[Path, set[int]] = {}
    for place in places:
        if place.clip is not None:
            owners.setdefault(place.clip, set()).add(place.index)
    return tuple(
        replace(
            place, problem=f"has the clip of {len(owners[place.clip])} episodes, {place.clip.name}, which say no part"
        )
        if place.clip is not None and len(owners[place.clip]) > 1
        else place
        for place in places
    )


def _places_3(path: Path, info: Mapping[str, Any], templates: tuple[str, ...], camera: str) -> tuple[_Place, ...]:
    """Where version 3 keeps its episodes: the tables under `meta/episodes/` say file and time of each."""
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    if camera:
        columns += [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    places = []
    ends: list[float | None]
    files = sorted((path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{path / 'meta' / 'episodes'}: holds no chunk-*/file-*.parquet")
    for file in files:
        until = f"videos/{camera}/to_timestamp"
        table = _read_table(file, [*columns, until])
        for column in columns:
            _column(table, column, str(file))
        ends = table.column(until).to_pylist() if camera and until in table.schema.names else [None] * table.num_rows
        for entry, end in zip(table.to_pylist(), ends, strict=True):
            place, clip = {"chunk_index": entry[columns[2]], "file_index": entry[columns[3]]}, None
            start = 0.0
            if camera:
                spot = {"video_key": camera, "chunk_index": entry[columns[4]], "file_index": entry[columns[5]]}
                clip, start = _inside(path, _fill(templates[1], spot)), float(entry[columns[6]])
            home = _inside(path, _fill(templates[0], place))
            last = None if end is None else float(end)
            places.append(_Place(int(entry["episode_index"]), int(entry["length"]), home, clip, start, last))
    rate = _number(info, "fps", path / INFO)
    return _without_contradictions(tuple(sorted(places, key=lambda place: place.index)), rate)


def _without_contradictions(places: tuple[_Place, ...], rate_hz: float) -> tuple[_Place, ...]:
    """Parts of clips that run backwards, and parts that two episodes claim, are problems of those episodes.

    Of two that overlap, the one whose part is as long as its rows is believed where the other's is not.
    """
    checked = list(places)
    claims: dict[tuple[Path, float, float, int], int] = {}
    for at, place in enumerate(checked):
        if place.clip is None or place.clip_end_s is None:
            continue
        begin, end = place.clip_start_s, place.clip_end_s
        if not (0 <= begin < end):
            checked[at] = replace(place, problem=f"its part of {place.clip.name} is {begin:.3f} to {end:.3f} s")
        else:
            claims[place.clip, begin, end, at] = at
    half = 0.5 / rate_hz
    reaches: dict[Path, int] = {}  # of each clip, the episode so far whose part ends last
    for clip, begin, _, at in sorted(claims):
        before = reaches.get(clip)
        if before is not None and (places[before].clip_end_s or 0.0) - begin > half and not _same(places, before, at):
            one, other = _as_long_as_its_rows(places[before], half), _as_long_as_its_rows(places[at], half)
            for mine, theirs, agrees, opposed in ((before, at, one, other), (at, before, other, one)):
                if not agrees or opposed:
                    checked[mine] = replace(places[mine], problem=_overlap(places[mine], places[theirs]))
        if before is None or (places[at].clip_end_s or 0.0) > (places[before].clip_end_s or 0.0):
            reaches[clip] = at
    return tuple(checked)


def _same(places: tuple[_Place, ...], one: int, other: int) -> bool:
    """Whether these are listings of one episode, which is another problem."""
    return places[one].index == places[other].index


def _as_long_as_its_rows(place: _Place, half: float) -> bool:
    span = (place.clip_end_s or 0.0) - place.clip_start_s
    return abs(span - place.length * 2 * half) <= half


def _overlap(place: _Place, other: _Place) -> str:
    assert place.clip is not None
    own, its = (f"{each.clip_start_s:.3f} to {each.clip_end_s:.3f} s" for each in (place, other))
    return f"its part of {place.clip.name}, {own}, overlaps with that of episode {other.index}, {its}"


def _without_doubles(places: tuple[_Place, ...]) -> tuple[_Place, ...]:
    """An episode that is listed again is a problem; one that is listed otherwise the second time, twice."""
    first: dict[int, int] = {}
    checked = list(places)
    for at, place in enumerate(places):
        if place.index not in first:
            first[place.index] = at
            continue
        before = first[place.index]
        checked[at] = replace(place, problem="is listed again: an episode counts once")
        if replace(place, problem="") != replace(places[before], problem=""):
            checked[before] = replace(places[before], problem="is listed twice, and differently")
    return tuple(checked)


def _counted(info: Mapping[str, Any], listed: int) -> tuple[str, ...]:
    """A note where the description counts other episodes than the listing."""
    total = info.get("total_episodes")
    if not isinstance(total, int) or isinstance(total, bool) or total == listed:
        return ()
    return (f"{INFO} counts {total} episodes, {listed} are listed",)


def _feature(features: Mapping[str, Any], key: str, usual: tuple[str, ...], option: str, path: Path) -> str:
    """The feature that is asked for, or the first usual one there is; empty where there is none."""
    known = [name for name, feature in features.items() if isinstance(feature, dict)]
    if key and key not in known:
        raise DatasetError(f"{path / INFO}: {option} must be a feature, one of {', '.join(known)}; got {key!r}")
    return key or next((name for name in usual if name in known), "")


def _timed(table: Table) -> bool:
    return "timestamp" in table.schema.names


def _read_table(path: Path, columns: list[str]) -> Table:
    """Some columns of a parquet file, those of them that it has."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            described = file.metadata
            size = sum(described.row_group(group).total_byte_size for group in range(described.num_row_groups))
            if size > MAX_TABLE_BYTES:
                raise DatasetError(f"{path}: holds {size} bytes; at most {MAX_TABLE_BYTES} are read")
            return file.read([column for column in columns if column in file.schema_arrow.names])
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: {absent(path)}") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: is not a whole parquet file: {str(error).splitlines()[0]}") from error


def _column(table: Table, name: str, where: str) -> Any:
    """A column without holes."""
    if name not in table.schema.names:
        raise DatasetError(f"{where}: lacks the column {name}")
    column = table.column(name)
    if column.null_count:
        raise DatasetError(f"{where}: column {name} has {column.null_count} empty rows")
    return column


def _numbers(table: Table, name: str, where: str) -> NDArray[np.generic]:
    """A column of numbers, or of equally long lists of numbers, as `[rows, numbers]` in the type it is kept in."""
    import pyarrow
    import pyarrow.compute as compute

    column = _column(table, name, where).combine_chunks()
    if isinstance(column, pyarrow.ChunkedArray):  # what older versions make of a column without rows
        column = pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type)
    rows = len(column)
    if pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type):
        widths = set(compute.list_value_length(column).to_pylist())
        if len(widths) > 1:
            raise DatasetError(f"{where}: rows of {name} must be equally long, got {sorted(widths)}")
        column = column.flatten()
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    values = values.reshape(rows, -1) if rows else values.reshape(0, 1)
    if values.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: {name} must hold rows of numbers, got {column.type}")
    return values


def _names(feature: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    """One name for each number of a feature; numbered where none are kept, or more or fewer than it has."""
    shape = feature.get("shape")
    width = shape[0] if isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) else None
    if width is None:
        raise DatasetError(f"feature {prefix}: shape must be one number, got {shape!r}")
    return names_of(feature.get("names"), width) or numbered(prefix, width)


def _fill(template: str, values: Mapping[str, Any]) -> str:
    """A path from a template of the dataset's own: names and widths only, none of Python's format language."""

    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise DatasetError(f"path template {template!r}: {match[1]} is not known here")
        return str(values[match[1]]).zfill(int(match[2] or 0))

    return re.sub(r"\{(\w+)(?::0(\d)d)?\}", fill, template)


def _inside(root: Path, relative: str) -> Path:
    """A file of the dataset. Raises DatasetError for a path that leads out of it."""
    path = root / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise DatasetError(f"{root}: names a file outside itself: {relative}")
    return path


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_META_BYTES:
            raise DatasetError(f"{path}: has more than {MAX_META_BYTES} bytes")
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: {absent(path)}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not text") from error


def _read_json(path: Path) -> dict[str, Any]:
    return _json_object(_read_text(path), str(path))


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{where}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: must hold an object, got {type(value).__name__}")
    return value


def _number(entry: Mapping[str, Any], key: str, where: object) -> float:
    value = entry.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise DatasetError(f"{where}: {key} must be a positive number, got {value!r}")
    return float(value)


def _whole(entry: Mapping[str, Any], key: str, where: object) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DatasetError(f"{where}: {key} must be a whole number, got {value!r}")
    return value
