"""Progress of a training: a bar on a terminal, log lines otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from cli.exit_codes import CommandError
from cli.output import Output

LOG_EVERY = 50  # steps, where nobody watches the bar


class Line(Protocol):
    """What every training logs of a step."""

    @property
    def step(self) -> int: ...

    @property
    def seconds(self) -> float: ...


LogLine = TypeVar("LogLine", bound=Line)


@dataclass(frozen=True)
class ProgressLine:
    """A line of the log in words."""

    losses: str  # beside the bar, and in the text
    more: str = ""  # in the text alone
    measured: bool = False  # worth a line of text at any step, whoever watches


def follow(
    output: Output,
    name: str,
    steps: int,
    tell: Callable[[LogLine], ProgressLine],
    fit: Callable[[Callable[[LogLine], None]], Path],
    beginning: str = "",
) -> tuple[Path, LogLine]:
    """Run `fit`, which calls its argument at every step; the package's folder and the last line of its log.

    `beginning` stands beside the bar until the first step. Raises CommandError where `fit` finds that the recipe does
    not suit what it is given, or the checkpoint that lies there.
    """
    from rich.progress import TextColumn

    last: list[LogLine] = []
    with output.progress(TextColumn("{task.fields[losses]}")) as bars:
        bar = bars.add_task(f"training {name}", total=steps, losses=beginning)

        def advance(line: LogLine) -> None:
            last[:] = [line]
            told = tell(line)
            bars.update(bar, completed=line.step, losses=told.losses)
            if told.measured or line.step == 1 or (line.step % LOG_EVERY == 0 and not output.err.is_terminal):
                output.remark(f"{line.seconds:.0f} s, step {line.step} of {steps}: {told.losses}{told.more}")

        try:
            folder = fit(advance)
        except ValueError as error:
            raise CommandError(str(error)) from error
    return folder, last[0]
