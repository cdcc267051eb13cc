"""The decoder against the world: generated clips of every kind, each compared with a sequential decode or refused.

`python -m tests.support.model.clip_matrix` runs all of them and prints the summary.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.model.clip_cells import GROUPS, Cell
from tests.support.model.clip_matrix import Summary, run

CELLS = [cell for cells in GROUPS.values() for cell in cells()]
FEW = CELLS[::7]


def outcomes(cells: list[Cell], folder: Path, capsys: pytest.CaptureFixture[str]) -> Summary:
    summary = Summary()
    for number, cell in enumerate(cells):
        place = folder / str(number)
        place.mkdir()
        summary.outcomes.append(run(cell, place))
    with capsys.disabled():
        print(f"\n{summary}")  # noqa: T201 (the table is what this test is run for)
    return summary


def test_there_are_cells_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(CELLS) >= 300
    assert len({(cell.group, cell.name) for cell in CELLS}) == len(CELLS)


def test_a_few_clips_of_every_kind_are_read_as_a_sequential_decode_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {cell.group for cell in FEW} == set(GROUPS)
    summary = outcomes(FEW, tmp_path, capsys)
    assert [(each.cell.name, each.said) for each in summary.outcomes if each.result == "different"] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", GROUPS)
def test_every_clip_is_read_as_a_sequential_decode_reads_it_or_refused(
    group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = outcomes([cell for cell in CELLS if cell.group == group], tmp_path, capsys)
    assert [(each.cell.name, each.said) for each in summary.outcomes if each.result == "different"] == []
