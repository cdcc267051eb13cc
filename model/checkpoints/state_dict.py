"""Published weights by name: prefixes stripped, loaded strictly or not at all.

Knows dictionaries of tensors, not files; reading files is `model.checkpoints.importer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from presage.user_error import UserError
from torch import Tensor, nn

PREFIXES = ("module.", "backbone.")


class CheckpointError(UserError, ValueError):
    """Weights that do not fit what they were said to be; the message names the first offending key, rule and value."""


def strip_prefix(key: str) -> str:
    """A key without the wrappers' prefixes (`module.`, `backbone.`, in any number) that training leaves on it."""
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def strip_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`strip_prefix` for every key. Raises `CheckpointError` when two become the same."""
    stripped: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = strip_prefix(key)
        if name in stripped:
            raise CheckpointError(f"{key}: must be unique once prefixes are stripped, but {name} appears twice")
        stripped[name] = tensor
    return stripped


def first_misfit(module: nn.Module, held: Mapping[str, tuple[int, ...]]) -> str | None:
    """What is wrong with weights of these names and shapes for a network: the first key at fault, or None."""
    expected = module.state_dict()
    for key, tensor in expected.items():
        if key not in held:
            return f"key {key} is missing (there are {len(held)} keys)"
        if held[key] != tuple(tensor.shape):
            return f"key {key} must have shape {tuple(tensor.shape)}, got {held[key]}"
    for key in held:
        if key not in expected:
            return f"key {key} is unknown (this network has {len(expected)} keys)"
    return None


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Give `module` exactly these weights, taking the tensors over without copying.

    Every key must exist with the same shape on both sides; otherwise `CheckpointError` names the first key that does
    not fit and `module` is left as it was.
    """
    if misfit := first_misfit(module, {key: tuple(tensor.shape) for key, tensor in weights.items()}):
        raise CheckpointError(f"{what}: {misfit}")
    module.load_state_dict(dict(weights), strict=True, assign=True)


def refuse_unknown(config: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    """Refuse a setting this code does not know, unless it is switched off: it would change the numbers silently."""
    for key, setting in config.items():
        if key not in known and setting not in (None, False, 0, 0.0, "", [], ()):
            raise CheckpointError(f"{what}: setting {key} is not supported, got {setting!r}")
