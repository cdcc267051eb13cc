"""Replaces a network's linear layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace_linears(network: nn.Module, other: Callable[[nn.Linear], nn.Module | None]) -> None:
    """Put what `other` makes of it in the place of every linear layer inside `network`; None leaves it."""
    for name, child in network.named_children():
        made = other(child) if isinstance(child, nn.Linear) else None
        if made is not None:
            setattr(network, name, made)
        else:
            replace_linears(child, other)
