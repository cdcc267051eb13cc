"""`presage data inspect` and `presage train` on a lab's own recordings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.package import read_package
from model.registry import load
from tests.support.cli.commands import run_command
from tests.support.training import recordings
from tests.support.training.numbered import numbered_frame, rows, write_numbered_lerobot
from tests.support.training.recordings import CAMERA, arm_episodes
from training.checkpoint import save_checkpoint

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
    assert capsys.readouterr().err == f"presage: {tmp_path / 'nowhere'}: no such file or folder\n"


def write_robot_files(
    path: Path, actions: Callable[[int, int], np.ndarray], poses: Callable[[int], np.ndarray]
) -> Path:
    """Six episodes of ALOHA files whose robot measures seven numbers."""
    import h5py

    path.mkdir(parents=True)
    for episode in range(6):
        frames = np.stack([numbered_frame(40 * episode + at) for at in range(40)])
        with h5py.File(path / f"episode_{episode}.hdf5", "w") as file:
            file["action"], file["observations/qpos"] = actions(episode, 40), poses(40)
            file.create_dataset("observations/images/front", data=frames, compression="gzip")
    return path


def drawn(episode: int, length: int) -> np.ndarray:
    return np.random.default_rng(episode).normal(size=(length, 3)).astype(np.float32)


def poses_in(scale: float, opening: float) -> Callable[[int], np.ndarray]:
    def poses(length: int) -> np.ndarray:
        at = np.arange(length) / 15
        table = np.zeros((length, 7), np.float32)
        table[:, 0], table[:, 1], table[:, 2] = scale * (0.4 + 0.05 * np.sin(at)), scale * 0.02 * at, scale * 0.3
        table[:, 6] = opening * (0.5 + 0.5 * np.sin(at))
        return table

    return poses


@pytest.mark.parametrize("kind", ["throughout", "held out", "fitting"])
def test_a_dimension_that_does_not_vary_is_held_and_said_and_ends_no_training(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def actions(episode: int, length: int) -> np.ndarray:
        table = drawn(episode, length)
        if kind == "throughout" or (kind == "held out") == (episode >= 4):
            table[:, 2] = 0.5
        return table

    path = write_robot_files(tmp_path / "set", actions, poses_in(1, 1))
    (tmp_path / "own.yaml").write_text(TINY.format(path=path) + "rate_hz: 15\n")
    assert run_command("train", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "own"), "--no-tensorboard") == 0
    said = capsys.readouterr().err
    action = read_package(tmp_path / "own").config.action
    assert action is not None
    assert action.rest is not None
    held = kind != "held out"
    assert (action.low[2] == action.high[2] == action.rest[2] == 0.5) == held
    assert ("note: action action_2 is 0.5 throughout: plans hold it there" in said) == (kind == "throughout")
    assert action.rest[:2] == (0.0, 0.0)
    assert load(str(tmp_path / "own"), torch.device("cpu")).block == 2
    masked = "family: masked\nrecipe: {steps: 2, batch: 2, frames: 2, width: 32, depth: 1, heads: 2, held_out: 2}\n"
    (tmp_path / "masked.yaml").write_text(f"dataset: {path}\nrate_hz: 15\nimage_size: 32\n{masked}")
    assert run_command("train", str(tmp_path / "masked.yaml"), "--out", str(tmp_path / "masked")) == 0


@pytest.mark.parametrize(
    ("scale", "opening", "said"),
    [
        (1000, 1, "m from the base is past most arms; are these millimet"),
        (1, 0.08, "0 is open and 1 is closed"),
        (1, 1, ""),
    ],
)
def test_poses_in_other_units_are_doubted_in_training_as_in_planning(
    scale: float, opening: float, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_robot_files(
        tmp_path / "set", lambda episode, length: np.full((length, 3), 0.5), poses_in(scale, opening)
    )
    masked = "family: masked\nrecipe: {steps: 1, batch: 2, frames: 2, width: 24, depth: 1, heads: 2, held_out: 2}\n"
    (tmp_path / "masked.yaml").write_text(f"dataset: {path}\nrate_hz: 15\nimage_size: 32\n{masked}")
    assert run_command("train", str(tmp_path / "masked.yaml"), "--out", str(tmp_path / "encoder")) == 0
    recipe = "recipe: {steps: 1, batch: 2, fps: 5, frames: 4, held_out: 2, width: 24, depth: 1, heads: 2}\n"
    (tmp_path / "acting.yaml").write_text(
        f"family: action-conditioned\nencoder: encoder\ndataset: set\nrate_hz: 15\n{recipe}"
    )
    capsys.readouterr()
    assert run_command("train", str(tmp_path / "acting.yaml"), "--out", str(tmp_path / "acting")) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "recorded poses" in line]
    assert [said in note for note in notes] == ([True] if said else [])
    action = read_package(tmp_path / "acting").config.action
    assert action is not None
    assert [low == high == 0 for low, high in zip(action.low, action.high, strict=True)] == [0, 0, 1, 1, 1, 1, 0]


def test_inspect_shows_what_is_to_know_of_a_thinned_and_a_trimmed_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thinned = write_numbered_lerobot(tmp_path / "thinned", "3", [rows(range(40), 30, step=3)], 30, 10)
    assert run_command("data", "inspect", str(thinned), "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rate_hz"], summary["steps"], summary["notes"]) == (10.0, 13, [])
    trimmed = write_numbered_lerobot(tmp_path / "trimmed", "2", [rows(range(40), 10, cut=5)], 10, 10)
    assert run_command("data", "inspect", str(trimmed)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "to know: its rows begin 0.500 s after the first frame of its clip, as their timestamps say" in shown
    assert "nothing is wrong" in shown


def test_a_training_does_not_go_on_with_other_recordings_or_another_image_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_robot_files(tmp_path / "set", drawn, poses_in(1, 1))
    config = tmp_path / "own.yaml"
    config.write_text(TINY.format(path=path) + "rate_hz: 15\n")
    out = tmp_path / "out"
    command = ("train", str(config), "--out", str(out), "--no-tensorboard")

    def save_and_stop(*given: Any) -> None:
        save_checkpoint(*given)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.loop.save_checkpoint", save_and_stop)
        assert run_command(*command) == 130
    capsys.readouterr()
    config.write_text(config.read_text().replace("image_size: 32", "image_size: 64"))
    assert run_command(*command) == 1
    assert "image size was 32 x 32, now 64 x 64" in capsys.readouterr().err
    config.write_text(config.read_text().replace("image_size: 64", "image_size: 32"))
    import h5py

    with h5py.File(path / "episode_0.hdf5", "a") as file:
        file["action"][...] *= 57.29578
    assert run_command(*command, "--resume") == 1
    assert "made with other settings or recordings: recordings was" in capsys.readouterr().err
    with h5py.File(path / "episode_0.hdf5", "a") as file:
        file["action"][...] = drawn(0, 40)
    assert run_command(*command, "--resume") == 0
