"""The ROS 2 node drives the simulated arm through a real service; the middleware alone is a fake. Whatever goes wrong
with a plan ends in a stop."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import threading
import time
import urllib.request
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import presage
import pytest
import yaml
from PIL import Image

from cli.private_service import private_service
from model.built_in import built_in
from server.service.sessions.session import KEPT_PLANS
from simulation import tasks
from simulation.robots.arm import MAX_JOINT_SPEED
from tests.support.deploy import fake_ros
from tests.support.deploy.fake_ros import ROS2, CompressedImage, GoalHandle, Header, Time
from tests.support.deploy.relay import Relay, relay

START, GOAL = np.array([0.2, 0.9]), np.array([0.9, 0.1])  # joint angles in rad
LONG_S = 100.0  # no wait is longer, on however slow a machine
UNHURRIED = {"stale_after_s": 2.0, "max_image_age_s": 5.0, "budget_ms": 500.0, "samples": 64, "elites": 8}
NEAR = 0.1  # goal distance; about 1.8 at the start, some tenths of a radian from the goal
needs_arm = pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here")


@pytest.fixture(scope="module")
def ros() -> Iterator[Any]:
    with fake_ros.installed() as node_module:
        yield node_module


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with private_service("arm", device="cpu", threads=1) as service:
        yield service.grpc


def png(state: np.ndarray, size: int = 64) -> bytes:
    file = io.BytesIO()
    Image.fromarray(tasks.make("arm").render_state(state)).resize((size, size)).save(file, "PNG")
    return file.getvalue()


def compressed(data: bytes, stamp_ns: int) -> Any:
    stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return CompressedImage(header=Header(stamp=stamp, frame_id="camera"), format="png", data=data)


def stamp_ns(header: Any) -> int:
    return int(header.stamp.sec * 10**9 + header.stamp.nanosec)


def is_stop(trajectory: Any) -> bool:
    return len(trajectory.points) == 1


class Robot:
    """The arm with a camera at 10 Hz, which follows the newest trajectory by its stamp."""

    def __init__(self, node: Any) -> None:
        self.arm = tasks.make("arm")
        self.arm.set_state(START)
        self.node = node
        self.stamps: list[int] = []
        self.blind = False
        self.stamp_offset_ns = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live)

    @property
    def heard(self) -> list[Any]:
        return list(self.node.publishers["plan"].messages)

    def _live(self) -> None:
        while not self._over.wait(0.1):
            now_ns = time.time_ns() + self.stamp_offset_ns
            if not self.blind:
                self.stamps.append(now_ns)
                file = io.BytesIO()
                Image.fromarray(self.arm.render()).save(file, "PNG")
                self.node.subscriptions["image/compressed"](compressed(file.getvalue(), now_ns))
            if heard := self.heard:
                newest = heard[-1]
                index = 0 if is_stop(newest) else int((time.time_ns() - stamp_ns(newest.header)) / 1e8)
                if index < len(newest.points):
                    self.arm.act(np.array(newest.points[index].velocities))

    def __enter__(self) -> Robot:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def driven(ros: Any, address: str, **parameters: Any) -> Iterator[tuple[Any, Robot]]:
    """The node, spinning, and its robot."""
    fake_ros.Node.parameters = {"address": address, **UNHURRIED, **parameters}
    node = ros.PresageNode()
    try:
        with fake_ros.spun(node), Robot(node) as robot:
            yield node, robot
    finally:
        node.close()
    assert not robot.heard or is_stop(robot.heard[-1])  # its last word


def set_goal(node: Any, data: bytes) -> Any:
    request = SimpleNamespace(image=SimpleNamespace(data=data))
    response = SimpleNamespace(success=False, message="", goal_id="")
    return node.services["set_goal"](request, response)


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def planning(robot: Robot) -> Callable[[], bool]:
    """Whether a plan has come since now."""
    before = len(robot.heard)
    return lambda: any(not is_stop(each) for each in robot.heard[before:])


def stopping(robot: Robot) -> Callable[[], bool]:
    """Whether three stops in a row are the newest since now."""
    before = len(robot.heard)
    return lambda: len(robot.heard) >= before + 3 and all(map(is_stop, robot.heard[-3:]))


def plans_made(address: str) -> float:
    """How many plans the service at that address has made."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=5.0) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("presage_plans_total{"))


@needs_arm
def test_a_goal_set_by_service_is_approached_and_stamps_are_honored(ros: Any, address: str) -> None:
    with driven(ros, address) as (node, robot):
        eventually(stopping(robot))  # no goal yet
        assert set_goal(node, png(GOAL)).success
        eventually(lambda: node.bridge.report().goal_distance <= NEAR)
        assert set_goal(node, b"").success  # clears it
        eventually(stopping(robot))
        plans = [each for each in robot.heard if not is_stop(each)]
        stamps = set(robot.stamps)
    assert all(stamp_ns(plan.header) in stamps and plan.header.frame_id == "camera" for plan in plans)
    assert [stamp_ns(plan.header) for plan in plans] == sorted(stamp_ns(plan.header) for plan in plans)
    for plan in plans:
        assert plan.joint_names == ["shoulder_velocity", "elbow_velocity"]
        assert np.abs([point.velocities for point in plan.points]).max() <= MAX_JOINT_SPEED
        offsets = [point.time_from_start.sec + point.time_from_start.nanosec / 1e9 for point in plan.points]
        np.testing.assert_allclose(offsets, np.arange(len(offsets)) / 10.0, atol=1e-9)
    for stop in filter(is_stop, robot.heard[-3:]):
        assert stop.points[0].velocities == [0.0, 0.0]


@needs_arm
def test_a_camera_that_stops_stops_the_robot(ros: Any, address: str) -> None:
    with driven(ros, address) as (node, robot):
        assert set_goal(node, png(GOAL)).success
        eventually(planning(robot))
        robot.blind = True
        eventually(stopping(robot))
        assert node.bridge.report().stopped
        robot.blind = False
        eventually(planning(robot))


@needs_arm
def test_images_that_are_old_by_their_stamp_are_passed_over(ros: Any, address: str) -> None:
    with driven(ros, address) as (node, robot):
        assert set_goal(node, png(GOAL)).success
        eventually(planning(robot))
        robot.stamp_offset_ns = -10 * 10**9
        eventually(stopping(robot))
        report = node.bridge.report()
        assert report.old_images > 0
        assert "old by its stamp" in report.trouble


@needs_arm
def test_a_network_that_stalls_or_breaks_stops_the_robot_until_it_is_back(ros: Any, address: str) -> None:
    with relay(address) as network, driven(ros, network.address) as (node, robot):
        assert set_goal(node, png(GOAL)).success
        eventually(planning(robot))
        network.stall()
        eventually(stopping(robot))
        network.flow()
        eventually(planning(robot))
        network.cut()
        eventually(planning(robot))


@needs_arm
def test_a_service_that_was_restarted_is_told_the_goal_again(ros: Any, address: str) -> None:
    with relay(address) as network, driven(ros, network.address) as (node, robot):
        assert set_goal(node, png(GOAL)).success
        eventually(planning(robot))
        with private_service("arm", device="cpu", threads=1) as another:
            network.lead_to(another.grpc)
            network.cut()
            eventually(lambda: plans_made(another.rest) > 0)  # in a session that was made again there
            eventually(planning(robot))
            set_goal(node, b"")


@needs_arm
def test_late_plans_are_never_published(ros: Any, address: str) -> None:
    with driven(ros, address, stale_after_s=0.01) as (node, robot):
        assert set_goal(node, png(GOAL)).success
        eventually(lambda: node.bridge.report().refused > 0)
        assert "a plan is late" in node.bridge.report().trouble
        assert all(map(is_stop, robot.heard))


@needs_arm
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda plan: replace(plan, actions=plan.actions + 9.0), "outside the model's bounds"),
        (lambda plan: replace(plan, actions=plan.actions * np.nan), "not finite"),
        (lambda plan: replace(plan, actions=plan.actions[:, :1]), "actions of shape"),
        (lambda plan: replace(plan, actions=plan.actions[:0]), "actions of shape"),
        (lambda plan: replace(plan, capture_time_ns=1), "another image's stamp"),
    ],
)
def test_a_wrong_plan_is_refused_and_the_robot_stopped(ros: Any, address: str, fault: Any, told: str) -> None:
    with driven(ros, address) as (node, robot):
        assert set_goal(node, png(GOAL)).success
        eventually(planning(robot))
        loop = node.bridge._episode.loop
        latest, spoilt = loop.latest, (None, None)

        def wrong() -> Any:
            nonlocal spoilt  # by the plan itself: a later one may get the id of one that is gone
            if (newest := latest()) is not spoilt[0]:
                spoilt = newest, replace(newest, plan=fault(newest.plan))
            return spoilt[1]

        loop.latest = wrong
        eventually(stopping(robot))
        eventually(lambda: told in node.bridge.report().trouble)
        # however many plans are refused, and though the service no longer knows the one that was followed
        eventually(lambda: node.bridge.report().refused > 2 * KEPT_PLANS)
        eventually(lambda: told in node.bridge.report().trouble)
        loop.latest = latest
        eventually(planning(robot))
        eventually(lambda: not node.bridge.report().trouble)


