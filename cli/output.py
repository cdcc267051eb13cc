"""Console output: results on stdout, progress and remarks on stderr; with --json, stdout holds JSON alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


class LineProgress(Progress):
    """Progress as lines of text: one when a task begins, then one every `every_s` seconds while it advances."""

    def __init__(self, remark: Callable[[str], None], every_s: float = 10.0) -> None:
        super().__init__(disable=True)
        self._remark, self._every_s = remark, every_s
        self._said: dict[TaskID, float] = {}

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: float | None = 100.0,
        completed: int = 0,
        visible: bool = True,
        **fields: Any,
    ) -> TaskID:
        task = super().add_task(description, start, total, completed, visible, **fields)
        self._said[task] = time.monotonic()
        self._remark(description if total is None else f"{description}, {total:g} in all")
        return task

    def update(
        self,
        task_id: TaskID,
        *,
        total: float | None = None,
        completed: float | None = None,
        advance: float | None = None,
        description: str | None = None,
        visible: bool | None = None,
        refresh: bool = False,
        **fields: Any,
    ) -> None:
        super().update(
            task_id,
            total=total,
            completed=completed,
            advance=advance,
            description=description,
            visible=visible,
            refresh=refresh,
            **fields,
        )
        now = time.monotonic()
        if now - self._said[task_id] >= self._every_s:
            self._said[task_id] = now
            task = self._tasks[task_id]
            whole = "" if task.total is None else f" of {task.total:g}"
            self._remark(f"{task.description}: {task.completed:g}{whole}")


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
        """A progress bar on a terminal, with more columns where the command names them; elsewhere lines of text."""
        if not self.err.is_terminal:
            return LineProgress(self.remark)
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
        )


def open_output(machine: bool = False) -> Output:
    """The output of one command."""
    return Output(machine, Console(highlight=False), Console(stderr=True, highlight=False))


def silent_output() -> Output:
    """The output of a process beside the one that speaks."""
    return Output(True, Console(quiet=True), Console(quiet=True))
