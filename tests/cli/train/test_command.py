"""`presage train` makes a package that loads, says how it was made, and is the same for the same config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.train.training_data import as_training_episodes
from model.package import read_package
from model.registry import load
from simulation.episodes import collect
from tests.support.cli.commands import run_command

TINY = """\
task: arm
episodes: 8
episode_steps: 12
image_size: 32
recipe: {steps: 3, batch: 4, horizon: 2, directions: 16, latent: 16, encoder_width: 32, encoder_depth: 1,
  predictor_width: 36, predictor_depth: 1, held_out: 2, checkpoint_every: 2}
"""


def test_a_config_makes_a_package_and_the_same_one_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    told = []
    for name in ("one", "two"):
        assert run_command("train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / name), "--json") == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["weights_digest"] == told[1]["weights_digest"]
    assert told[0]["steps"] == 3
    package = read_package(tmp_path / "one")
    assert package.config.name == "tiny"
    assert "8 episodes of 12 steps, seed 1" in package.config.training["episodes"]
    assert package.card().startswith("# Model package `tiny`")
    model = load(str(tmp_path / "one"), torch.device("cpu"))
    assert model.encode(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 16)


def test_a_package_that_is_given_no_folder_is_named_after_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    assert run_command("train", str(tmp_path / "tiny.yaml"), "--json") == 0
    assert read_package(tmp_path / "runs" / "tiny").config.name == "tiny"


def test_a_training_leaves_its_curves_for_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert run_command("train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    curves = reader.EventAccumulator(str(tmp_path / "out" / "logs"))
    curves.Reload()
    losses = curves.Scalars("loss/prediction")
    assert [point.step for point in losses] == [1, 2, 3]
    assert losses[-1].value == pytest.approx(told["prediction_loss"], rel=1e-6)
    assert {"speed/frames_per_s", "speed/compute_share", "probe_r2/3"} <= set(curves.Tags()["scalars"])


def test_collected_episodes_train_like_those_gathered_on_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    data = ("--out", str(tmp_path / "data"), "--episodes", "8", "--steps", "12", "--image-size", "32", "--seed", "1")
    assert run_command("data", "collect", *data, "--json") == 0
    capsys.readouterr()
    digests = []
    for more in ((), ("--data", str(tmp_path / "data"))):
        out = ("--out", str(tmp_path / f"out{len(digests)}"), "--json")
        assert run_command("train", str(tmp_path / "tiny.yaml"), *out, *more) == 0
        digests.append(json.loads(capsys.readouterr().out)["weights_digest"])
    assert digests[0] == digests[1]


def test_a_recipe_the_episodes_cannot_serve_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.replace("held_out: 2", "held_out: 9"))
    assert run_command("train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out")) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "presage: held_out must lie in 1..7, got 9"


def test_a_probe_is_asked_for_angles_by_sine_and_cosine_and_for_positions() -> None:
    batch = collect("arm-push", 2, 3, seed=1, image_size=16)
    targets = as_training_episodes(batch).probe_targets
    assert targets is not None
    assert targets.shape == (2, 4, 6)
    assert np.allclose(targets[..., 0], np.sin(batch.states[..., 0]))
    assert np.allclose(targets[..., 3], np.cos(batch.states[..., 1]))
    assert np.allclose(targets[..., 4:], batch.states[..., 2:])
