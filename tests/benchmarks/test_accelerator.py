"""The accelerator's benchmark, rehearsed on the processor: everything runs, and nothing is claimed of a device."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.planning import accelerator


def test_every_figure_that_is_wanted_is_measured() -> None:
    scale = replace(accelerator.TINY, horizons=(1, 2), clip_layers=0)
    figures, tables = accelerator.measure(torch.device("cpu"), scale)
    assert set(figures) == {target.name for target in accelerator.TARGETS} - {"horizon_4", "clip", "clip_alike"}
    assert all(figure > 0 for figure in figures.values())
    (plans,) = tables
    assert [row[2] for row in plans.rows] == [1, 2]
    assert figures["floor_1"] == plans.rows[0][-1]
    table = accelerator.wanted(figures)
    assert [row[3] for row in table.rows].count(accelerator.NOT_MEASURED) == 3


@pytest.mark.process
def test_without_a_device_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerator", "--device", "cpu", "--json", str(tmp_path / "figures.json")])
    accelerator.main()
    printed = capsys.readouterr().out
    assert printed.count(f"| {accelerator.NOT_MEASURED} |") == len(accelerator.TARGETS)
    assert printed.splitlines()[-1] == accelerator.NOT_MEASURED
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["figures"] == {}
    assert report["accelerator"] == accelerator.NOT_MEASURED
