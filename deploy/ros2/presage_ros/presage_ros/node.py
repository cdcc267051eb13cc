"""The bridge on ROS 2: topics, a service, an action, diagnostics, parameters. What it does with them is bridge's."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from typing import Any, TypeVar

import presage
import rclpy
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from presage.protocol.schema import field_types
from presage_ros_interfaces.action import ReachGoal
from presage_ros_interfaces.srv import SetGoal
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from presage_ros.bridge import Bridge
from presage_ros.reaching import Reaching
from presage_ros.values import BridgeSettings, Frame, Trajectory

FEEDBACK_S = 0.1
Kind = TypeVar("Kind")


class PresageNode(Node):
    """Images on `image/compressed`, plans and stops on `plan`, goals by `set_goal` or `reach_goal`."""

    def __init__(self) -> None:
        super().__init__("presage")
        settings = BridgeSettings(
            model=self._text("model", ""),
            budget_ms=self._number("budget_ms", 80.0),
            stale_after_s=self._number("stale_after_s", 0.5),
            max_image_age_s=self._number("max_image_age_s", 0.5),
            call_timeout_s=self._number("call_timeout_s", 5.0),
            command=self._text("command", "velocities"),
            planner=self._values(presage.PlannerSettings),
            limits=self._values(presage.ActionLimits, "limit_"),
            stop=tuple(float(entry) for entry in self._text("stop", "").replace(",", " ").split()),
        )
        client = presage.Client(
            self._text("address", "127.0.0.1:50051"),
            api_key=_line(self._text("api_key_file", "")),
            tls=_tls(self._text("tls_ca_file", "")),
            affinity=self._text("affinity", "") or None,
            timeout_s=settings.call_timeout_s,
        )
        self._plans = self.create_publisher(JointTrajectory, "plan", 1)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.bridge = Bridge(client, settings, self._publish)

        # What waits for the network never holds up images and the watchdog: groups of their own, each on a thread.
        quick, slow = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        reaching = ReentrantCallbackGroup()
        self.create_subscription(
            CompressedImage, "image/compressed", self._see, qos_profile_sensor_data, callback_group=quick
        )
        self.create_subscription(JointState, "joint_states", self._feel, qos_profile_sensor_data, callback_group=quick)
        self.create_timer(1.0 / self._number("tick_rate_hz", 50.0), self.bridge.tick, callback_group=quick)
        self.create_timer(1.0, self._diagnose, callback_group=quick)
        self.create_timer(1.0, self.bridge.maintain, callback_group=slow)
        self.create_service(SetGoal, "set_goal", self._set_goal, callback_group=slow)
        self._action = ActionServer(
            self,
            ReachGoal,
            "reach_goal",
            self._reach,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=reaching,
        )

    def close(self) -> None:
        """The last word is a stop."""
        self._action.destroy()
        self.bridge.close()

    def _see(self, message: Any) -> None:
        stamp_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        age_s = (self.get_clock().now().nanoseconds - stamp_ns) / 1e9
        self.bridge.see(Frame(bytes(message.data), stamp_ns, age_s, message.header.frame_id))

    def _feel(self, message: Any) -> None:
        self.bridge.feel(tuple(message.name), tuple(message.position))

    def _publish(self, out: Trajectory) -> None:
        message = JointTrajectory()
        stamp_ns = self.get_clock().now().nanoseconds if out.stamp_ns is None else out.stamp_ns
        message.header.stamp = Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)
        message.header.frame_id = out.frame_id
        message.joint_names = list(out.names)
        for time_s, action in zip(out.times_s, out.points, strict=True):
            point = JointTrajectoryPoint()
            setattr(point, self.bridge.settings.command, list(action))
            whole = math.floor(time_s)
            point.time_from_start = Duration(sec=whole, nanosec=round((time_s - whole) * 1e9))
            message.points.append(point)
        self._plans.publish(message)

    def _set_goal(self, request: Any, response: Any) -> Any:
        try:
            if len(request.image.data):
                response.goal_id = self.bridge.set_goal(bytes(request.image.data))
            else:
                self.bridge.clear_goal()
            response.success = True
        except presage.PresageError as error:
            response.success, response.message = False, str(error)
        return response

    def _reach(self, handle: Any) -> Any:
        asked = handle.request
        reaching = Reaching(self.bridge, bytes(asked.image.data), asked.tolerance, asked.timeout_s)
        while True:
            progress = reaching.step(handle.is_cancel_requested or not rclpy.ok())
            if progress.outcome:
                break
            feedback = ReachGoal.Feedback()
            feedback.goal_distance, feedback.plans = progress.goal_distance, progress.plans
            feedback.stopped, feedback.trouble = progress.stopped, progress.message
            handle.publish_feedback(feedback)
            time.sleep(FEEDBACK_S)
        if progress.outcome == "reached":
            handle.succeed()
        elif handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        result = ReachGoal.Result()
        result.reached, result.outcome = progress.outcome == "reached", progress.outcome
        result.message, result.goal_distance, result.plans = progress.message, progress.goal_distance, progress.plans
        return result

    def _diagnose(self) -> None:
        report = self.bridge.report()
        status = DiagnosticStatus()
        status.name, status.hardware_id = f"{self.get_name()}: plans", "presage"
        status.level, status.message = DiagnosticStatus.OK, "plans are fresh"
        if report.trouble:
            status.level = DiagnosticStatus.ERROR if report.stopped and report.goal_id else DiagnosticStatus.WARN
            status.message = report.trouble
        shown = {
            "stopped": report.stopped,
            "connected": report.connected,
            "goal": report.goal_id,
            "goal distance": f"{report.goal_distance:.4f}",
            "plans": report.plans,
            "observations without a plan": report.failed,
            "plans refused": report.refused,
            "images too old": report.old_images,
            "round trip (ms)": f"{report.round_trip_ms:.1f}",
        }
        status.values = [KeyValue(key=key, value=str(value)) for key, value in shown.items()]
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [status]
        self._diagnostics.publish(message)

    def _text(self, name: str, default: str) -> str:
        return str(self.declare_parameter(name, default).value)

    def _values(self, kind: type[Kind], prefix: str = "") -> Kind:
        """A parameter for every field of a dataclass. 0 or an empty text leaves it out; a space parts several."""
        values: dict[str, Any] = {}
        for field in field_types(kind):
            value = self.declare_parameter(prefix + field.name, "" if field.is_many else field.kind()).value
            if value:
                parts = str(value).replace(",", " ").split()
                values[field.name] = tuple(map(field.kind, parts)) if field.is_many else field.kind(value)
        return kind(**values)

    def _number(self, name: str, default: float) -> float:
        return float(self.declare_parameter(name, default).value)


def _line(path: str) -> str | None:
    return Path(path).read_text(encoding="utf-8").strip() if path else None


def _tls(path: str) -> presage.TLS | None:
    return presage.TLS.from_files(roots=path) if path else None


def _leave(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    # ROS would close the middleware on a signal, before a last stop could be published.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, _leave)
    node = PresageNode()
    executor = MultiThreadedExecutor(num_threads=4)
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.close()
        node.destroy_node()
        rclpy.try_shutdown()
