"""Where the reference numbers lie: outputs of the published implementation on tiny random networks, and real key lists.

They are beside the repository, not in it; tests that need them skip where they are missing.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.paths import SHARED

PARITY = SHARED / "parity"


def fixture(name: str) -> dict[str, Any]:
    """One file of reference numbers: `config`, `state_dict`, `inputs`, `outputs`."""
    path = PARITY / "fixtures" / f"{name}.pt"
    if not path.exists():
        pytest.skip(f"reference numbers are not here: {path}")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def keys(name: str) -> dict[str, Any]:
    """One list of a real model's parameter names and shapes."""
    path = PARITY / "keys" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"key lists are not here: {path}")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def worst(got: Tensor, expected: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape."""
    assert got.shape == expected.shape, f"{tuple(got.shape)} is not {tuple(expected.shape)}"
    return float((got.detach().double() - expected.detach().double()).abs().max())


def doubled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.double() for key, tensor in weights.items()}