@needs_arm
def test_images_that_the_service_refuses_stop_the_robot(ros: Any, address: str) -> None:
    with driven(ros, address) as (node, robot):
        assert set_goal(node, png(GOAL)).success
        robot.blind = True
        node.subscriptions["image/compressed"](compressed(png(START, size=32), time.time_ns()))
        eventually(lambda: node.bridge.report().failed > 0)
        assert "IMAGE_SIZE" in node.bridge.report().trouble
        eventually(stopping(robot))
        refused = set_goal(node, png(GOAL, size=32))
        assert not refused.success
        assert "IMAGE_SIZE" in refused.message
        assert node.bridge.report().goal_id == ""


def asked(data: bytes, tolerance: float, timeout_s: float) -> GoalHandle:
    return GoalHandle(image=SimpleNamespace(data=data), tolerance=tolerance, timeout_s=timeout_s)


@needs_arm
def test_the_action_ends_at_the_goal_with_feedback_on_the_way(ros: Any, address: str) -> None:
    with driven(ros, address) as (node, robot):
        handle = asked(png(GOAL), tolerance=NEAR, timeout_s=LONG_S)
        result = node.actions["reach_goal"](handle)
        assert (result.reached, result.outcome, handle.state) == (True, "reached", "succeeded")
        eventually(stopping(robot))
        distances = [each.goal_distance for each in handle.feedback if not math.isnan(each.goal_distance)]
        assert result.goal_distance <= NEAR < distances[0]
        assert result.plans >= 1
        assert np.abs(robot.arm.state - GOAL).max() < np.abs(START - GOAL).max()


