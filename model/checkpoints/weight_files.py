"""Files of weights, opened without trusting them: what they hold first, the tensors themselves when asked for.

Knows `.pt` archives and safetensors files; which network the tensors belong to is `model.checkpoints.importer`.
Nothing is unpickled but tensors and plain containers, and nothing is read into memory as a whole: every `load` maps the
file afresh, so that what was read before can be given back to the system.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoints.pickled import pickled
from model.checkpoints.state_dict import CheckpointError


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's shape and type, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class WeightFile(Protocol):
    """A file whose contents are known and whose tensors are read on demand."""

    @property
    def sections(self) -> Mapping[str, Mapping[str, TensorSpec]]:
        """Dictionaries of tensors by name; a flat file is one section named ''."""
        ...

    def load(self, section: str, keys: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of a section, mapped into memory for as long as they are held."""
        ...


class TorchFile:
    """A `.pt` checkpoint: a dictionary of sections, or one flat dictionary of tensors."""

    def __init__(self, path: Path) -> None:
        """Raises `CheckpointError`: not there, not a checkpoint, truncated, or holding code."""
        self.path = path
        check_magic(path)
        content = read_torch(path)
        flat = {key: spec for key, value in content.items() if (spec := _spec(value))}
        self.sections: Mapping[str, Mapping[str, TensorSpec]] = {"": flat} if flat else _sections(content)
        if not self.sections:
            raise CheckpointError(f"{path}: holds no dictionary of tensors, only {sorted(map(str, content))[:5]}")

    def load(self, section: str, keys: Sequence[str]) -> dict[str, Tensor]:
        content = read_torch(self.path)
        tensors = dict(_dictionaries(content))[section] if section else content
        return {key: tensors[key].detach() for key in keys}


class SafetensorsFiles:
    """One or several safetensors files that together are one flat dictionary."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises `CheckpointError`: not there, truncated, or not safetensors."""
        specs: dict[str, TensorSpec] = {}
        self._home: dict[str, Path] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118  (not a dictionary)
                        part = file.get_slice(key)
                        specs[key] = TensorSpec(tuple(part.get_shape()), SAFETENSORS_TYPES[part.get_dtype()])
                        self._home[key] = path
            except FileNotFoundError as error:
                raise CheckpointError(f"{path}: no such file") from error
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: is not a whole safetensors file: {error}") from error
            except KeyError as error:
                raise CheckpointError(f"{path}: holds a tensor of unsupported type {error}") from error
        self.sections: Mapping[str, Mapping[str, TensorSpec]] = {"": specs}

    def load(self, section: str, keys: Sequence[str]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for path in {self._home[key] for key in keys}:
            with safe_open(path, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in keys if self._home[key] == path}
        return tensors


SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Training loops save their last loss beside the weights, sometimes as a NumPy number: plain values, no code.
_NUMBERS: list[Any] = [
    (np.float64(0.0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0.0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
]


def check_magic(path: Path) -> None:
    """Refuse, by its first bytes, what cannot be a `.pt` file."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path}: is a web page, not weights: byte 0 is {head[:1]!r} (a download that failed?)")
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path}: is truncated: the archive has no directory at its end")
    elif not head.startswith(b"\x80"):
        raise CheckpointError(f"{path}: is not a PyTorch file: it starts with {head[:4]!r}")


def read_torch(path: Path) -> dict[Any, Any]:
    """The dictionary in a `.pt` file, its tensors mapped, not read."""
    archive = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(_NUMBERS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what cannot be read is refused, in one line
            content = torch.load(path, map_location="cpu", mmap=archive, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"Unsupported (\w+ \w+)", str(error))
        what = found.group(1) if found else str(error).splitlines()[0]
        raise CheckpointError(f"{path}: holds more than weights, refused unread: {what}{pickled(what)}") from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path}: is truncated or damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a dictionary, got {type(content).__name__}")
    return content


def _dictionaries(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every entry that is a dictionary, and those of entries that are lists of them, as `NAME.0`, `NAME.1`, ..."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield str(name), value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}.{index}", each) for index, each in enumerate(value) if isinstance(each, Mapping))


def _sections(content: Mapping[Any, Any]) -> dict[str, dict[str, TensorSpec]]:
    """Every dictionary of tensors and nothing else; optimizers and counters are passed over."""
    sections = {}
    for name, value in _dictionaries(content):
        specs = {key: spec for key, tensor in value.items() if (spec := _spec(tensor)) and isinstance(key, str)}
        if value and len(specs) == len(value):
            sections[name] = specs
    return sections


def _spec(value: Any) -> TensorSpec | None:
    return TensorSpec(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None
