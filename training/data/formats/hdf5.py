"""HDF5 recordings in the three layouts that labs use, told apart by the names in a file. Needs h5py (`datasets`).

- one file for each episode (ALOHA, ACT): `action`, `observations/qpos`, `observations/images/CAMERA`;
- one group for each episode (robomimic, LIBERO): `data/NAME/actions`, `data/NAME/obs/CAMERA`;
- one long table (LeWorldModel's sets): `ep_offset`, `ep_len`, and `action`, `pixels`, ... over all episodes.

A folder is all of its files, subfolders too, in natural order. Cameras are uint8 arrays `[frames, height, width, 3]`,
or encoded images in rows: padded, of variable length, or fixed bytes. Links that lead out of a file, and arrays kept
outside it, are not followed. Filters beside HDF5's own (Blosc, Zstandard, ...) need hdf5plugin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import (
    FRAMES_AT_ONCE,
    DatasetError,
    DatasetHeader,
    Episode,
    ReadOptions,
    as_table,
    chosen_camera,
    is_hidden,
)
from training.data.formats.names import names_of, natural, numbered
from training.data.pictures import absent, decoded_images

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".hdf5", ".h5")
ACTIONS = ("actions", "action")
STATES = ("observations/qpos", "obs/proprioception", "obs/proprio", "proprioception", "proprio", "qpos")
NAMES = ("names", "column_names", "columns", "labels")  # attributes of an array that say what its columns are
MAX_TABLE_BYTES = 2**30  # of one episode's numbers
_EACH = "a file each"
_ALL = slice(None)
_FILTERS = {32001: "Blosc", 32026: "Blosc2", 32015: "Zstandard", 32004: "LZ4", 32008: "bitshuffle", 307: "bzip2"}
_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")  # of JPEG, PNG and WebP files


@dataclass(frozen=True)
class _Place:
    """Where an episode lies."""

    name: str
    file: Path
    prefix: str  # of the names of its arrays
    rows: slice  # of those arrays
    rate_hz: float = 0.0  # that its file names, 0 where none
    problem: str = ""  # what keeps it from being read at all


class Hdf5:
    """HDF5 recordings, open for reading one episode at a time. Satisfies `training.data.dataset.Dataset`."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """`path` is a file, or a folder of files. Raises DatasetError where none of them holds an episode to read."""
        files = files_below(path) if path.is_dir() else [path]
        if not files:
            raise DatasetError(f"{path}: holds no {' or '.join(SUFFIXES)} file")
        actions = (options.action_key,) if options.action_key else ACTIONS
        places: list[_Place] = []
        reasons: list[str] = []
        layouts: set[str] = set()
        header: DatasetHeader | None = None
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            try:
                with _opened(file) as content:
                    arrays = _arrays(content)
                    layout, found = _places(file, name, arrays, actions)
                    if not found:
                        raise DatasetError(f"{file}: holds no episode")
                    if header is None:
                        header = self._header(path, file, found[0], arrays, options, actions, _rate(content))
                    rate = _rate(content)
            except DatasetError as error:
                reasons.append(str(error))
                places.append(_Place(name, file, "", _ALL, problem=str(error)))
                continue
            layouts.add(layout)
            alone = len(files) == 1 or layout == _EACH
            places += [replace(at, name=at.name if alone else f"{name}: {at.name}", rate_hz=rate) for at in found]
        if header is None:
            raise DatasetError(reasons[0])
        kind = ", ".join(sorted(layouts)) + (f", {len(files)} files" if len(files) > 1 and layouts != {_EACH} else "")
        self._places = tuple(_of_one_rate(place, header.rate_hz, options) for place in places)
        self.header = replace(header, format=f"hdf5 ({kind})", episodes=tuple(place.name for place in places))

    def _header(
        self,
        path: Path,
        file: Path,
        place: _Place,
        arrays: Mapping[str, h5py.Dataset],
        options: ReadOptions,
        actions: tuple[str, ...],
        rate_hz: float,
    ) -> DatasetHeader:
        """What the first file that can be read says for all of them; its format and episodes are still to come."""
        own = _below(arrays, place.prefix)
        self._action = _first(own, actions)
        if not self._action:
            raise DatasetError(f"{file}: {place.name} must have {' or '.join(actions)}")
        if options.state_key and options.state_key not in own:
            raise DatasetError(f"{file}: state_key must be an array, got {options.state_key!r}")
        self._state = options.state_key or _first(own, STATES)
        cameras = tuple(name for name, array in own.items() if _is_camera(name, array))
        state = own[self._state] if self._state else None
        return DatasetHeader(
            format="hdf5",
            path=path,
            rate_hz=options.rate_hz or rate_hz,
            action_names=_names(own[self._action], "action"),
            proprioception_names=() if state is None else _names(state, self._state.rpartition("/")[2]),
            cameras=cameras,
            camera=chosen_camera(cameras, options.camera, file),
            episodes=(),
        )

    def episode(self, index: int) -> Episode:
        """The numbers of one episode. Raises DatasetError."""
        place = self._places[index]
        if place.problem:
            raise DatasetError(f"{place.name}: {place.problem}")
        with _opened(place.file) as file:
            arrays = _below(_arrays(file), place.prefix)
            camera = _array(arrays, self.header.camera, place)
            frames = len(range(*place.rows.indices(len(camera))))
            actions = _read(_array(arrays, self._action, place), place, self._action)
            if not self._state:
                return Episode(place.name, frames, actions, np.zeros((frames, 0), np.float32))
            measured = _array(arrays, self._state, place)
            return Episode(place.name, frames, actions, _read(measured, place, self._state))

    def frames(self, index: int) -> Iterator[NDArray[np.uint8]]:
        """The camera's frames, in batches. Raises DatasetError."""
        place = self._places[index]
        if place.problem:
            raise DatasetError(f"{place.name}: {place.problem}")
        with _opened(place.file) as file:
            array = _array(_below(_arrays(file), place.prefix), self.header.camera, place)
            rows = range(*place.rows.indices(len(array)))
            try:
                if array.ndim == 4:
                    for first in rows[::FRAMES_AT_ONCE]:
                        yield array[first : min(first + FRAMES_AT_ONCE, rows.stop)]
                    return
                encoded = (_picture_file(array, row) for row in rows)
                yield from decoded_images(encoded, f"{place.name}: {self.header.camera}")
            except (OSError, RuntimeError) as error:
                raise DatasetError(f"{place.file}: {self.header.camera} cannot be read: {error}") from error


