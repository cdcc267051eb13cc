"""`presage eval` writes its numbers under their fixed names, the same every time, and into the package if asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from model.package import read_package
from tests.support.cli.commands import run_command
from tests.support.cli.packages import write_untrained_arm
from training.evaluation.statistics import wilson_interval

KEYS = [
    *("task", "model", "episodes", "seed", "successes", "success_rate", "ci95_low", "ci95_high"),
    *("random_success_rate", "oracle_success_rate", "initially_solved_excluded", "plan_ms_p50", "plan_ms_p95"),
]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_untrained_arm(tmp_path / "untrained")


def evaluate(package: Path, *more: str) -> int:
    return run_command(
        *("eval", "--model", str(package), "--episodes", "3", "--budget-steps", "10", "--device", "cpu", "--seed", "7"),
        *more,
    )


def test_an_evaluation_has_its_keys_and_adds_up(package: Path, tmp_path: Path) -> None:
    assert evaluate(package, "--result", str(tmp_path / "new" / "eval.json")) == 0
    value = json.loads((tmp_path / "new" / "eval.json").read_text())
    assert list(value)[: len(KEYS)] == KEYS
    assert (value["offset"], value["budget_steps"]) == (25, 10)
    assert len(value["open_loop_error"]) == len(value["open_loop_actions"]) == len(value["open_loop_unchanged"])
    assert 0 <= value["true_actions_median_rank"] <= 1
    assert (value["task"], value["episodes"], value["seed"]) == ("arm", 3, 7)
    assert value["success_rate"] == value["successes"] / 3
    assert (value["ci95_low"], value["ci95_high"]) == wilson_interval(value["successes"], 3)
    assert value["oracle_success_rate"] is not None
    assert 0 < value["plan_ms_p50"] <= value["plan_ms_p95"]


def test_json_on_stdout_is_all_there_is_and_repeats(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for _ in range(2):
        assert evaluate(package, "--json") == 0
        value = json.loads(capsys.readouterr().out)
        told.append({name: entry for name, entry in value.items() if not name.startswith("plan_ms")})
    assert told[0] == told[1]


def test_a_person_reads_a_table(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(package) == 0
    shown = capsys.readouterr().out
    assert "3 episodes, seed 7" in " ".join(shown.split())
    assert "random" in shown
    assert "oracle" in shown


def test_recorded_scores_stand_in_the_package(package: Path) -> None:
    digest = read_package(package).weights_digest
    assert evaluate(package, "--record") == 0
    recorded = read_package(package)
    assert recorded.config.scores["arm"]["episodes"] == 3
    assert recorded.weights_digest == digest
    assert "| arm | 3 (7) |" in recorded.card()


def test_a_robot_of_another_kind_is_refused_in_one_line(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("eval", "--model", str(package), "--task", "pusht", "--device", "cpu", "--episodes", "1") == 1
    assert "acts in shoulder_velocity, elbow_velocity, but robot pusht in" in capsys.readouterr().err


def test_a_report_shows_rates_plots_and_filmstrips_and_needs_nothing_else(package: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "report.html"
    assert evaluate(package, "--offset", "50", "--report", str(page), "--result", str(tmp_path / "eval.json")) == 0
    text, value = page.read_text(), json.loads((tmp_path / "eval.json").read_text())
    assert f"{value['success_rate']:.1%} of 3 goals reached" in text
    assert "50 steps apart" in text
    assert text.count('class="strip"') == 3
    assert "open-loop error against horizon" in text
    assert not re.search(r"""(src|href)=["']?(http|//|/)""", text)


def test_goals_at_a_distance_nobody_kept_pairs_for_are_named(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(package, "--offset", "30") == 1
    assert "no manifest for 'arm' with goals 30 steps ahead" in capsys.readouterr().err
