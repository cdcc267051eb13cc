"""Copies from the host to a search's device without synchronizing. The way back is `search.advance` alone."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on a device. To a CUDA device the copy starts from pinned memory, and nobody waits for its end."""
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
