"""Weights that were not written by Presage, opened once so that each family can say whether they are its own.

Reads names, shapes and a `config.json`; no tensor is read and nothing is unpickled but tensors and plain containers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model.checkpoints.state_dict import CheckpointError
from model.checkpoints.weight_files import SafetensorsFiles, TensorSpec, TorchFile, WeightFile

CONFIG = "config.json"
WEIGHT_FILES = ("weights.pt", "model.safetensors", "model.safetensors.index.json")
ENDINGS = (".pt", ".pth", ".pth.tar")


@dataclass(frozen=True)
class Foreign:
    """A file of weights, or a folder with one and its `config.json`."""

    path: Path

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """The `config.json` of the folder, or beside the file; None without one. Raises CheckpointError."""
        path = self.folder / CONFIG
        if not path.is_file():
            return None
        try:
            raw = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path}: is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path}: must hold an object, got {type(raw).__name__}")
        return raw

    @cached_property
    def weights(self) -> Path:
        """The file of weights. Raises CheckpointError where a folder has none, or several of no known name."""
        if not self.path.exists():
            raise CheckpointError(f"{self.path}: no such file or folder")
        if not self.path.is_dir():
            return self.path
        for name in WEIGHT_FILES:
            if (self.path / name).is_file():
                return self.path / name
        found = sorted(each for each in self.path.iterdir() if each.is_file() and each.name.endswith(ENDINGS))
        if len(found) != 1:
            held = ", ".join(each.name for each in found) or "none"
            raise CheckpointError(f"{self.path}: must hold one file of weights ({', '.join(WEIGHT_FILES)}), got {held}")
        return found[0]

    @cached_property
    def file(self) -> WeightFile:
        """What the file of weights holds. Raises CheckpointError: not weights, truncated, or holding code."""
        name = self.weights.name
        if name.endswith(".index.json"):
            try:
                names = sorted(set(json.loads(self.weights.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{self.weights}: is not an index of weights: {error}") from error
            return SafetensorsFiles([self.folder / each for each in names])
        return SafetensorsFiles([self.weights]) if name.endswith(".safetensors") else TorchFile(self.weights)

    @property
    def flat(self) -> Mapping[str, TensorSpec]:
        """The tensors of a file that is one flat dictionary; empty where it has sections."""
        return self.file.sections.get("", {})
