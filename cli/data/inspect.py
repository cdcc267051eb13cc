"""`presage data inspect`: reports what recordings contain and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exit_codes import CommandError
from cli.output import JsonFlag, open_output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from training.data.inspection import Inspection


def inspect(
    path: Annotated[Path, typer.Argument(help="A LeRobot dataset, HDF5 recordings, clips with actions, or episodes.")],
    camera: Annotated[str, typer.Option("--camera", help="Which camera, where there are several.")] = "",
    action_key: Annotated[
        str, typer.Option("--action-key", help="The column or array of the actions, where it is not the usual one.")
    ] = "",
    state_key: Annotated[str, typer.Option("--state-key", help="The same for what the robot measured.")] = "",
    rate_hz: Annotated[float, typer.Option("--rate-hz", min=0, help="Frames a second, where nothing says.")] = 0.0,
    quick: Annotated[bool, typer.Option("--quick", help="Look at numbers alone; do not decode every frame.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Say what a dataset holds and what is wrong with it, episode by episode; exit code 1 where something is."""
    output = open_output(json_)

    from cli.data.recordings import open_recordings
    from training.data.dataset import ReadOptions
    from training.data.inspection import inspect as look_through

    dataset = open_recordings(path, ReadOptions(camera, state_key, rate_hz, action_key))
    with output.progress() as bars:
        bar = bars.add_task(f"inspecting {path.name}", total=len(dataset.header.episodes))
        found = look_through(
            dataset,
            pictures=not quick,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    output.result(found.summary(), _shown(found))
    if found.errors:
        broken = f"{len(found.broken)} of {len(found.episodes)} episodes cannot be used"
        raise CommandError(f"{path}: {broken}" if found.broken else f"{path}: {found.errors[0]}")


def _shown(found: Inspection) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    from cli.data.recordings import SHOWN

    summary = found.summary()
    about = Table(title=f"{summary['path']}: {summary['format']}", show_header=False)
    about.add_column(style="dim")
    about.add_column()
    about.add_row("episodes", f"{summary['episodes']}, of which {summary['usable_episodes']} can be used")
    spread = f"{summary['shortest_steps']} to {summary['longest_steps']}, median {summary['median_steps']:g}"
    about.add_row("steps", f"{summary['steps']} in all; an episode has {spread}")
    about.add_row("rate", f"{found.header.rate_hz:g} Hz" if found.header.rate_hz else "not said")
    size = "" if found.frame_size is None else f", {found.frame_size[0]} x {found.frame_size[1]} pixels"
    read = "every frame decoded" if found.pictures_read else "frames not decoded"
    about.add_row("camera", f"{found.header.camera}{size}; {read}")
    about.add_row("proprioception", ", ".join(found.header.proprioception_names) or "none")
    actions = Table("action", "low", "high", "mean", "std", "")
    for entry in found.actions:
        numbers = (f"{value:.4g}" for value in (entry.low, entry.high, entry.mean, entry.std))
        actions.add_row(entry.name, *numbers, "constant" if entry.constant else "")
    said = [f"  {problem}" for problem in found.errors[:SHOWN]]
    if len(found.errors) > SHOWN:
        said.append(f"  and {len(found.errors) - SHOWN} more: --json has them all")
    notes = [f"  {note}" for note in found.notes[:SHOWN]]
    if len(found.notes) > SHOWN:
        notes.append(f"  and {len(found.notes) - SHOWN} more: --json has them all")
    noted = ["to know:", *notes] if notes else []
    return Group(about, actions, *noted, *(["what is wrong:", *said] if said else ["nothing is wrong"]))
