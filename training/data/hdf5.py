"""HDF5 recordings in the three layouts that labs use, told apart by the names in the file. Needs h5py (`datasets`).

- one file for each episode (ALOHA, ACT): `action`, `observations/qpos`, `observations/images/CAMERA`;
- one group for each episode (robomimic): `data/NAME/actions`, `data/NAME/obs/CAMERA`;
- one long table (LeWorldModel's sets): `ep_offset`, `ep_len`, and `action`, `pixels`, ... over all episodes.

Cameras are uint8 arrays `[frames, height, width, 3]`, or encoded JPEG images in rows. Links that lead out of a file,
and arrays kept outside it, are not followed.
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

from training.data.dataset import (
    FRAMES_AT_ONCE,
    DatasetError,
    DatasetHeader,
    Episode,
    ReadOptions,
    as_table,
    chosen_camera,
    numbered,
)
from training.data.pictures import decoded_images

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".hdf5", ".h5")
ACTIONS = ("actions", "action")
PROPRIOCEPTION = ("observations/qpos", "obs/proprioception", "obs/proprio", "proprioception", "proprio", "qpos")
MAX_TABLE_BYTES = 2**30  # of one episode's numbers


@dataclass(frozen=True)
class _Place:
    """Where an episode lies."""

    name: str
    file: Path
    prefix: str  # of the names of its arrays
    rows: slice  # of those arrays


class Hdf5:
    """HDF5 recordings, open for reading one episode at a time. Satisfies `training.data.dataset.Dataset`."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """`path` is a file, or a folder of files with an episode each. Raises DatasetError."""
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise DatasetError(f"{path}: holds no {' or '.join(SUFFIXES)} file")
        with _opened(files[0]) as file:
            arrays = _arrays(file)
            layout, self._places = _places(files, arrays)
            if not self._places:
                raise DatasetError(f"{path}: holds no episode")
            own = _below(arrays, self._places[0].prefix)
            self._action = _first(own, ACTIONS)
            if not self._action:
                raise DatasetError(f"{files[0]}: {self._places[0].name} must have {' or '.join(ACTIONS)}")
            if options.proprioception and options.proprioception not in own:
                raise DatasetError(f"{files[0]}: proprioception must be an array, got {options.proprioception!r}")
            self._proprioception = options.proprioception or _first(own, PROPRIOCEPTION)
            cameras = tuple(name for name, array in own.items() if _is_camera(name, array))
            camera = chosen_camera(cameras, options.camera, path)
            widths = [_width(own[name]) if name else 0 for name in (self._action, self._proprioception)]
            rate = options.rate_hz or _rate(file)
        self.header = DatasetHeader(
            format=f"hdf5 ({layout})",
            path=path,
            rate_hz=rate,
            action_names=numbered("action", widths[0]),
            proprioception_names=numbered(self._proprioception.rpartition("/")[2], widths[1]),
            cameras=cameras,
            camera=camera,
            episodes=tuple(place.name for place in self._places),
        )

    def episode(self, index: int) -> Episode:
        """The numbers of one episode. Raises DatasetError."""
        place = self._places[index]
        with _opened(place.file) as file:
            arrays = _below(_arrays(file), place.prefix)
            camera = _array(arrays, self.header.camera, place)
            frames = len(range(*place.rows.indices(len(camera))))
            actions = _read(_array(arrays, self._action, place), place, self._action)
            if not self._proprioception:
                return Episode(place.name, frames, actions, np.zeros((frames, 0), np.float32))
            measured = _array(arrays, self._proprioception, place)
            return Episode(place.name, frames, actions, _read(measured, place, self._proprioception))

    def frames(self, index: int) -> Iterator[NDArray[np.uint8]]:
        """The camera's frames, in batches. Raises DatasetError."""
        place = self._places[index]
        with _opened(place.file) as file:
            array = _array(_below(_arrays(file), place.prefix), self.header.camera, place)
            rows = range(*place.rows.indices(len(array)))
            try:
                if array.ndim == 4:
                    for first in rows[::FRAMES_AT_ONCE]:
                        yield array[first : min(first + FRAMES_AT_ONCE, rows.stop)]
                    return
                encoded = (np.asarray(array[row], np.uint8).tobytes() for row in rows)
                yield from decoded_images(encoded, f"{place.name}: {self.header.camera}")
            except (OSError, RuntimeError) as error:
                raise DatasetError(f"{place.file}: {self.header.camera} cannot be read: {error}") from error


def _opened(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
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


def _places(files: list[Path], arrays: Mapping[str, h5py.Dataset]) -> tuple[str, tuple[_Place, ...]]:
    """The layout's name, and where its episodes lie."""
    whole = slice(None)
    if "ep_offset" in arrays and "ep_len" in arrays:
        offsets, lengths = (np.asarray(arrays[name][:], np.int64).reshape(-1) for name in ("ep_offset", "ep_len"))
        if len(offsets) != len(lengths) or (offsets < 0).any() or (lengths < 0).any():
            raise DatasetError(f"{files[0]}: ep_offset and ep_len must be one number >= 0 for each episode")
        spans = [slice(int(first), int(first + count)) for first, count in zip(offsets, lengths, strict=True)]
        return "one table", tuple(_Place(f"episode {at}", files[0], "", span) for at, span in enumerate(spans))
    groups = {name.split("/")[1] for name in arrays if name.startswith("data/") and name.count("/") > 1}
    if groups:
        ordered = sorted(groups, key=lambda name: [int(part) if part.isdigit() else part for part in _parts(name)])
        return "a group each", tuple(_Place(name, files[0], f"data/{name}/", whole) for name in ordered)
    if not _first(arrays, ACTIONS):
        known = ", ".join(sorted(arrays)[:8])
        raise DatasetError(f"{files[0]}: is none of the layouts that are read; it holds {known or 'nothing'}")
    return "a file each", tuple(_Place(file.name, file, "", whole) for file in files)


def _parts(name: str) -> list[str]:
    """A name with its numbers apart, for `demo_10` to come after `demo_9`."""
    return re.split(r"(\d+)", name)


def _below(arrays: Mapping[str, h5py.Dataset], prefix: str) -> dict[str, h5py.Dataset]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _first(arrays: Mapping[str, h5py.Dataset], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in arrays), "")


def _array(arrays: Mapping[str, h5py.Dataset], name: str, place: _Place) -> h5py.Dataset:
    if name not in arrays:
        raise DatasetError(f"{place.name}: lacks {name}")
    return arrays[name]


def _is_camera(name: str, array: h5py.Dataset) -> bool:
    """Whether these are frames of a camera; robomimic repeats them as what was seen a step later."""
    if array.dtype.kind == "O" or name.startswith("next_obs/"):
        return False
    raw = array.ndim == 4 and array.shape[-1] == 3
    return array.dtype == np.uint8 and (raw or (array.ndim == 2 and "images/" in name))


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
