"""Two processes that train as one: the first makes the files that both read. Real processes over Gloo."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from model.package import read_package
from simulation.episodes import collect, save_episodes
from tests.support.training.recordings import arm_episodes, write_clips

RECIPE = """\
recipe: {steps: 3, batch: 4, horizon: 2, directions: 16, latent: 16, encoder_width: 32, encoder_depth: 1,
  predictor_width: 36, predictor_depth: 1, held_out: 2, checkpoint_every: 2}
"""
GATHERED = "task: arm\nepisodes: 6\nepisode_steps: 12\nimage_size: 32\n"
RECORDED = "image_size: 32\ndataset: "


def together(config: Path, out: Path) -> list[subprocess.CompletedProcess[str]]:
    """`presage train` as `torchrun` starts it twice; the second process can write no file of over 64 bytes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "cli", "train", str(config), "--out", str(out), "--threads", "1", "--json"]
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            [*command, "--device", "cpu", "--no-tensorboard"],
            env={**shared, "RANK": str(rank)},
            stdout=pipe,
            stderr=pipe,
            text=True,
            preexec_fn=None if rank == 0 else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
        )
        for rank in range(2)
    ]
    ends = []
    for process in running:
        told, failed = process.communicate(timeout=240)
        ends.append(subprocess.CompletedProcess(command, process.returncode, told, failed))
    return ends


@pytest.mark.parametrize("kind", ["gathered", "recorded"])
def test_only_the_first_of_two_processes_writes_and_both_train_on_what_it_wrote(tmp_path: Path, kind: str) -> None:
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    if kind == "gathered":
        config.write_text(GATHERED + RECIPE)
        # what another training left there is not taken for this one's
        save_episodes(collect("arm", 6, 12, seed=9, image_size=32), out / "episodes")
    else:
        write_clips(tmp_path / "lab", arm_episodes((13, 13, 9, 13)))
        config.write_text(f"{RECORDED}{tmp_path / 'lab'}\n{RECIPE}")
    first, second = together(config, out)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (second.stdout, second.stderr) == ("", "")
    told = json.loads(first.stdout)
    assert told["steps"] == 3
    assert told["episodes"] == ("arm: 6 episodes of 12 steps, seed 1" if kind == "gathered" else told["episodes"])
    assert read_package(out).weights_digest == told["weights_digest"]
    left = {path.name for path in out.iterdir()}
    assert not left & {"episodes", "frames.raw", "frames.json"}  # given back when the training ended
    assert not [name for name in left if name.endswith(".partial")]


def test_when_the_first_process_cannot_make_ready_the_second_says_so_and_ends(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    (tmp_path / "lab").mkdir()
    config.write_text(f"{RECORDED}{tmp_path / 'lab'}\n{RECIPE}")
    first, second = together(config, tmp_path / "out")
    assert (first.returncode, second.returncode) == (1, 1)
    assert str(tmp_path / "lab") in first.stderr
    assert second.stderr == "presage: the first process could not make ready what all train on; see what it says\n"
