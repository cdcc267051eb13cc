"""LeRobot datasets, versions 2.0, 2.1 and 3.0: parquet tables beside MP4 files, described by `meta/info.json`.

Version 2 keeps a table and a clip for each episode; version 3 keeps many episodes in each file, and says in
`meta/episodes/` where one begins. Frames stored as images inside the tables are read too. Needs pyarrow (the extra
`datasets`). Statistics and language tasks are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import DatasetError, DatasetHeader, Episode, ReadOptions, as_table, chosen_camera, numbered
from training.data.pictures import decoded_images, frames_at

if TYPE_CHECKING:
    from pyarrow import Table

INFO = Path("meta/info.json")
ACTION, STATE = "action", "observation.state"
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
    clip_start_s: float


class LeRobot:
    """A LeRobot dataset's folder, open for reading. Satisfies `training.data.dataset.Dataset`."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Raises DatasetError: a description that is not one, a version not known, no action, no such camera."""
        info = _read_json(path / INFO)
        version = str(info.get("codebase_version", "")).removeprefix("v")
        if version not in ("2.0", "2.1", "3.0"):
            raise DatasetError(f"{path / INFO}: codebase_version must be v2.0, v2.1 or v3.0, got {version!r}")
        features = info.get("features")
        if not isinstance(features, dict) or not isinstance(features.get(ACTION), dict):
            raise DatasetError(f"{path / INFO}: features must name {ACTION}")
        kinds = {name: str(feature.get("dtype")) for name, feature in features.items() if isinstance(feature, dict)}
        cameras = tuple(name for name, kind in kinds.items() if kind in ("video", "image"))
        camera = chosen_camera(cameras, options.camera, path)
        state = options.proprioception or STATE
        if options.proprioception and state not in features:
            raise DatasetError(f"{path / INFO}: proprioception must be a feature, got {state!r}")
        self._state = state if state in features else ""
        self._table: tuple[Path, Table] | None = None
        templates = tuple(
            str(info.get(key) or default)
            for key, default in zip(("data_path", "video_path"), _TEMPLATES[version[0]], strict=True)
        )
        locate = _places_2 if version[0] == "2" else _places_3
        self._places = locate(path, info, templates, camera if kinds[camera] == "video" else "")
        self.header = DatasetHeader(
            format=f"lerobot v{version}",
            path=path,
            rate_hz=options.rate_hz or _number(info, "fps", path / INFO),
            action_names=_names(features[ACTION], "action"),
            proprioception_names=_names(features[state], "state") if self._state else (),
            cameras=cameras,
            camera=camera,
            episodes=tuple(f"episode {place.index}" for place in self._places),
        )

    def episode(self, index: int) -> Episode:
        """The numbers of one episode. Raises DatasetError."""
        place, name = self._places[index], self.header.episodes[index]
        table = self._rows(place, name)
        columns = {column: _numbers(table, column, name) for column in (ACTION, self._state) if column}
        timed = "timestamp" in table.schema.names
        times = _numbers(table, "timestamp", name)[:, 0].astype(np.float64) if timed else None
        state = columns[self._state] if self._state else np.zeros((place.length, 0), np.float32)
        return Episode(name, place.length, columns[ACTION], state, times)

    def frames(self, index: int) -> Iterator[NDArray[np.uint8]]:
        """The camera's frames, in batches. Raises DatasetError."""
        place, name = self._places[index], self.header.episodes[index]
        if place.clip is not None:
            period = 1 / self.header.rate_hz
            yield from frames_at(
                place.clip, place.clip_start_s + period * np.arange(place.length, dtype=np.float64), period / 2
            )
            return
        column = _column(self._rows(place, name), self.header.camera, name)
        rows = (row["bytes"] if isinstance(row, dict) else row for row in column.to_pylist())
        encoded = (row if isinstance(row, bytes) else b"" for row in rows)
        yield from decoded_images(encoded, f"{name}: {self.header.camera}")

    def _rows(self, place: _Place, name: str) -> Table:
        """The episode's rows; the file they came from stays open for the next episode, which often lies there too."""
        import pyarrow.compute as compute

        wanted = [ACTION, self._state, "timestamp", "episode_index", "" if place.clip else self.header.camera]
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
    for line, text in enumerate(_read_text(listing).splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{listing} line {line}"
        entry = _json_object(text, where)
        index, length = _whole(entry, "episode_index", where), _whole(entry, "length", where)
        values = {"episode_chunk": index // chunk, "episode_index": index, "video_key": camera}
        table, clip = (_inside(path, _fill(template, values)) for template in templates)
        places.append(_Place(index, length, table, clip if camera else None, 0.0))
    return tuple(places)


def _places_3(path: Path, info: Mapping[str, Any], templates: tuple[str, ...], camera: str) -> tuple[_Place, ...]:
    """Where version 3 keeps its episodes: the tables under `meta/episodes/` say file and time of each."""
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    if camera:
        columns += [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    places = []
    files = sorted((path / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{path / 'meta' / 'episodes'}: holds no chunk-*/file-*.parquet")
    for file in files:
        table = _read_table(file, columns)
        for column in columns:
            _column(table, column, str(file))
        for entry in table.to_pylist():
            place, clip = {"chunk_index": entry[columns[2]], "file_index": entry[columns[3]]}, None
            start = 0.0
            if camera:
                spot = {"video_key": camera, "chunk_index": entry[columns[4]], "file_index": entry[columns[5]]}
                clip, start = _inside(path, _fill(templates[1], spot)), float(entry[columns[6]])
            home = _inside(path, _fill(templates[0], place))
            places.append(_Place(int(entry["episode_index"]), int(entry["length"]), home, clip, start))
    return tuple(sorted(places, key=lambda place: place.index))


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
        raise DatasetError(f"{path}: no such file") from error
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


def _numbers(table: Table, name: str, where: str) -> NDArray[np.float32]:
    """A column of numbers, or of equally long lists of numbers, as `[rows, numbers]`."""
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
    return as_table(values.reshape(rows, -1) if rows else values.reshape(0, 1), f"{where}: {name}")


def _names(feature: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    """One name for each number of a feature; they are kept as a list, a list in a dictionary, or not at all."""
    shape = feature.get("shape")
    width = shape[0] if isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) else None
    names = feature.get("names")
    if isinstance(names, dict):
        names = [entry for group in names.values() for entry in (group if isinstance(group, list) else [group])]
    if isinstance(names, list) and names and (width is None or len(names) == width):
        return tuple(str(name) for name in names)
    if width is None:
        raise DatasetError(f"feature {prefix}: shape must be one number, got {shape!r}")
    return numbered(prefix, width)


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
        return path.read_text()
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
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
