"""`presage data collect`: episodes to train on, gathered in simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.exit_codes import CommandError
from cli.options import TaskOption, checked_task, workers_for
from cli.output import JsonFlag, open_output


def collect(
    out: Annotated[Path, typer.Option("--out", help="Folder to make; it must not exist yet.")],
    task: TaskOption = "arm",
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many episodes.")] = 1600,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Actions in each episode.")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gathers the same episodes.")] = 1,
    image_size: Annotated[int, typer.Option("--image-size", min=16, help="Height and width in pixels.")] = 64,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: one per CPU.")] = 0,
    json_: JsonFlag = False,
) -> None:
    """Gather episodes with the task's exploring policy; the same seed gives the same files."""
    output = open_output(json_)
    checked_task(task)

    from simulation.episodes import TRAINING_SEED_LIMIT, collect_to

    if seed >= TRAINING_SEED_LIMIT:
        rule = f"must be below {TRAINING_SEED_LIMIT}, where the seeds of held-out episodes begin"
        raise typer.BadParameter(f"{rule}, got {seed}", param_hint="--seed")
    if out.exists():
        raise CommandError(f"{out} already exists: remove it or choose another folder")
    with output.progress() as bars:
        bar = bars.add_task(f"gathering {task}", total=episodes)
        batch = collect_to(
            out,
            task,
            episodes,
            steps,
            seed,
            workers=workers or workers_for(episodes),
            image_size=image_size,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    size = sum(file.stat().st_size for file in out.iterdir())
    value = {
        "folder": str(out),
        "task": task,
        "episodes": batch.episodes,
        "steps": batch.steps,
        "image_size": batch.image_size,
        "seed": seed,
        "bytes": size,
    }
    output.result(value, f"{batch.episodes} episodes of {batch.steps} steps in {out} ({size / 1e6:.0f} MB)")
