"""The model card says what the config says, and a new score replaces that task's last."""

from __future__ import annotations

from pathlib import Path

import torch

from model.compact import CompactWorldModel
from model.package import read_package
from model.registry import load
from tests.support.model.compact_packages import tiny_config
from training.model_card import card, record_score

SCORE = {
    "task": "arm",
    "episodes": 100,
    "seed": 7,
    "success_rate": 0.97,
    "ci95_low": 0.915,
    "ci95_high": 0.99,
    "random_success_rate": 0.07,
    "oracle_success_rate": None,
    "plan_ms_p50": 210.0,
    "plan_ms_p95": 260.0,
}


def test_an_untrained_package_says_so() -> None:
    text = card(tiny_config())
    assert "Untrained" in text
    assert "Not evaluated yet" in text
    assert "| a | rad/s | -1 | 1 |" in text


def test_a_score_is_recorded_in_config_and_card_and_leaves_the_weights_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    CompactWorldModel.random(folder, tiny_config(), seed=0)
    digest = read_package(folder).weights_digest
    record_score(folder, {**SCORE, "success_rate": 0.5})
    record_score(folder, SCORE)
    package = read_package(folder)
    assert package.weights_digest == digest
    assert package.config.scores == {"arm": SCORE}
    assert "| arm | 100 (7) | 97.0% | 91.5% to 99.0% | 7.0% | none | 210 / 260 ms |" in package.card()
    assert "50.0%" not in package.card()
    load(str(folder), torch.device("cpu"))
