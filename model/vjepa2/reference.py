"""Published weights by name: prefixes stripped, loaded strictly or not at all.

Knows dictionaries of tensors, not files; reading files is `model.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

PREFIXES = ("module.", "backbone.")


class CheckpointError(ValueError):
    """Weights that do not fit what they were said to be; the message names the first offending key, rule and value."""


def strip_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the wrappers' prefixes (`module.`, `backbone.`, in any number) that training leaves on every key."""
    stripped: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        name = key
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        if name in stripped:
            raise CheckpointError(f"{key}: must be unique once prefixes are stripped, but {name} appears twice")
        stripped[name] = tensor
    return stripped


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Give `module` exactly these weights, taking the tensors over without copying.

    Every key must exist with the same shape on both sides; otherwise `CheckpointError` names the first key that does
    not fit and `module` is left as it was.
    """
    expected = module.state_dict()
    for key, tensor in expected.items():
        if key not in weights:
            raise CheckpointError(f"{what}: key {key} is missing (the file has {len(weights)} keys)")
        if weights[key].shape != tensor.shape:
            raise CheckpointError(
                f"{what}: key {key} must have shape {tuple(tensor.shape)}, got {tuple(weights[key].shape)}"
            )
    for key in weights:
        if key not in expected:
            raise CheckpointError(f"{what}: key {key} is unknown (this network has {len(expected)} keys)")
    module.load_state_dict(dict(weights), strict=True, assign=True)


def refuse_unknown(config: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    """Refuse a setting this code does not know, unless it is switched off: it would change the numbers silently."""
    for key, setting in config.items():
        if key not in known and setting not in (None, False, 0, 0.0, "", [], ()):
            raise CheckpointError(f"{what}: setting {key} is not supported, got {setting!r}")
