"""`presage replay`: repeats recorded plans and reports whether they are the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exit_codes import CommandError
from cli.output import JsonFlag, Output, open_output

if TYPE_CHECKING:
    from model.interface import LoadedModel
    from server.worker.replay import Outcome


def replay(
    file: Annotated[Path, typer.Argument(help="A file of the flight recorder (presage serve --record).")],
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A package's name or folder; repeat it. By default those the recorder names."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="How far actions may differ, as a fraction of their range.")
    ] = 1e-3,
    json_: JsonFlag = False,
) -> None:
    """Make every recorded plan again, with its model, seed and warm start; exit 1 where actions differ or one fails."""
    from server.worker import replay as replaying

    recording = replaying.read(file)
    if not recording.records:
        raise CommandError(f"{file} holds no plans")
    loaded = _load(tuple(models or recording.models), device)
    output = open_output(json_)
    outcomes = []
    with output.progress() as progress:
        task = progress.add_task("replaying", total=len(recording.records))
        for outcome in replaying.replay(recording, loaded, tolerance):
            outcomes.append(outcome)
            progress.advance(task)
    _tell(output, outcomes, recording.is_whole, tolerance)
    if any(outcome.verdict in ("different", "failed") for outcome in outcomes):
        raise typer.Exit(1)


def _load(wanted: tuple[str, ...], device: str) -> dict[str, LoadedModel]:
    """The models by their own names. Raises PackageError."""
    from model import registry
    from model.runtime.devices import usable

    if not wanted:
        raise CommandError("the file names no models: name them with --model")
    loaded = [registry.load(name, usable(device)) for name in wanted]
    return {model.package.config.name: model for model in loaded}


def _tell(output: Output, outcomes: list[Outcome], is_whole: bool, tolerance: float) -> None:
    from dataclasses import asdict

    counts = {
        verdict: sum(outcome.verdict == verdict for outcome in outcomes)
        for verdict in ("same", "different", "failed", "not searched")
    }
    for outcome in outcomes:
        if outcome.verdict in ("different", "failed"):
            output.remark(f"observation {outcome.sequence} at {outcome.time_ns}: {outcome.verdict}: {outcome.why}")
    if not is_whole:
        output.remark("the file was not finished: its last plans may be missing")
    largest = max((outcome.actions for outcome in outcomes), default=0.0)
    value = {
        "plans": len(outcomes),
        **{verdict.replace(" ", "_"): count for verdict, count in counts.items()},
        "largest_difference": largest,
        "tolerance": tolerance,
        "whole": is_whole,
        "differences": [asdict(outcome) for outcome in outcomes if outcome.verdict in ("different", "failed")],
    }
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    output.result(
        value,
        f"{len(outcomes)} plans: {told}\nlargest difference of an action: {largest:.3g} of its range "
        f"(tolerance {tolerance:g})",
    )
