"""`presage train` with `family: proposer` and `family: step-predictor`, on a built-in package and its own task."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli.exit_codes import CommandError
from cli.main import app
from model.package import read_package
from model.registry import load

COMMON = "package: arm\ntask: arm\nepisodes: 24\nepisode_steps: 30\n"
RECIPE = "recipe: {steps: 4, batch: 32, held_out: 4, checkpoint_every: 2, width: 32, depth: 2"


def write(folder: Path, family: str, more: str = "", common: str = COMMON) -> Path:
    config = folder / f"{family}.yaml"
    config.write_text(f"family: {family}\n{common}{RECIPE}{more}}}\n")
    return config


@pytest.mark.parametrize("family", ["proposer", "step-predictor"])
def test_a_part_is_trained_for_a_built_in_package(family: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = CliRunner().invoke(app, ["train", str(write(tmp_path, family)), "--out", str(out), "--json"])
    assert ran.exit_code == 0, ran.output
    value = json.loads(ran.stdout)
    assert (value["folder"], value["steps"]) == (str(out), 4)
    model = load(str(out), torch.device("cpu"))
    assert (model.proposer is not None) == (family == "proposer")
    assert ("stepper.change" in read_package(out).weights()) == (family == "step-predictor")
    assert sorted(file.name for file in out.iterdir() if file.is_dir()) == [], "latents are removed"


@pytest.mark.parametrize("family", ["proposer", "step-predictor"])
def test_labels_can_be_read_first(family: str, tmp_path: Path) -> None:
    more = ", reading: [0.1, 0.1, 0.1, 0.1], products: true" + (", share: 1.0" if family == "step-predictor" else "")
    config = write(tmp_path, family, more, COMMON + "reading_episodes: 8\n")
    ran = CliRunner().invoke(app, ["train", str(config), "--out", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    package = read_package(tmp_path / "out")
    assert package.config.latent_shape == ((4,) if family == "step-predictor" else (128,))
    assert load(str(tmp_path / "out"), torch.device("cpu")).block == 5


def test_a_part_is_trained_on_episodes_that_were_recorded(tmp_path: Path) -> None:
    collected = ["data", "collect", "--task", "arm", "--episodes", "8", "--steps", "30", "--out", str(tmp_path / "lab")]
    assert CliRunner().invoke(app, collected).exit_code == 0
    common = COMMON.replace("task: arm\n", "dataset: lab\n")
    assert common != COMMON
    ran = CliRunner().invoke(
        app, ["train", str(write(tmp_path, "proposer", "", common)), "--out", str(tmp_path / "out")]
    )
    assert ran.exit_code == 0, ran.output
    assert read_package(tmp_path / "out").config.proposer is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (", reading: 3", "recipe.reading must be a list of numbers, got 3"),
        (", reading: [1.0, 1.0, 1.0, -1.0]", "reading must hold 4 numbers above 0"),
        (", reading: [1.0]", "reading must hold 4 numbers above 0"),
        (", longest: 0", "longest must be >= 1"),
        (", colour: 3", "recipe.colour is not a setting"),
    ],
)
def test_a_bad_recipe_is_named(change: str, said: str, tmp_path: Path) -> None:
    config = write(tmp_path, "proposer", change, COMMON + "reading_episodes: 8\n")
    with pytest.raises(CommandError, match=re.escape(said)):
        CliRunner().invoke(app, ["train", str(config), "--out", str(tmp_path / "out")], catch_exceptions=False)


def test_episodes_too_short_for_a_block_are_named(tmp_path: Path) -> None:
    common = COMMON.replace("episode_steps: 30", "episode_steps: 3")
    config = write(tmp_path, "proposer", "", common)
    with pytest.raises(CommandError, match=r"at least 5 steps long for hindsight .* got 3"):
        CliRunner().invoke(app, ["train", str(config), "--out", str(tmp_path / "out")], catch_exceptions=False)
