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
    path: Path,
    parts: Mapping[str, Stateful],
    generator: torch.Generator,
    made_with: Mapping[str, str],
    step: int,
    seconds: float,
) -> None:
    """Write everything a training needs to go on.

    `made_with` guards against going on with anything else: settings and what is trained on, each by its name.

    Raises OSError where the file cannot be written whole, a full disk say; the checkpoint before stays as it is.
    """
    temporary = path.with_suffix(".new")
    content: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    content |= {"generator": generator.get_state(), "made_with": dict(made_with), "step": step, "seconds": seconds}
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
    path: Path, parts: Mapping[str, Stateful], generator: torch.Generator, made_with: Mapping[str, str]
) -> tuple[int, float]:
    """The step to go on from and the seconds already spent; (0, 0) without a checkpoint.

    Raises ValueError for a checkpoint that was made with something else, naming it, and for a file that is none.
    """
    if not path.exists():
        return 0, 0.0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a checkpoint: remove it to start again") from error
    then = saved.get("made_with", {})
    changed = [name for name in made_with if then.get(name) != made_with[name]]
    if changed:
        named = "; ".join(_difference(name, str(then.get(name, "none")), made_with[name]) for name in changed)
        raise ValueError(
            f"{path} was made with other settings or recordings: {named}; finish it with those, or remove it"
        )
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    generator.set_state(saved["generator"])
    return saved["step"], saved["seconds"]


def _difference(name: str, then: str, now: str) -> str:
    """What has changed: of a long text the words that differ, of a digest its beginning."""
    if len(then) + len(now) <= 80:
        return f"{name} was {then}, now {now}"
    if "=" not in then:
        return f"{name} was {then[:12]}, now {now[:12]}"
    before, after = then.split(", "), now.split(", ")
    words = [f"{old} now {new}" for old, new in zip(before, after, strict=False) if old != new]
    return f"{name} differs in {', '.join(words[:3]) or 'length'}"
