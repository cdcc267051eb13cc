"""Console output: results on stdout, progress and remarks on stderr; with --json, stdout holds JSON alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


@dataclass(frozen=True)
class Output:
    """The two consoles of a command. `machine`: a program reads stdout."""

    machine: bool
    out: Console
    err: Console

    def remark(self, message: str) -> None:
        """Something worth knowing on the way, on stderr; nothing where a program listens."""
        if not self.machine:
            self.err.print(message, highlight=False, soft_wrap=True)

    def result(self, value: Mapping[str, Any], shown: RenderableType) -> None:
        """What the command found: `value` as JSON for a program, `shown` for a person."""
        if self.machine:
            sys.stdout.write(json.dumps(value) + "\n")
            sys.stdout.flush()
        else:
            self.out.print(shown)

    def progress(self, *details: TextColumn) -> Progress:
        """A progress bar where a person watches stderr, with columns where the command has more to say."""
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            *details,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeLeftColumn(),
            console=self.err,
            disable=not self.err.is_terminal,
        )


def open_output(machine: bool = False) -> Output:
    """The output of one command."""
    return Output(machine, Console(highlight=False), Console(stderr=True, highlight=False))


def silent_output() -> Output:
    """The output of a process beside the one that speaks."""
    return Output(True, Console(quiet=True), Console(quiet=True))
