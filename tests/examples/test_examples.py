"""The examples are true: each runs as its readers would run it, against a real service, and prints what it promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.private_service import private_service
from cli.train.compact import CompactTraining
from cli.train.config import read_config
from model.built_in import built_in
from model.package import read_package
from simulation import tasks
from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
SCRIPTS = tuple(sorted(path.name for path in EXAMPLES.glob("*.py")))
UNHURRIED = ("--budget-ms", "8000")  # a search ends by its iterations, also on a slow machine
needs_arm = pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here")


def run(*command: str | Path) -> str:
    """What a Python command prints, on one thread; fails with whatever it complained of, warnings included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """The one group of every match."""
    return [float(found) for found in re.findall(pattern, text)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with private_service("arm", device="cpu", threads=1) as service:
        yield service.grpc


def test_every_example_is_run_here() -> None:
    known = {"control_loop.py", "custom_cost.py", "embed_clip.py", "many_robots.py", "plan_once.py"}
    assert set(SCRIPTS) == known
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == {"tiny.yaml", "training_template.yaml"}


@pytest.mark.parametrize("name", [*SCRIPTS, "tiny.yaml", "training_template.yaml"])
def test_an_example_is_read_in_one_go(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) < 65
    assert f"examples/{name}" in text.split("import")[0]  # how to run it, before anything else


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_explains_its_arguments_without_a_service(name: str) -> None:
    told = run(EXAMPLES / name, "--help")
    assert ("--address" in told) == (name != "custom_cost.py")


@needs_arm
def test_one_plan_is_predicted_to_end_nearer_to_the_goal(address: str) -> None:
    told = run(EXAMPLES / "plan_once.py", "--address", address, *UNHURRIED)
    assert len(re.findall(r"^ +\d+\.\d  [+-]\d\.\d{3}  [+-]\d\.\d{3}$", told, re.MULTILINE)) == 25
    now, end = numbers(r"(\d+\.\d{4})", told)
    assert end < now


@needs_arm
def test_a_plan_is_made_from_image_files(address: str, tmp_path: Path) -> None:
    arm = tasks.make("arm")
    for name, state in (("now", [0.0, 0.5]), ("then", [0.6, 0.2])):
        Image.fromarray(arm.render_state(np.array(state))).save(tmp_path / f"{name}.png")
    files = ("--image", tmp_path / "now.png", "--goal", tmp_path / "then.png")
    told = run(EXAMPLES / "plan_once.py", "--address", address, *files, *UNHURRIED)
    now, end = numbers(r"(\d+\.\d{4})", told)
    assert end < now


@needs_arm
def test_the_control_loop_reaches_its_goal_and_stays_there(address: str) -> None:
    told = run(EXAMPLES / "control_loop.py", "--address", address, "--goals", "3")
    assert "3 of 3 goals reached, 3 kept for the last 20 ticks" in told
    report = dict(re.findall(r"(\w+)=(\d+)", told))
    assert int(report["plans"]) >= 1
    assert (
        1 <= int(report["held"]) < int(report["ticks"])
    )  # the first tick has no plan yet, and only plans move the arm


@needs_arm
def test_the_control_loop_outlasts_a_service_that_is_killed_and_started_again(tmp_path: Path) -> None:
    with served(tmp_path / "first.log") as (address, metrics, process):
        command = [sys.executable, EXAMPLES / "control_loop.py", "--address", address, "--ticks", "900"]
        loop = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 120
        while plans_made(metrics) < 5:  # then it is on its way
            assert loop.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        process.kill()
        process.wait()
    with served(tmp_path / "second.log", port=address.rpartition(":")[2]):
        told, complaints = loop.communicate(timeout=150)
    assert loop.returncode == 0, complaints
    assert "1 of 1 goals reached, 1 kept for the last 20 ticks" in told
    report = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", told)}
    assert report["restored"] == 1
    assert report["lost"] > 5  # the model's `execute`
    assert report["held"] >= report["lost"] - 5


def plans_made(metrics: str) -> float:
    """How many plans a service has made, as its metrics say."""
    with urllib.request.urlopen(metrics, timeout=10.0) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("presage_plans_total{"))


@contextmanager
def served(log: Path, port: str = "0") -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """The service with the arm on a port, once it is ready: its addresses, and its process, which a test may kill."""
    flags = ["--json", "--model", "arm", "--device", "cpu", "--threads", "1", "--grpc-port", port, "--http-port", "0"]
    with log.open("w") as errors:
        command = [sys.executable, "-m", "cli", "serve", *flags]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready, log.read_text()
        addresses = json.loads(ready)
        yield addresses["grpc"], f"{addresses['rest']}/metrics", process
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


@needs_arm
def test_a_clip_of_the_way_to_a_goal_ends_nearest_to_it(address: str) -> None:
    told = run(EXAMPLES / "embed_clip.py", "--address", address)
    assert "embedding: float32 [10, 128] from 10 frames" in told
    distances = numbers(r"goal distance (\S+)", told)
    assert len(distances) == 10
    assert distances[-1] == min(distances)
    assert distances[-1] < distances[0] / 4


@needs_arm
def test_a_cost_of_ones_own_changes_the_plan_and_not_the_destination() -> None:
    told = run(EXAMPLES / "custom_cost.py", "--samples", "100", "--iterations", "5")
    plain, sparing = numbers(r"shoulder (\d\S+) rad/s", told)
    assert sparing < plain
    distances = re.findall(r"goal distance (\S+) -> (\S+)", told)
    assert len(distances) == 2
    assert all(float(after) < float(before) / 2 for before, after in distances)


@needs_arm
def test_every_one_of_many_robots_reaches_a_goal_of_its_own(address: str) -> None:
    told = run(EXAMPLES / "many_robots.py", "--address", address, "--robots", "3", *UNHURRIED)
    errors = dict(re.findall(r"robot (\d): (\S+) rad", told))
    assert set(errors) == {"0", "1", "2"}
    assert max(map(float, errors.values())) <= 0.1
    assert told.endswith("3 of 3 robots reached their goals\n")


def test_the_arm_from_nothing_is_read_as_it_stands() -> None:
    chosen = read_config(str(EXAMPLES / "tiny.yaml"))
    assert (chosen.task, chosen.name, chosen.dataset) == ("arm", "tiny", "")
    assert chosen.recipe.latent == CompactTraining(task="arm", name="arm").recipe.latent


def test_the_template_of_a_training_makes_a_package(tmp_path: Path) -> None:
    config = EXAMPLES / "training_template.yaml"
    chosen = read_config(str(config))
    out = tmp_path / "template"
    told = json.loads(run("-m", "cli", "train", config, "--out", out, "--steps", "2", "--threads", "1", "--json"))
    assert told["steps"] == 2
    package = read_package(out)
    assert package.config.name == chosen.name == "template"
    assert package.config.image.height == chosen.image_size
    assert package.config.planner == chosen.recipe.planner


def test_the_template_of_a_training_says_what_the_real_numbers_are() -> None:
    """Every number beside a setting is the default of that setting."""

    defaults = asdict(CompactTraining(task="arm", name="arm"))
    recipe = defaults.pop("recipe")
    told = re.findall(r"^ *(\w+): +\S+ +# (\d+)\b", (EXAMPLES / "training_template.yaml").read_text(), re.MULTILINE)
    assert len(told) >= 10
    assert {name: int(number) for name, number in told if (defaults | recipe)[name] != int(number)} == {}
