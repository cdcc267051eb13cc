"""Files written tensor by tensor: they read back as written, and appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoints.safetensors_writer import groups, stream_safetensors
from model.checkpoints.weight_files import TensorSpec


@pytest.mark.parametrize("group_bytes", [1, 100, 1 << 20])
def test_a_streamed_file_reads_back_as_written(group_bytes: int, tmp_path: Path) -> None:
    tensors = {
        "matrix": torch.randn(5, 7),
        "number": torch.tensor(3.5),
        "turned": torch.randn(4, 6).T,
        "none": torch.zeros(0, 3),
    }
    specs = {name: TensorSpec(tuple(tensor.shape), torch.float32) for name, tensor in tensors.items()}
    path = tmp_path / "weights.safetensors"
    stream_safetensors(path, specs, lambda names: {name: tensors[name] for name in names}, group_bytes=group_bytes)
    again = load_file(path)
    assert set(again) == set(tensors)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert [name for group in groups(specs, group_bytes) for name in group] == list(specs)


def test_a_stream_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"before")

    def fail(names: object) -> dict[str, Tensor]:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        stream_safetensors(path, {"a": TensorSpec((2,), torch.float32)}, fail)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