@needs_arm
def test_the_action_ends_for_every_other_reason_in_a_stop(ros: Any, address: str) -> None:
    with driven(ros, address) as (node, robot):
        late = asked(png(GOAL), tolerance=1e-9, timeout_s=1.0)
        assert node.actions["reach_goal"](late).outcome == "timeout"
        assert late.state == "aborted"
        eventually(stopping(robot))

        cancelled = asked(png(GOAL), tolerance=1e-9, timeout_s=LONG_S)
        cancelled.is_cancel_requested = True
        assert node.actions["reach_goal"](cancelled).outcome == "cancelled"
        assert cancelled.state == "canceled"
        eventually(stopping(robot))

        replaced = asked(png(GOAL), tolerance=1e-9, timeout_s=LONG_S)
        timer = threading.Timer(1.0, lambda: set_goal(node, png(START)))
        timer.start()
        assert node.actions["reach_goal"](replaced).outcome == "replaced"
        timer.join()
        assert node.bridge.report().goal_id != ""  # the other goal goes on

        refused = node.actions["reach_goal"](asked(png(GOAL, size=32), tolerance=0.1, timeout_s=1.0))
        assert (refused.outcome, refused.reached) == ("refused", False)
        assert "IMAGE_SIZE" in refused.message
        eventually(stopping(robot))


@needs_arm
def test_diagnostics_tell_fresh_from_stopped(ros: Any, address: str) -> None:
    with driven(ros, address) as (node, robot):
        told = node.publishers["/diagnostics"].messages
        eventually(lambda: bool(told))
        assert (told[-1].status[0].level, told[-1].status[0].message) == (b"\1", "no goal")
        assert set_goal(node, png(GOAL)).success
        eventually(lambda: told[-1].status[0].level == b"\0")
        robot.blind = True
        eventually(lambda: told[-1].status[0].level == b"\2")
        values = {each.key: each.value for each in told[-1].status[0].values}
    assert values["stopped"] == "True"
    assert int(values["plans"]) >= 1
    assert values["goal"]


