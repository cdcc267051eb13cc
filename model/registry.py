"""The registry of models: `load(name_or_path, device)` finds a package and builds the model of its family."""

from __future__ import annotations

from pathlib import Path

import torch

from model.built_in import BUILT_IN, built_in
from model.interface import LoadedModel
from model.offset_free import OffsetFreeModel
from model.package import Package, PackageError, read_package, weights_kept


def find(name_or_path: str) -> Package:
    """A built-in package by name, or any package by its folder. PackageError where there is none that can be read."""
    folder = BUILT_IN / name_or_path if name_or_path in built_in() else Path(name_or_path)
    if not folder.is_dir():
        known = ", ".join(built_in())
        raise PackageError(f"no model package {name_or_path!r}: neither built in ({known}) nor a folder")
    return read_package(folder)


def load(name_or_path: str, device: torch.device) -> LoadedModel:
    """Load a package as `find` finds it, ready to use on `device`.

    Raises PackageError: no such package, a package that cannot be read, or weights that do not fit its config.
    """
    package = find(name_or_path)
    with weights_kept():  # a network and a proposer's digest are made of them
        model = as_trained(package, device)
    action = package.config.action
    if action is None or not action.rest_holds:
        return model
    return OffsetFreeModel(model, torch.tensor(action.at_rest, device=model.device))


def as_trained(package: Package, device: torch.device) -> LoadedModel:
    """The model of a package as it was trained, without the correction that the package may ask for."""
    match package.config.family:
        case "compact":
            from model.compact.world_model import CompactWorldModel

            return CompactWorldModel.from_package(package, device)
        case "vjepa2":
            from model.vjepa2.model import VJepa2Model

            return VJepa2Model.from_package(package, device)
        case "dino_wm":
            from model.dino_wm.world_model import DinoWorldModel

            return DinoWorldModel.from_package(package, device)
        case "lewm":
            from model.lewm.world_model import LeWMWorldModel

            return LeWMWorldModel.from_package(package, device)
        case family:
            raise PackageError(f"{package.folder}: unknown family {family!r}")
