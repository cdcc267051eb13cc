"""`open_dataset`: chooses the reader for a path."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from training.data.dataset import Dataset, DatasetError, ReadOptions
from training.data.formats import clips, hdf5, lerobot


def open_dataset(path: Path, options: ReadOptions | None = None) -> Dataset:
    """Open a LeRobot dataset, HDF5 recordings, or a folder of clips and actions.

    Raises DatasetError: nothing there, no format that is read, a description at fault, a library that is missing.
    """
    options = options or ReadOptions()
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    if (path / lerobot.INFO).is_file():
        _need("pyarrow", path)
        return lerobot.LeRobot(path, options)
    seen = [file for file in path.iterdir() if not file.name.startswith(".")] if path.is_dir() else [path]
    inside = {file.suffix.lower() for file in seen}
    if path.is_dir() and inside & set(clips.SUFFIXES) and not inside & set(hdf5.SUFFIXES):
        return clips.ClipFolder(path, options)
    if inside & set(hdf5.SUFFIXES) or (path.is_dir() and hdf5.files_below(path)):
        _need("h5py", path)
        return hdf5.Hdf5(path, options)
    kinds = (
        f"a LeRobot dataset ({lerobot.INFO}), HDF5 ({', '.join(hdf5.SUFFIXES)}) or clips ({', '.join(clips.SUFFIXES)})"
    )
    raise DatasetError(f"{path}: is none of what is read: {kinds}")


def _need(library: str, path: Path) -> None:
    if find_spec(library) is None:
        raise DatasetError(f"{path}: reading it needs {library}: pip install 'presage-service[datasets]'")
