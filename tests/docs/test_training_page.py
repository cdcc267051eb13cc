"""docs/training.md is true: its configs and commands run as they stand, on recordings of the arm, at a tiny size."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.support.cli.commands import run_command
from tests.support.paths import ROOT
from tests.support.training import recordings
from tests.support.training.recordings import arm_episodes, with_poses

pytest.importorskip("pyarrow", reason="needs the extra datasets")

PAGE = (ROOT / "docs/training.md").read_text()
COMPACT = {"block": 2, "horizon": 2, "directions": 16, "latent": 16, "encoder_width": 32, "encoder_depth": 1}
COMPACT |= {"predictor_width": 36, "predictor_depth": 1}
MASKED = {"width": 32, "depth": 1, "heads": 2, "predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2}
ACTING = {"width": 24, "depth": 1, "heads": 2}
TINY = {"own.yaml": COMPACT, "pretrain.yaml": MASKED, "act.yaml": ACTING}


def configs() -> dict[str, dict[str, object]]:
    """The page's files by name, with recipes that end in moments."""
    found: dict[str, dict[str, object]] = {}
    for name, text in re.findall(r"`(\w+\.yaml)`:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL):
        content = yaml.safe_load(text)
        content["recipe"] = {**content["recipe"], **TINY[name], "steps": 2, "batch": 2}
        found[name] = content
    return found


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def test_the_pages_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings.write_lerobot_2(tmp_path / "lab/arm", arm_episodes((9, 8, 10, 9)))
    recordings.write_lerobot_2(tmp_path / "lab/posed", with_poses(arm_episodes((9, 8, 10, 9), seed=4)))
    monkeypatch.chdir(tmp_path)
    assert sorted(configs()) == sorted(TINY)
    for name, content in configs().items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    ran = []
    for command in commands():
        assert command[0] == ".venv/bin/presage"
        if command[1] in ("serve", "embed"):  # services of their own, which other tests start
            assert (tmp_path / command[command.index("--model") + 1] / "weights.safetensors").exists()
            assert command[1] == "serve" or (tmp_path / command[2]).exists()
            continue
        assert run_command(*command[1:]) == 0, command
        ran.append(command[1])
    assert ran == ["data", "train", "weights", "train", "train"]


def test_the_page_names_settings_as_they_are() -> None:
    from training.action_conditioned.train import ActionConditionedRecipe
    from training.masked.train import MaskedRecipe

    masked, acting = MaskedRecipe(), ActionConditionedRecipe()
    assert f"| average of the target encoder | {masked.average} |" in PAGE
    assert f"| size | 64 px, {masked.frames} frames, width {masked.width}, {masked.depth} layers |" in PAGE
    assert f"| predictor | width {acting.width}, {acting.depth} layers |" in PAGE
    assert f"windows | {acting.frames} frames at {acting.fps:g} a second, batches of {acting.batch} |" in PAGE
    assert (masked.learning_rate, acting.learning_rate, masked.weight_decay) == (5e-4, 4.25e-4, 0.04)
