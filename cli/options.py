"""Arguments that several commands share, and the checks of their values."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

TaskModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="A built-in package's name, or a package's folder.",
        show_default="the package named like the task",
    ),
]
TaskOption = Annotated[str, typer.Option("--task", help="The robot: arm, arm-push, cube, pusht, reacher or tworoom.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Chooses the start and goal pairs and every draw.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps, or auto for the best present.")]


def wrong_use(field: str, rule: str, value: object, reason: str = "") -> typer.BadParameter:
    """The usage error for an option that breaks its rule, as checks that are shared with the service make it."""
    return typer.BadParameter(f"{rule}, got {value}", param_hint=field)


def checked_task(task: str) -> str:
    """The task's name; a usage error where no robot is called so."""
    from simulation.tasks import TASKS

    if task not in TASKS:
        raise typer.BadParameter(f"must be one of {', '.join(TASKS)}, got {task!r}", param_hint="--task")
    return task


def model_for(model: str, task: str) -> str:
    """The model that was named, else the built-in package of the task; a usage error where there is none."""
    if model:
        return model
    from model.built_in import built_in

    if task not in built_in():
        raise typer.BadParameter(f"must be named: no built-in package is called {task}", param_hint="--model")
    return task


def checked_device(device: str) -> torch.device:
    """The device; a usage error where torch knows none of that name or this machine has none."""
    from model.runtime.devices import DeviceError, usable

    try:
        return usable(device)
    except DeviceError as error:
        raise wrong_use("--device", "must be usable here", f"{device!r}: {error.reason}") from None


def calm_threads() -> None:
    """Let threads that wait do so asleep, unless told otherwise; to be called before torch is imported.

    Spinning, which is OpenMP's habit, slows everything else on a machine that is shared.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def workers_for(episodes: int) -> int:
    """Processes to gather episodes with: one per CPU, but none for less work than its start is worth."""
    return max(1, min(os.cpu_count() or 1, episodes // 64))
