"""The V-JEPA 2 family as `model.checkpoints.families` asks for it; the work is `model.checkpoints.importer`'s."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from model.checkpoints.families import Found, Imported, ImportOptions, Section
from model.checkpoints.foreign import Foreign
from model.checkpoints.importer import import_checkpoint, inspect_checkpoint
from model.checkpoints.state_dict import CheckpointError


def recognizes(foreign: Foreign) -> bool:
    """It is asked last, and takes everything: opening says what is missing."""
    return True


def inspect(foreign: Foreign) -> Found:
    found = inspect_checkpoint(foreign.path)
    return Found(
        path=found.path,
        family="" if found.encoder is None else "vjepa2",
        layout=found.layout,
        model=found.model or "",
        misfit=found.misfit or "",
        sections={each.name: Section(each.tensors, each.parameters, each.dtypes) for each in found.sections},
        shape={} if found.encoder is None else asdict(found.encoder),
    )


def import_weights(foreign: Foreign, out: Path, options: ImportOptions) -> Imported:
    if options.statistics is not None:
        raise CheckpointError(
            f"{foreign.path}: action statistics are for models that standardize actions, not V-JEPA 2"
        )
    imported = import_checkpoint(
        foreign.path,
        out,
        dtype=options.dtype or torch.bfloat16,
        progress=options.progress,
        encoder_key=options.encoder_key,
    )
    return Imported(
        folder=imported.folder,
        model=imported.model,
        family="vjepa2",
        parameters=imported.parameters,
        weights_bytes=imported.weights_bytes,
        weights_sha256=imported.weights_sha256,
        details={"encoder": imported.encoder_key},
    )
