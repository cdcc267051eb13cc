"""An accelerator that is only pretended: its tensors have shapes and a device, no values, and nothing may ask for one.

What would make the host wait for a real device fails here: reading a value, branching on one, a shape that depends on
values, mixing with a tensor of the host, and numbers of the host copied over by any way but `to_device`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from planner.noise import Stream

DEVICE = torch.device("meta")  # the one other device that every build of PyTorch can index tensors of


class _NoCrossing(TorchDispatchMode):
    """Refuses copies between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {result.device, *(part.device for part in args if isinstance(part, Tensor))}
            if len(devices) > 1:
                raise AssertionError(f"a copy between devices must take to_device, which does not wait: {devices}")
        return result


class Waits:
    """How often values were asked for by `tolist`, the one way that `search.advance` takes."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def pretended_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """All that is computed in here is computed on the pretended device; `over` brings things there."""
    waits, make = Waits(), torch.tensor

    def sent(values: Tensor, device: torch.device | str) -> Tensor:
        return torch.empty_like(values, device=device)

    def made(*args: Any, **kwargs: Any) -> Tensor:
        if torch.device(kwargs.get("device") or "cpu").type != "cpu":
            raise AssertionError("numbers of the host must take to_device, which does not wait")
        return make(*args, **kwargs)

    def told(tensor: Tensor) -> Any:
        waits.count += 1
        return _ones(tuple(tensor.shape))

    with monkeypatch.context() as patched, FakeTensorMode(), _NoCrossing():
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ("planner", "model") and "to_device" in vars(module):
                patched.setattr(module, "to_device", sent)
        patched.setattr(torch, "tensor", made)
        patched.setattr(FakeTensor, "tolist", told)
        patched.setattr(Stream, "generator", lambda stream, device: None)
        yield waits


def over(value: Any) -> Any:
    """The same value, its tensors on the pretended device."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: over(getattr(value, field.name)) for field in fields(value) if field.init})
    return type(value)(over(part) for part in value) if isinstance(value, (tuple, list)) else value


def carry(network: nn.Module) -> None:
    """Move a network to the pretended device."""
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            held.update({name: over(tensor) for name, tensor in held.items() if tensor is not None})


def _ones(shape: tuple[int, ...]) -> Any:
    return 1.0 if not shape else [_ones(shape[1:]) for _ in range(shape[0])]
