"""Checkpoints of an unfinished training: one file, replaced atomically, from which a run resumes exactly."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

CHECKPOINT = "checkpoint.pt"


class Stateful(Protocol):
    """A network or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def save_checkpoint(
    path: Path, parts: Mapping[str, Stateful], generator: torch.Generator, recipe: object, step: int, seconds: float
) -> None:
    """Write everything a training needs to go on. `recipe` guards against going on with other settings (its `repr`).

    Raises OSError where the file cannot be written whole, a full disk say; the checkpoint before stays as it is.
    """
    temporary = path.with_suffix(".new")
    content: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    content |= {"generator": generator.get_state(), "recipe": repr(recipe), "step": step, "seconds": seconds}
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        code = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        kept = f"the checkpoint of step {step} cannot be written and the one before is kept"
        raise OSError(code, f"{kept}: {str(error).splitlines()[0]}", str(path)) from error


def resume_checkpoint(
    path: Path, parts: Mapping[str, Stateful], generator: torch.Generator, recipe: object
) -> tuple[int, float]:
    """The step to go on from and the seconds already spent; (0, 0) without a checkpoint.

    Raises ValueError for a checkpoint of another recipe, and for a file that is none.
    """
    if not path.exists():
        return 0, 0.0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a checkpoint: remove it to start again") from error
    if saved["recipe"] != repr(recipe):
        raise ValueError(f"{path} was made by another recipe: finish it with that one, or remove it")
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    generator.set_state(saved["generator"])
    return saved["step"], saved["seconds"]
