"""`presage train`: a world model, or a part of one, as a model package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exit_codes import CommandError
from cli.options import DeviceOption, calm_threads, checked_device
from cli.output import JsonFlag, open_output, silent_output

if TYPE_CHECKING:
    from cli.train.config import TrainingConfig


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG_OR_TASK", help="A YAML file, or a task's name.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the package to write; resumes what lies there.",
            show_default="runs/NAME of the file or the task",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Recorded episodes; otherwise the config's dataset, or they are gathered first."),
    ] = None,
    episodes: Annotated[int | None, typer.Option("--episodes", min=2, help="How many to gather.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the weights and the batches.")] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves it to torch.")] = 0,
    device: DeviceOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Insist on a checkpoint in --out; without it one is used if it is there.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard/--no-tensorboard", help="Log to OUT/logs, where tensorboard is installed.")
    ] = True,
    json_: JsonFlag = False,
) -> None:
    """Train a compact world model end to end from pixels, or what the config's `family` says.

    Interrupted, the same command goes on where it was.

    Several accelerators or machines train as one: torchrun --nproc-per-node N -m cli train CONFIG --out OUT
    """
    calm_threads()
    output = open_output(json_)

    from cli.train.config import read_config
    from cli.train.run import Run

    out = out or Path("runs") / Path(config).stem
    chosen = _with_options(read_config(config), episodes, steps, seed)

    import torch

    from model.runtime.memory import keep_memory
    from training.checkpoint import CHECKPOINT
    from training.distributed import joined

    if resume and not (out / CHECKPOINT).is_file():
        raise CommandError(f"{out / CHECKPOINT} is not there: nothing to resume; leave --resume out to start")
    if not chosen.together and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CommandError(f"{config}: its family trains in one process: start it without torchrun")
    keep_memory()
    if threads:
        torch.set_num_threads(threads)
    where = checked_device(device)
    with kept_on_interrupt(out), joined(where) as group:
        if not group.first:
            output = silent_output()
        if where.type == "cuda":
            where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", where.index or 0)))
        run = Run(output, out, data, where, group, tensorboard)
        outcome = chosen.train(run)
        if group.first:
            run.finish(outcome)


def _with_options(chosen: TrainingConfig, episodes: int | None, steps: int | None, seed: int | None) -> TrainingConfig:
    """The config with what the command line says in its place."""
    from cli.train.config import EpisodesConfig

    said = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    chosen = replace(chosen, recipe=replace(chosen.recipe, **said))
    if episodes is None:
        return chosen
    if not isinstance(chosen, EpisodesConfig):
        raise typer.BadParameter("must be left out: this family gathers no episodes", param_hint="--episodes")
    return replace(chosen, episodes=episodes)


@contextmanager
def kept_on_interrupt(out: Path) -> Iterator[None]:
    """Tell on Ctrl-C what is kept and how to go on; exit code 130."""
    from training.checkpoint import CHECKPOINT

    try:
        yield
    except KeyboardInterrupt:
        kept = out / CHECKPOINT
        there = (
            f"{kept} is kept; the same command goes on from it" if kept.is_file() else "no checkpoint was written yet"
        )
        sys.stderr.write(f"\npresage: interrupted: {there}\n")
        raise typer.Exit(130) from None