def files_below(path: Path) -> list[Path]:
    """The HDF5 files in a folder and its subfolders, in natural order; hidden ones are passed over."""
    found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and not is_hidden(file, path)]
    return sorted(found, key=lambda file: natural(file.relative_to(path).as_posix()))


def _of_one_rate(place: _Place, rate_hz: float, options: ReadOptions) -> _Place:
    """The place, with a problem where its file names another rate than the first and nobody has said which holds."""
    if options.rate_hz or place.problem or not place.rate_hz or place.rate_hz == rate_hz:
        return place
    return replace(place, problem=f"has {place.rate_hz:g} frames a second, the first file {rate_hz:g}")


def _opened(path: Path) -> h5py.File:
    import h5py

    if find_spec("hdf5plugin") is not None:
        import hdf5plugin  # noqa: F401  # filters are there once it is imported

    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: {absent(path)}") from error
    except OSError as error:
        raise DatasetError(f"{path}: is not a whole HDF5 file: {error}") from error


def _arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every array in a file by its full name. Links are passed over: only what lies in the file itself is seen."""
    import h5py

    found: dict[str, h5py.Dataset] = {}

    def note(name: str, entry: object) -> None:
        if isinstance(entry, h5py.Dataset) and not entry.external and not entry.is_virtual and entry.shape is not None:
            found[name] = entry

    try:
        file.visititems(note)
    except RuntimeError as error:
        raise DatasetError(f"{file.filename}: its names cannot be read: {error}") from error
    return found


def _places(
    file: Path, name: str, arrays: Mapping[str, h5py.Dataset], actions: tuple[str, ...]
) -> tuple[str, tuple[_Place, ...]]:
    """The layout's name, and where one file's episodes lie. Raises DatasetError for none of the layouts."""
    if "ep_offset" in arrays and "ep_len" in arrays:
        return "one table", _rows_of_table(file, arrays, _first(arrays, actions))
    groups = {name.split("/")[1] for name in arrays if name.startswith("data/") and name.count("/") > 1}
    if groups:
        return "a group each", tuple(_Place(each, file, f"data/{each}/", _ALL) for each in sorted(groups, key=natural))
    if not _first(arrays, actions):
        known = ", ".join(sorted(arrays)[:8])
        raise DatasetError(f"{file}: is none of the layouts that are read; it holds {known or 'nothing'}")
    return _EACH, (_Place(name, file, "", _ALL),)


def _rows_of_table(file: Path, arrays: Mapping[str, h5py.Dataset], action: str) -> tuple[_Place, ...]:
    """The episodes of one long table. Rows that it does not have, and rows of two episodes, are problems of those."""
    offsets, lengths = (np.asarray(arrays[name][:], np.int64).reshape(-1) for name in ("ep_offset", "ep_len"))
    if len(offsets) != len(lengths) or (offsets < 0).any() or (lengths < 0).any():
        raise DatasetError(f"{file}: ep_offset and ep_len must be one number >= 0 for each episode")
    rows = len(arrays[action]) if action else 0
    problems = [""] * len(offsets)
    order = np.lexsort((lengths, offsets))
    last = -1  # the episode so far that ends last
    for at in order.tolist():
        if lengths[at] and offsets[at] + lengths[at] > rows and action:
            problems[at] = f"has rows {offsets[at]} to {offsets[at] + lengths[at]} of {rows}"
        if last >= 0 and lengths[at] and offsets[at] < offsets[last] + lengths[last]:
            problems[at] = problems[at] or f"shares rows with episode {last}"
            problems[last] = problems[last] or f"shares rows with episode {at}"
        if last < 0 or offsets[at] + lengths[at] > offsets[last] + lengths[last]:
            last = at
    spans = [slice(int(first), int(first + count)) for first, count in zip(offsets, lengths, strict=True)]
    return tuple(
        _Place(f"episode {at}", file, "", span, problem=problem)
        for at, (span, problem) in enumerate(zip(spans, problems, strict=True))
    )


def _below(arrays: Mapping[str, h5py.Dataset], prefix: str) -> dict[str, h5py.Dataset]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _first(arrays: Mapping[str, h5py.Dataset], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in arrays), "")


def _array(arrays: Mapping[str, h5py.Dataset], name: str, place: _Place) -> h5py.Dataset:
    """An episode's array. Raises DatasetError where it is not there, or is compressed by a filter that is not."""
    if name not in arrays:
        raise DatasetError(f"{place.name}: lacks {name}")
    missing = _missing_filter(arrays[name])
    if missing:
        raise DatasetError(f"{place.name}: {name} is compressed with {missing}: pip install hdf5plugin")
    return arrays[name]


