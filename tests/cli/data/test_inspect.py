"""`presage data inspect` and `presage train` on a lab's own recordings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.package import read_package
from model.registry import load
from tests.support.cli.commands import run_command
from tests.support.training import recordings
from tests.support.training.recordings import CAMERA, arm_episodes

pytest.importorskip("pyarrow", reason="needs the extra datasets")

TINY = """\
dataset: {path}
image_size: 32
recipe: {{steps: 3, batch: 4, horizon: 2, block: 2, directions: 16, latent: 16, encoder_width: 32, encoder_depth: 1,
  predictor_width: 36, predictor_depth: 1, held_out: 2, checkpoint_every: 2}}
"""


def test_inspect_describes_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recordings.write_lerobot_2(tmp_path / "set", arm_episodes((6, 8)))
    assert run_command("data", "inspect", str(path)) == 0
    shown = capsys.readouterr().out
    assert "2, of which 2 can be used" in shown
    assert "nothing is wrong" in shown
    assert run_command("data", "inspect", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 12


def test_inspect_names_what_is_wrong_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recordings.write_lerobot_2(tmp_path / "set", arm_episodes((6, 8)))
    (path / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").write_bytes(b"not a clip")
    assert run_command("data", "inspect", str(path), "--json") == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["broken"][0]["name"] == "episode 1"
    assert told.err == f"presage: {path}: 1 of 2 episodes cannot be used\n"


def test_inspect_reads_gathered_episodes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gathered"
    assert run_command("data", "collect", "--out", str(out), "--episodes", "2", "--steps", "5") == 0
    assert run_command("data", "inspect", str(out), "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["format"], summary["steps"], summary["rate_hz"]) == ("presage episodes", 10, 10.0)


def test_a_model_is_trained_on_a_dataset_and_sees_any_camera_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recordings.write_lerobot_3(tmp_path / "set", arm_episodes((9, 6, 12, 7, 8)))
    (tmp_path / "own.yaml").write_text(TINY.format(path=path))
    assert run_command("train", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "own"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["skipped"] == []
    assert "5 episodes of 5 to 11 steps" in told["episodes"]
    left = {file.name for file in (tmp_path / "own").iterdir()}
    assert left - {"logs"} == {"README.md", "config.json", "weights.safetensors"}
    config = read_package(tmp_path / "own").config
    assert config.action is not None
    assert (config.action.names, config.action.rate_hz) == (("shoulder", "elbow"), 10.0)
    assert len(config.training["probe_r2"]) == 2  # the joints, from the latents
    model = load(str(tmp_path / "own"), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(256, (1, 48, 80, 3), generator=generator, dtype=torch.uint8)
    assert torch.equal(model.encode(wide), model.encode(wide[:, :, 16:64].contiguous()))


def test_a_config_names_a_task_or_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "both.yaml").write_text("task: arm\ndataset: somewhere\n")
    assert run_command("train", str(tmp_path / "both.yaml"), "--out", str(tmp_path / "out")) == 1
    assert "must name a task or a dataset, and not both" in capsys.readouterr().err
    (tmp_path / "none.yaml").write_text("dataset: nowhere\n")
    assert run_command("train", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "out")) == 1
    assert capsys.readouterr().err == "presage: nowhere: no such file or folder\n"
