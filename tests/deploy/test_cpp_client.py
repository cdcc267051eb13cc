"""The C++ robot is built from the proto files and drives the simulated arm through a real service, safely."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.private_service import private_service
from model.built_in import built_in
from simulation import tasks
from simulation.robots.arm import MAX_JOINT_SPEED
from tests.support.deploy.relay import relay
from tests.support.paths import ROOT

SOURCE = ROOT / "examples" / "cpp"
TOOLS = ("cmake", "c++", "protoc", "grpc_cpp_plugin", "pkg-config")
START, GOAL = np.array([0.2, 0.9]), np.array([0.9, 0.1])  # joint angles in rad


def _missing() -> str:
    """Why the robot cannot be built here; empty if it can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    found = subprocess.run(["pkg-config", "--exists", "grpc++", "protobuf"], check=False)
    return "" if found.returncode == 0 else "gRPC's headers for C++ are not installed"


pytestmark = [
    pytest.mark.timeout(900),  # building takes half a minute of one core, and cores may be busy
    pytest.mark.skipif(bool(_missing()), reason=_missing() or "never"),
    pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here"),
]


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built as its README says, but quickly: without optimization, and its files in one compilation."""
    build = tmp_path_factory.mktemp("cpp")
    for command in (
        ["cmake", "-S", SOURCE, "-B", build, "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_UNITY_BUILD=ON"],
        ["cmake", "--build", build, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "presage_robot"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with private_service("arm", device="cpu", threads=1) as service:
        yield service.grpc


class World:
    """The simulated arm as the program's camera and motors."""

    def __init__(self, folder: Path) -> None:
        self.arm = tasks.make("arm")
        self.arm.set_state(START)
        self.camera, self.goal = folder / "camera.png", folder / "goal.png"
        self._next = folder / "next.png"
        Image.fromarray(self.arm.render_state(GOAL)).save(self.goal)
        self._look()
        self.actions: list[list[float]] = []

    def obey(self, line: str) -> bool:
        """Do what the program printed; whether it was an action."""
        words = line.split()
        if words == ["stop"]:
            return False
        assert words[0] == "act"
        self.actions.append([float(word) for word in words[1:]])
        self.arm.act(np.array(self.actions[-1]))
        self._look()
        return True

    def _look(self) -> None:
        Image.fromarray(self.arm.render()).save(self._next)
        os.replace(self._next, self.camera)  # the program never reads half an image


def start(robot: Path, world: World, address: str, *options: str) -> subprocess.Popen[str]:
    command = [robot, "--address", address, "--camera", world.camera, "--goal", world.goal, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """Ask it to stop; the words it had not yet said, and its complaints."""
    process.send_signal(signal.SIGTERM)
    rest, complaints = process.communicate(timeout=30)
    return rest.splitlines(), complaints


def test_the_robot_reaches_its_goal_and_stops(robot: Path, address: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    process = start(robot, world, address, "--seconds", "30", "--stale-ms", "1500")
    assert process.stdout is not None
    for line in process.stdout:
        world.obey(line)
        if world.arm.is_success(GOAL):
            break
    words, complaints = end(process)
    assert process.returncode == 0, complaints
    assert world.arm.is_success(GOAL), complaints
    assert words[-1] == "stop"
    assert np.abs(np.array(world.actions)).max() <= MAX_JOINT_SPEED
    assert re.search(r"one plan: 25 actions within bounds, stopped by STOP_REASON_\w+ after \d+ iter", complaints)


def test_plans_gone_stale_stop_the_robot_until_new_ones_come(robot: Path, address: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    with relay(address) as network:
        process = start(robot, world, network.address, "--seconds", "60", "--stale-ms", "400")
        assert process.stdout is not None
        told = iter(process.stdout)
        assert any(world.obey(line) for line in told)
        network.stall()
        since = time.monotonic()
        while world.obey(next(told)):
            assert time.monotonic() < since + 30
        assert not any(world.obey(next(told)) for _ in range(5))  # and it stays so
        network.flow()
        assert any(world.obey(line) for line in told)
        words, complaints = end(process)
    assert process.returncode == 0, complaints
    assert words[-1] == "stop"


def test_a_lost_connection_is_dialled_again(robot: Path, address: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    with relay(address) as network:
        process = start(robot, world, network.address, "--seconds", "60", "--stale-ms", "400")
        assert process.stdout is not None
        told = iter(process.stdout)
        assert any(world.obey(line) for line in told)
        network.cut()
        while world.obey(next(told)):
            pass
        assert any(world.obey(line) for line in told)
        _, complaints = end(process)
    assert process.returncode == 0, complaints
    assert "stream over: gRPC code 14" in complaints
    assert ", 2 streams" in complaints


def test_a_refusal_is_told_with_reason_field_and_rule(robot: Path, address: str, tmp_path: Path) -> None:
    world = World(tmp_path)
    Image.new("RGB", (32, 32)).save(world.goal)
    words, complaints = start(robot, world, address).communicate(timeout=60)
    assert words == ""
    assert "Goals.Create failed: IMAGE_SIZE: " in complaints
    assert re.search(r"^  field: image\n  rule: .*64.*\n  value: .*32", complaints, re.MULTILINE)


def test_a_proxy_of_the_environment_is_for_other_machines_and_is_named(
    robot: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    Image.new("RGB", (32, 32)).save(world.goal)
    for name in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    _, complaints = start(robot, world, address).communicate(timeout=60)
    assert "Goals.Create failed: IMAGE_SIZE: " in complaints  # the service itself answered
    _, complaints = start(robot, world, "192.0.2.1:50051").communicate(timeout=60)
    assert "through the proxy http://127.0.0.1:9 (http_proxy) failed" in complaints
    assert "secret" not in complaints


def test_what_cannot_be_meant_is_told_before_anything_is_sent(robot: Path) -> None:
    for options in (["--camera", "a.png"], ["--seconds", "0"], ["--stale-ms", "soon"], ["--speed", "1"]):
        done = subprocess.run([robot, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert options[0] in done.stderr or "--goal" in done.stderr
        assert "usage:" in done.stderr
