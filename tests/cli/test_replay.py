"""`presage replay` on files that a recorder wrote: the exit code says whether plans are the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import registry
from server.recording.recorder import Recorder, RecorderSettings, files
from server.recording.records import PlanRecord
from tests.support.cli.commands import run_command
from tests.support.cli.packages import write_untrained_arm
from tests.support.server import recording

PLANS = 3


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_arm(tmp_path_factory.mktemp("packages") / "tiny")


@pytest.fixture(scope="module")
def plans(package: Path) -> list[PlanRecord]:
    model = registry.load(str(package), torch.device("cpu"))
    name, side = model.package.config.name, model.package.config.image.height
    return recording.records({name: model}, PLANS, side=side, latent=model.package.config.latent_shape[0])


def kept(folder: Path, plans: list[PlanRecord], *models: str) -> str:
    recorder = Recorder(RecorderSettings(folder, models=models))
    for plan in plans:
        recorder.put(plan)
    recorder.close(30.0)
    (path,) = files(folder)
    return str(path)


def test_plans_that_are_the_same_again_are_a_success(
    tmp_path: Path, package: Path, plans: list[PlanRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    left_over = recording.record(None, None, sequence=9)
    path = kept(tmp_path, [*plans, left_over], str(package))
    assert run_command("replay", path, "--device", "cpu", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["plans"], told["same"], told["not_searched"], told["different"], told["failed"]) == (4, 3, 1, 0, 0)
    assert told["largest_difference"] <= told["tolerance"] == 1e-3
    assert run_command("replay", path, "--device", "cpu") == 0
    assert "3 same" in capsys.readouterr().out


def test_a_plan_that_is_another_now_is_a_failure(
    tmp_path: Path, package: Path, plans: list[PlanRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    first = plans[0]
    assert first.job is not None
    assert first.job.warm_start is not None
    changed = replace(first, job=replace(first.job, warm_start=first.job.warm_start + 0.5))
    path = kept(tmp_path, [changed, *plans[1:]])
    assert run_command("replay", path, "--model", str(package), "--device", "cpu", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["same"], told["different"]) == (2, 1)
    assert told["differences"][0]["sequence"] == 1
    assert told["largest_difference"] > told["tolerance"]
    loose = ("--tolerance", "1", "--model", str(package), "--device", "cpu")
    assert run_command("replay", path, *loose) == 0


def test_what_cannot_be_replayed_is_told_in_one_line(
    tmp_path: Path, plans: list[PlanRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing.mcap"
    nothing.write_bytes(b"no recording at all")
    nameless = kept(tmp_path / "kept", plans)
    for arguments, said in (
        ((str(nothing),), "holds no plans"),
        ((str(tmp_path / "absent.mcap"),), "no such file"),
        ((nameless,), "name them with --model"),
        ((nameless, "--model", "nobody"), "no model package 'nobody'"),
    ):
        assert run_command("replay", *arguments, "--device", "cpu") == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
