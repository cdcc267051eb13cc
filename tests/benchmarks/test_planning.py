"""Every table of the planning benchmarks, as small as they come: what is measured is real, only less of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.planning import __main__ as command
from benchmarks.planning import chart, compact, vjepa2
from benchmarks.planning.problems import Served, arm_problems
from benchmarks.planning.timing import interleaved, matrix_rate, operations
from model.registry import load

CPU = torch.device("cpu")
SCALE = compact.Scale(1, 2, 2, (1, 2), ((20, 2),), ((20, 2),))


@pytest.fixture(scope="module")
def served() -> Served:
    arm = load("arm", CPU)
    return Served(arm, arm.to_precision(torch.bfloat16), "said so by the test")


def test_tables_of_the_compact_family_say_what_was_measured(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compact, "FULL", replace(compact.FULL, samples=40, iterations=2, elites=4))
    monkeypatch.setattr(compact, "ENDLESS", replace(compact.ENDLESS, samples=40, elites=4))
    problems = arm_problems(served.exact, 2)
    assert len(compact.sizes(served, problems[0], SCALE).rows) == 1
    batched, gain = compact.company(served, problems, SCALE)
    assert [row[0] for row in batched.rows] == [1, 2]
    assert gain > 0
    late, worst = compact.punctuality(served, problems, SCALE)
    assert [row[1] for row in late.rows] == [2, 2, 2]
    assert worst >= 0
    warm, ratio = compact.warm_starts(served, problems, SCALE)
    assert 0 < ratio < 10
    costs = compact.pareto(served, problems, SCALE)
    assert {row[0] for row in costs.rows} == set(compact.PARETO)
    page = command.markdown(
        {"machine": {"processor": "any"}, "quick": True, "seconds": {"all": 1.0}, "threads": 1, "accelerator": "none",
         "commit": "none"}, [batched, late, warm, costs],
    )  # fmt: skip
    assert page.count("\n## ") == 4
    points = [(str(row[0]), float(str(row[3])), float(str(row[4]))) for row in costs.rows]
    chart.draw(tmp_path / "chart.png", points, "costs")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.size == chart.SIZE


def test_tables_of_the_vjepa2_family_say_what_was_measured() -> None:
    table, ratios = vjepa2.plans(CPU, layers=1, samples=2, horizons=(1,), repeats=1)
    counted, above_floor = table.rows[0][7:]
    one_block_of_the_published_shape = 2 * (12 * 1024**2 + 2 * 258 * 1024) * 258
    assert float(str(counted)) * 1e9 == pytest.approx(2 * one_block_of_the_published_shape, rel=0.3)
    assert float(str(above_floor)) > 0
    assert set(ratios) == {"horizon_1"}


def test_works_run_in_turns_and_matrix_products_are_counted() -> None:
    order: list[str] = []
    ms = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=2)
    assert order == ["a", "b"] * 3
    assert set(ms) == {"a", "b"}
    left, right = torch.zeros(3, 5), torch.zeros(5, 7)
    assert operations(lambda: left @ right) == 2 * 3 * 5 * 7
    assert matrix_rate(torch.float32, CPU, size=64, seconds=0.01) > 1e6
