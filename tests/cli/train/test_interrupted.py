"""A training that is killed, or whose disk is full, and goes on: real processes, the same weights at the end."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

CONFIG = """\
task: arm
episodes: 8
episode_steps: 12
image_size: 32
recipe: {steps: 60, batch: 4, horizon: 2, directions: 16, latent: 16, encoder_width: 32, encoder_depth: 1,
  predictor_width: 36, predictor_depth: 1, held_out: 2, checkpoint_every: 5}
"""


def start(folder: Path, out: str, *more: str, largest_file: int | None = None) -> subprocess.Popen[str]:
    """`presage train` in a process of its own, which cannot write files larger than `largest_file` bytes."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [sys.executable, "-m", "cli", "train", str(folder / "tiny.yaml"), "--out", str(folder / out)]
    options = ["--threads", "1", "--device", "cpu", "--no-tensorboard", "--json", *more]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True, preexec_fn=limit)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    value: dict[str, object] = json.loads(out)
    return value


def test_a_training_killed_and_then_without_space_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    straight = finish(start(tmp_path, "straight"))

    killed = start(tmp_path, "killed")
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    while not checkpoint.exists() and killed.poll() is None:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    reached = torch.load(checkpoint, weights_only=True)["step"]
    assert 5 <= reached < 60

    full = start(tmp_path, "killed", largest_file=4096)
    _, told = full.communicate(timeout=240)
    assert full.returncode == 1
    assert "cannot be written and the one before is kept" in told
    assert torch.load(checkpoint, weights_only=True)["step"] == reached
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["checkpoint.pt"]  # nothing half-written

    resumed = finish(start(tmp_path, "killed", "--resume"))
    for name in ("weights_digest", "prediction_loss", "probe_r2", "steps"):
        assert resumed[name] == straight[name], name


def test_resuming_what_was_never_begun_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    process = start(tmp_path, "nothing", "--resume")
    _, told = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "nothing to resume" in told


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG.replace("steps: 60", "steps: 6000"))
    process = start(tmp_path, "stopped")
    checkpoint = tmp_path / "stopped" / "checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told.splitlines()[-1] == f"presage: interrupted: {checkpoint} is kept; the same command goes on from it"
    assert torch.load(checkpoint, weights_only=True)["step"] >= 5
