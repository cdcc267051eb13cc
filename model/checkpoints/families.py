"""The families whose published files can be imported, and whose a file is.

Each family's module has the three functions of `Importer`. They are asked in order; the last one takes what nobody
else recognizes, and says what it misses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from presage.limits import ActionLimits

from model.checkpoints.action_statistics import ActionStatistics
from model.checkpoints.foreign import Foreign
from model.checkpoints.state_dict import CheckpointError
from model.checkpoints.weight_files import TensorSpec

Progress = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""


@dataclass(frozen=True)
class ImportOptions:
    """What an import may be told; a family refuses by name what it has no use for."""

    dtype: torch.dtype | None = None
    """What to keep numbers in; None is the family's own choice."""
    encoder_key: str | None = None
    """Which of the file's encoders to take."""
    statistics: ActionStatistics | None = None
    """Of the actions the model was trained on."""
    encoder_weights: Path | None = None
    """Weights of the encoder, of files that hold none."""
    model: str | None = None
    """Which published model a file is, where it does not say."""
    labels: tuple[str, ...] | None = None
    """Names of the classes of a classifier."""
    limits: ActionLimits | None = None
    """What plans with the model keep to beside the bounds of its actions."""
    progress: Progress | None = None

    def refuse(self, path: Path, whose: str, *names: str) -> None:
        """Raises CheckpointError for the first of these options that was given: a family has no use for them."""
        for name in names:
            if getattr(self, name) is not None:
                raise CheckpointError(f"{path}: {name.replace('_', ' ')} must not be given for a file of {whose}")


@dataclass(frozen=True)
class Imported:
    """What an import wrote. `details` are for the user: its license, where numbers come from."""

    folder: Path
    model: str
    family: str
    parameters: int
    weights_bytes: int
    weights_sha256: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """One dictionary of tensors, counted."""

    tensors: int
    parameters: int
    dtypes: tuple[str, ...]


def counted(held: Mapping[str, TensorSpec]) -> Section:
    """A dictionary of tensors, counted."""
    dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in held.values()})
    return Section(len(held), sum(spec.count for spec in held.values()), tuple(dtypes))


@dataclass(frozen=True)
class Found:
    """What a file is, without reading its tensors. `misfit` says why it cannot be imported; empty where it can."""

    path: Path
    family: str
    layout: str
    model: str
    misfit: str
    sections: Mapping[str, Section]
    shape: Mapping[str, Any]
    """The network's shape, as the family's config names it."""
    needs: tuple[str, ...] = ()
    """What an import must be told."""


class Importer(Protocol):
    """A family's module, as far as imports go. All three raise CheckpointError."""

    def recognizes(self, foreign: Foreign) -> bool:
        """Whether the file is of this family, as far as names of settings or keys tell."""
        ...

    def inspect(self, foreign: Foreign) -> Found: ...

    def import_weights(self, foreign: Foreign, out: Path, options: ImportOptions) -> Imported:
        """Check everything, then write a package into `out`."""
        ...


FAMILIES: Mapping[str, str] = {
    "lewm": "model.lewm.importing",
    "dino_wm": "model.dino_wm.importing",
    "vjepa2": "model.vjepa2.importing",
}
"""Modules by family, in the order in which they are asked; imported when they are."""


def importer_of(foreign: Foreign) -> Importer:
    """The family whose file it is."""
    *others, last = FAMILIES.values()
    for name in others:
        importer = cast(Importer, import_module(name))
        if importer.recognizes(foreign):
            return importer
    return cast(Importer, import_module(last))


def inspect(source: Path) -> Found:
    """Say what a file or folder holds and whether it can be imported. `CheckpointError`: it cannot be opened."""
    foreign = Foreign(source)
    return importer_of(foreign).inspect(foreign)


def import_weights(source: Path, out: Path, options: ImportOptions) -> Imported:
    """Write a model package of published weights into `out`; everything in them must fit, or nothing is written."""
    foreign = Foreign(source)
    return importer_of(foreign).import_weights(foreign, out, options)