def test_a_service_that_is_not_there_is_told_and_asked_again(ros: Any) -> None:
    dead = Relay("127.0.0.1:1")
    with driven(ros, dead.address, call_timeout_s=0.5) as (node, robot):
        refused = set_goal(node, png(GOAL))
        assert not refused.success
        assert not robot.heard
        assert node.bridge.report().trouble
    dead.close()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"command": "torque"}, "command must be one of"),
        ({"command": "positions"}, "stop must be given"),
        ({"budget_ms": 0.0}, "budget_ms must be above 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(ros: Any, parameters: dict[str, Any], told: str) -> None:
    fake_ros.Node.parameters = parameters
    with pytest.raises(ValueError, match=told):
        ros.PresageNode()


def test_every_setting_of_a_search_is_a_parameter(ros: Any) -> None:
    fake_ros.Node.parameters = {
        "samples": 64, "iterations": 3, "elites": 8, "horizon": 2, "optimizer": "icem", "dimensions": "x, gripper",
        "discount": 1.5, "cost": "least", "metric": "l1", "narrowing": 0.9, "sample_decay": 0.8,
    }  # fmt: skip
    node = ros.PresageNode()
    node.close()
    planner = node.bridge.settings.planner
    assert planner == presage.PlannerSettings(64, 3, 8, 2, "icem", ("x", "gripper"), 1.5, "least", "l1", 0.9, 0.8)
    unset = {name for name, value in vars(planner).items() if value in (None, ())}
    assert unset == set(), "a setting is not tried here"


def test_every_limit_on_actions_is_a_parameter(ros: Any) -> None:
    fake_ros.Node.parameters = {
        "limit_low": "-0.2 -0.1", "limit_high": "0.2, 0.1", "limit_slew": "0.05, 0.5", "limit_max_norm": 0.2,
        "limit_norm_order": 1, "limit_norm_of": "x", "limit_frozen": "gripper", "limit_dwell": "1, 5",
    }  # fmt: skip
    node = ros.PresageNode()
    node.close()
    limits = presage.ActionLimits((-0.2, -0.1), (0.2, 0.1), (0.05, 0.5), 0.2, 1, ("x",), ("gripper",), (1, 5))
    assert node.bridge.settings.limits == limits
    assert all(vars(limits).values()), "a limit is not tried here"


@needs_arm
def test_every_plan_that_is_published_keeps_to_the_nodes_limits(ros: Any, address: str) -> None:
    with driven(ros, address, limit_slew="0.25, 0.25", limit_frozen="elbow_velocity") as (node, robot):
        assert set_goal(node, png(GOAL)).success
        eventually(planning(robot))
        plans = [np.array([point.velocities for point in each.points]) for each in robot.heard if not is_stop(each)]
        assert plans
        for actions in plans:
            assert not actions[:, 1].any()
            assert (np.abs(np.diff(actions, axis=0)) <= 0.25).all()


def test_the_file_of_parameters_has_every_one_with_its_default(ros: Any) -> None:
    fake_ros.Node.parameters = {}
    node = ros.PresageNode()
    node.close()
    file = yaml.safe_load((ROS2 / "presage_ros" / "config" / "presage.yaml").read_text())
    assert file["/**"]["ros__parameters"] == node.declared


def test_the_packages_name_what_they_use() -> None:
    depends = {each.text for each in xml.parse(ROS2 / "presage_ros" / "package.xml").iter("exec_depend")}
    source = "".join(path.read_text() for path in (ROS2 / "presage_ros" / "presage_ros").glob("*.py"))
    used = {line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith("from ")}
    packages = {name for name in used if name in {name.partition(".")[0] for name in fake_ros.modules()}}
    assert packages <= depends
    text = (ROS2 / "presage_ros_interfaces" / "CMakeLists.txt").read_text()
    for path in [*ROS2.glob("*/srv/*.srv"), *ROS2.glob("*/action/*.action")]:
        assert f'"{path.parent.name}/{path.name}"' in text


@pytest.mark.skipif(shutil.which("colcon") is None, reason="colcon is not installed")
def test_the_packages_build_where_ros_is(tmp_path: Path) -> None:
    """Both with ROS 2; without, the Python one, which colcon builds by itself where the other is not beside it."""
    shutil.copytree(ROS2 if shutil.which("ros2") else ROS2 / "presage_ros", tmp_path / "src" / "presage")
    done = subprocess.run(["colcon", "build"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = {path.name for path in (tmp_path / "install" / "presage_ros").rglob("*")}
    assert {"bridge", "node.py", "presage.yaml", "presage.launch.py", "package.xml"} <= installed
