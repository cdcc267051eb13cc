"""Live table of the demo's episodes, with a bar of each one's distance to its goal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TaskID as BarID
from rich.table import Table
from rich.text import Text

BAR = 24  # characters
SHOWN = 14  # episodes in the table at once


@dataclass
class Row:
    """What the table says of one episode."""

    pair: int
    first: float | None = None  # distance to the goal at the first plan
    now: float | None = None
    steps: int = 0
    plan_ms: list[float] = field(default_factory=list)
    ended: Mapping[str, Any] | None = None


class Board:
    """Fed with the robot's lines. On a terminal it is redrawn in place; elsewhere each ended episode is one line."""

    def __init__(self, console: Console, episodes: int, title: str) -> None:
        self._console, self._title = console, title
        self._rows: list[Row] = []
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=40), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._bar: BarID = self._bars.add_task("episodes", total=episodes)
        self._live = Live(self, console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._live is not None:
            self._live.stop()
            if self._rows:
                self._console.print(self._table(self._rows))

    def listen(self, line: Mapping[str, Any]) -> None:
        """Take in one line of the robot's."""
        match line["event"]:
            case "started":
                self._rows.append(Row(line["pair"]))
            case "planned":
                row, plan = self._rows[-1], line["plan"]
                row.now = plan["goal_distance"]
                row.first = row.now if row.first is None else row.first
                row.steps = line["step"]
                row.plan_ms.append(plan["timings"]["plan_ms"])
            case "ended":
                row = self._rows[-1]
                row.ended, row.steps = line, line["steps"]
                row.now = line["goal_distances"][-1]
                self._bars.advance(self._bar)
                if self._live is None:
                    self._console.print(self._sentence(len(self._rows), row), soft_wrap=True)

    def __rich__(self) -> RenderableType:
        return Group(self._table(self._rows[-SHOWN:]), self._bars)

    def _table(self, rows: list[Row]) -> Table:
        table = Table(title=self._title, title_justify="left", expand=False)
        for name in ("#", "pair"):
            table.add_column(name, justify="right", style="dim")
        table.add_column("distance to the goal", min_width=BAR + 7)
        for name in ("steps", "plans", "ms a plan"):
            table.add_column(name, justify="right")
        for name in ("result", "random"):
            table.add_column(name)
        first = len(self._rows) - len(rows) + 1
        for number, row in enumerate(rows, start=first):
            mean = f"{sum(row.plan_ms) / len(row.plan_ms):.0f}" if row.plan_ms else ""
            cells = (str(number), str(row.pair), _distance_bar(row), str(row.steps), str(len(row.plan_ms)), mean)
            table.add_row(*cells, _result(row), _random(row))
        return table

    def _sentence(self, number: int, row: Row) -> str:
        assert row.ended is not None
        distance = "" if row.first is None else f", distance {row.first:.3f} -> {row.now:.3f}"
        return f"episode {number} (pair {row.pair}): {_result(row).plain}{distance}; random {_random(row).plain}"


def _distance_bar(row: Row) -> Text:
    """Full at the first distance, empty at the goal."""
    if row.first is None or row.now is None:
        return Text("")
    share = min(1.0, row.now / row.first) if row.first > 0 else 0.0
    filled = round(BAR * share)
    color = "green" if row.ended is not None and row.ended["success"] else "cyan"
    return Text("█" * filled, color) + Text("·" * (BAR - filled), "dim") + Text(f" {row.now:6.3f}")


def _result(row: Row) -> Text:
    if row.ended is None:
        return Text("...", "dim")
    if row.ended["initially_solved"]:
        return Text("solved at its start", "dim")
    if row.ended["success"]:
        return Text(f"reached in {row.steps} steps", "bold green")
    return Text(f"not reached in {row.steps} steps", "bold red")


def _random(row: Row) -> Text:
    if row.ended is None:
        return Text("")
    return Text("reached", "yellow") if row.ended["random_success"] else Text("not reached", "dim")
