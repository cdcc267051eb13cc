"""The middleware's part of ROS 2, for where there is none: what presage_ros.node calls, and messages with their fields.

Nothing is sent anywhere: a node's publishers, callbacks and timers are found on it, and `spun` runs its timers.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.support.paths import ROOT

ROS2 = ROOT / "deploy" / "ros2"


def message(name: str, /, **fields: Callable[[], Any]) -> type:
    """A message type: every field has its default, and there are no others."""

    def start(self: Any, /, **given: Any) -> None:
        for field, default in fields.items():
            setattr(self, field, given.pop(field) if field in given else default())
        if given:
            raise AttributeError(f"{name} has no {', '.join(given)}")

    return type(name, (), {"__slots__": tuple(fields), "__init__": start})


Time = message("Time", sec=int, nanosec=int)
Duration = message("Duration", sec=int, nanosec=int)
Header = message("Header", stamp=Time, frame_id=str)
CompressedImage = message("CompressedImage", header=Header, format=str, data=bytes)
JointState = message("JointState", header=Header, name=list, position=list, velocity=list, effort=list)
JointTrajectory = message("JointTrajectory", header=Header, joint_names=list, points=list)
JointTrajectoryPoint = message(
    "JointTrajectoryPoint",
    positions=list,
    velocities=list,
    accelerations=list,
    effort=list,
    time_from_start=Duration,
)
KeyValue = message("KeyValue", key=str, value=str)
DiagnosticStatus: Any = message(
    "DiagnosticStatus", level=lambda: b"\0", name=str, message=str, hardware_id=str, values=list
)
DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR = b"\0", b"\1", b"\2"
DiagnosticArray = message("DiagnosticArray", header=Header, status=list)

DEFAULTS: dict[str, Callable[[], Any]] = {
    "sensor_msgs/CompressedImage": CompressedImage,
    "bool": bool,
    "string": str,
    "float64": float,
    "uint32": int,
}


def interface(path: Path, *parts: str) -> SimpleNamespace:
    """The message types of a .srv or .action file."""
    made = {}
    for part, text in zip(parts, path.read_text().split("---\n"), strict=True):
        lines = [line.partition("#")[0].split() for line in text.splitlines()]
        fields = {words[1]: DEFAULTS[words[0]] for words in lines if words}
        made[part] = message(f"{path.stem}_{part}", **fields)
    return SimpleNamespace(**made)


class Publisher:
    def __init__(self) -> None:
        self.messages: list[Any] = []

    def publish(self, sent: Any) -> None:
        self.messages.append(sent)


class Node:
    """What a node has asked for, by topic or name."""

    parameters: dict[str, Any] = {}  # noqa: RUF012  # given from outside, as by a launch file

    def __init__(self, name: str) -> None:
        self._name = name
        self.declared: dict[str, Any] = {}
        self.publishers: dict[str, Publisher] = {}
        self.subscriptions: dict[str, Callable[[Any], None]] = {}
        self.services: dict[str, Callable[[Any, Any], Any]] = {}
        self.actions: dict[str, Callable[[Any], Any]] = {}
        self.timers: list[tuple[float, Callable[[], None], object]] = []

    def get_name(self) -> str:
        return self._name

    def get_clock(self) -> Any:
        now_ns = time.time_ns()
        stamp = Time(sec=now_ns // 10**9, nanosec=now_ns % 10**9)
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=now_ns, to_msg=lambda: stamp))

    def declare_parameter(self, name: str, default: Any) -> Any:
        self.declared[name] = default
        return SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, kind: type, topic: str, depth: int) -> Publisher:
        return self.publishers.setdefault(topic, Publisher())

    def create_subscription(
        self, kind: type, topic: str, callback: Callable[[Any], None], qos: object, *, callback_group: object
    ) -> None:
        self.subscriptions[topic] = callback

    def create_timer(self, period_s: float, callback: Callable[[], None], callback_group: object) -> None:
        self.timers.append((period_s, callback, callback_group))

    def create_service(self, kind: type, name: str, callback: Any, *, callback_group: object) -> None:
        self.services[name] = callback

    def destroy_node(self) -> None: ...


class ActionServer:
    def __init__(
        self, node: Node, kind: type, name: str, execute: Any, *, cancel_callback: Any, callback_group: object
    ) -> None:
        node.actions[name] = execute

    def destroy(self) -> None: ...


class GoalHandle:
    """One call of an action, as its server sees it."""

    def __init__(self, **request: Any) -> None:
        self.request = SimpleNamespace(**request)
        self.is_cancel_requested = False
        self.feedback: list[Any] = []
        self.state = ""

    def publish_feedback(self, feedback: Any) -> None:
        self.feedback.append(feedback)

    def succeed(self) -> None:
        self.state = "succeeded"

    def abort(self) -> None:
        self.state = "aborted"

    def canceled(self) -> None:
        assert self.is_cancel_requested, "only what was asked to be cancelled can be"
        self.state = "canceled"


@contextmanager
def spun(node: Any) -> Iterator[None]:
    """Run a node's timers: those of one callback group on one thread, as ROS would."""
    over = threading.Event()
    failures: list[BaseException] = []

    def run(timers: list[tuple[float, Callable[[], None], object]]) -> None:
        due = [time.monotonic() + period_s for period_s, _, _ in timers]
        while not over.wait(max(0.0, min(due) - time.monotonic())):
            for number, (period_s, callback, _) in enumerate(timers):
                if time.monotonic() >= due[number]:
                    due[number] = time.monotonic() + period_s
                    try:
                        callback()
                    except BaseException as failure:
                        failures.append(failure)
                        return

    groups = {id(group) for _, _, group in node.timers}
    threads = [
        threading.Thread(target=run, args=([timer for timer in node.timers if id(timer[2]) == group],))
        for group in groups
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def modules() -> dict[str, ModuleType]:
    """What an import finds instead of ROS."""
    contents: dict[str, dict[str, Any]] = {
        "rclpy": {"ok": lambda: True},
        "rclpy.node": {"Node": Node},
        "rclpy.action": {"ActionServer": ActionServer, "CancelResponse": SimpleNamespace(ACCEPT="accept")},
        "rclpy.callback_groups": {
            "MutuallyExclusiveCallbackGroup": type("MutuallyExclusiveCallbackGroup", (), {}),
            "ReentrantCallbackGroup": type("ReentrantCallbackGroup", (), {}),
        },
        "rclpy.executors": {"ExternalShutdownException": RuntimeError, "MultiThreadedExecutor": object},
        "rclpy.qos": {"qos_profile_sensor_data": object()},
        "rclpy.signals": {"SignalHandlerOptions": object},
        "builtin_interfaces": {},
        "builtin_interfaces.msg": {"Duration": Duration, "Time": Time},
        "diagnostic_msgs": {},
        "diagnostic_msgs.msg": {
            "DiagnosticArray": DiagnosticArray,
            "DiagnosticStatus": DiagnosticStatus,
            "KeyValue": KeyValue,
        },
        "sensor_msgs": {},
        "sensor_msgs.msg": {"CompressedImage": CompressedImage, "JointState": JointState},
        "trajectory_msgs": {},
        "trajectory_msgs.msg": {"JointTrajectory": JointTrajectory, "JointTrajectoryPoint": JointTrajectoryPoint},
        "presage_ros_interfaces": {},
        "presage_ros_interfaces.srv": {
            "SetGoal": interface(ROS2 / "presage_ros_interfaces" / "srv" / "SetGoal.srv", "Request", "Response")
        },
        "presage_ros_interfaces.action": {
            "ReachGoal": interface(
                ROS2 / "presage_ros_interfaces" / "action" / "ReachGoal.action", "Goal", "Result", "Feedback"
            )
        },
    }
    made = {}
    for name, attributes in contents.items():
        made[name] = ModuleType(name)
        made[name].__dict__.update(attributes)
    return made


@contextmanager
def installed() -> Iterator[Any]:
    """presage_ros.node, on this middleware; what was imported for it is forgotten afterwards."""
    before = dict(sys.modules)
    sys.modules.update(modules())
    sys.path.insert(0, str(ROS2 / "presage_ros"))
    try:
        import presage_ros.node

        yield presage_ros.node
    finally:
        sys.path.remove(str(ROS2 / "presage_ros"))
        for name in [name for name in sys.modules if name.partition(".")[0] in {*modules(), "presage_ros"}]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})
