"""Writes safetensors files tensor by tensor, so that a file never has to fit into memory.

`safetensors.torch.save_file` wants every tensor at once; the format itself does not: its header says where each tensor
will lie, and the values follow in that order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.weight_files import SAFETENSORS_TYPES, TensorSpec

Progress = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""

GROUP_BYTES = 256 << 20
"""Tensors loaded together. A mapped file is given back after each group: peak memory follows this, not the file."""

_TYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_TYPES.items()}


def stream_safetensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    load: Callable[[Sequence[str]], Mapping[str, Tensor]],
    progress: Progress | None = None,
    group_bytes: int = GROUP_BYTES,
) -> str:
    """Write the tensors of `specs`, converted to the types it says, and return the file's sha256 (hexadecimal).

    `load` gives the named tensors, of the same shapes. The file appears whole under `path` or not at all.
    """
    offset, header = 0, {}
    for name, spec in specs.items():
        end = offset + spec.count * spec.dtype.itemsize
        shape = list(spec.shape)
        header[name] = {"dtype": _TYPE_NAMES[spec.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.new")
    done = 0
    try:
        with temporary.open("wb") as file:
            for part in (len(encoded).to_bytes(8, "little"), encoded):
                file.write(part)
                digest.update(part)
            for names in groups(specs, group_bytes):
                loaded = load(names)
                for name in names:
                    values = _bytes(loaded[name], specs[name], name)
                    file.write(values)
                    digest.update(values)
                    done += values.nbytes
                    if progress is not None:
                        progress(done, offset)
                del loaded
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def groups(specs: Mapping[str, TensorSpec], group_bytes: int) -> Iterator[list[str]]:
    """Names in order, as many at a time as make up `group_bytes` (in float32), at least one."""
    group: list[str] = []
    size = 0
    for name, spec in specs.items():
        if group and size + 4 * spec.count > group_bytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += 4 * spec.count
    if group:
        yield group


def _bytes(tensor: Tensor, spec: TensorSpec, name: str) -> memoryview:
    """A tensor's values as the file holds them."""
    assert tuple(tensor.shape) == spec.shape, f"{name}: {tuple(tensor.shape)} is not {spec.shape}"
    flat = tensor.detach().to(spec.dtype).contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data
