"""Progress where nobody watches a terminal: lines, soon and not too many."""

from __future__ import annotations

import pytest

from cli import output as module
from cli.output import LineProgress


def test_a_task_is_told_when_it_begins_and_then_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    lines: list[str] = []
    with LineProgress(lines.append, every_s=10.0) as bars:
        bar = bars.add_task("gathering arm", total=1600)
        unknown = bars.add_task("decoding", total=None)
        assert lines == ["gathering arm, 1600 in all", "decoding"]
        for second in range(1, 21):
            now = float(second)
            bars.update(bar, completed=second * 10)
        bars.update(unknown, advance=3)
    assert lines[2:] == ["gathering arm: 100 of 1600", "gathering arm: 200 of 1600", "decoding: 3"]
