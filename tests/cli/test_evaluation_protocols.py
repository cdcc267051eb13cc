"""`presage eval --protocol` drives an imported LeWM package on Push-T as it was published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli.commands import run_command
from tests.support.model.lewm import write_folder, write_statistics


@pytest.fixture
def package(tmp_path: Path) -> Path:
    source, statistics = write_folder(tmp_path / "released"), write_statistics(tmp_path / "statistics.json")
    out = tmp_path / "package"
    assert run_command("weights", "import", str(source), "--out", str(out), "--action-stats", str(statistics)) == 0
    return out


def evaluate(package: Path, *more: str) -> int:
    few = ("--episodes", "2", "--samples", "8", "--iterations", "2", "--device", "cpu", "--seed", "7")
    return run_command("eval", "--model", str(package), *few, *more)


@pytest.mark.parametrize(("name", "execute"), [("lewm", 25), ("strict", 5)])
def test_a_synthetic_lewm_package_drives_push_t(package: Path, tmp_path: Path, name: str, execute: int) -> None:
    pytest.importorskip("gym_pusht")
    result = tmp_path / "result.json"
    assert evaluate(package, "--task", "pusht", "--protocol", name, "--result", str(result)) == 0
    value = json.loads(result.read_text())
    assert (value["offset"], value["budget_steps"], value["planner"]["execute"]) == (25, 50, execute)
    assert value["protocol"]["name"] == name
    judged = value if name == "lewm" else value["rules"][name]
    assert value["protocol"]["success_rate"] == judged["success_rate"]


def test_a_lewm_package_is_refused_on_another_robot(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(package, "--task", "tworoom", "--protocol", "lewm") == 1
    assert "acts in x, y, but robot tworoom in velocity_x, velocity_y" in capsys.readouterr().err


def test_a_protocols_settings_are_fixed(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(package, "--task", "pusht", "--protocol", "lewm", "--offset", "50") == 1
    assert "fixes --offset 25" in capsys.readouterr().err


def test_dinov3_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("weights", "pull", "dinov3_vitl16", "--out", str(tmp_path / "x")) == 1
    assert "no code for DINOv3, which has a license of its own; dinov2_vits14 can be" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