def _missing_filter(array: h5py.Dataset) -> str:
    """The filter that an array needs and that is not there; empty where all are."""
    import h5py

    made = array.id.get_create_plist()
    for at in range(made.get_nfilters()):
        number = made.get_filter(at)[0]
        if not h5py.h5z.filter_avail(number):
            return _FILTERS.get(number, f"HDF5 filter {number}")
    return ""


def _is_camera(name: str, array: h5py.Dataset) -> bool:
    """Whether these are frames of a camera; robomimic repeats them as what was seen a step later."""
    if name.startswith("next_obs/"):
        return False
    if array.ndim == 4:
        return bool(array.dtype == np.uint8 and array.shape[-1] == 3)
    return _is_encoded(name, array)


def _is_encoded(name: str, array: h5py.Dataset) -> bool:
    """Whether the rows are files of pictures: padded bytes, bytes of variable length, or fixed ones."""
    import h5py

    padded = array.dtype == np.uint8 and array.ndim == 2
    variable = h5py.check_vlen_dtype(array.dtype) == np.uint8 or h5py.check_string_dtype(array.dtype) is not None
    if not (padded or (array.ndim == 1 and (variable or array.dtype.kind in "SV"))):
        return False
    if not len(array) or _missing_filter(array):
        return "image" in name
    try:
        return _picture_file(array, 0).startswith(_HEADS)
    except (OSError, RuntimeError, ValueError):
        return "image" in name


def _picture_file(array: h5py.Dataset, at: int) -> bytes:
    """One row of encoded pictures as a file's content."""
    row: Any = array[at]
    if isinstance(row, bytes):
        return bytes(row).ljust(array.dtype.itemsize if array.dtype.kind == "S" else 0, b"\0")  # zeros a file ends in
    if isinstance(row, str):
        return row.encode("utf-8", "surrogateescape")
    return np.asarray(row).tobytes()


def _names(array: h5py.Dataset, prefix: str) -> tuple[str, ...]:
    """One name for each column: what an attribute of the array says, or numbers."""
    width = 1 if array.ndim == 1 else int(array.shape[1]) if array.ndim > 1 else 0
    for key in NAMES:
        said = array.attrs.get(key)
        if said is not None:
            listed = [each.decode() if isinstance(each, bytes) else str(each) for each in np.atleast_1d(said).tolist()]
            if len(listed) == 1 and width > 1:
                listed = [part.strip() for part in listed[0].strip("[]").split(",")]
            names = names_of(listed, width)
            if names:
                return names
    return numbered(prefix, width)


def _width(array: h5py.Dataset) -> int:
    return 1 if array.ndim == 1 else int(array.shape[1])


def _read(array: h5py.Dataset, place: _Place, name: str) -> NDArray[np.float32]:
    """The episode's rows of an array of numbers."""
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2):
        raise DatasetError(f"{place.name}: {name} must hold rows of numbers, got {array.dtype} {list(array.shape)}")
    rows = len(range(*place.rows.indices(len(array))))
    if rows * _width(array) * array.dtype.itemsize > MAX_TABLE_BYTES:
        raise DatasetError(f"{place.name}: {name} has {rows} rows of {_width(array)}, more than are read")
    try:
        return as_table(array[place.rows], f"{place.name}: {name}")
    except (OSError, RuntimeError) as error:
        raise DatasetError(f"{place.file}: {name} cannot be read: {error}") from error


def _rate(file: h5py.File) -> float:
    """Frames a second as robomimic notes them, 0 where nobody does."""
    import h5py

    if not isinstance(file.get("data", getlink=True), h5py.HardLink):
        return 0.0
    described: Any = file["data"].attrs.get("env_args", "")
    try:
        rate = json.loads(described)["env_kwargs"]["control_freq"]
    except (ValueError, TypeError, KeyError):
        return 0.0
    return float(rate) if isinstance(rate, (int, float)) and 0 < rate <= 1000 else 0.0
