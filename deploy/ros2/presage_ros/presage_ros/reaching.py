"""The reach action: sets a goal, monitors it and ends it, step by step. Free of ROS."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import presage

from presage_ros.bridge import Bridge

Outcome = Literal["", "reached", "timeout", "replaced", "cancelled", "refused"]


@dataclass(frozen=True)
class Progress:
    """`outcome` is "" while the robot is under way."""

    outcome: Outcome
    message: str
    goal_distance: float  # nan before the first plan
    plans: int
    stopped: bool


class Reaching:
    """One goal to be reached within `timeout_s`; it is when a plan's image is `tolerance` or less from it."""

    def __init__(
        self,
        bridge: Bridge,
        image: bytes,
        tolerance: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bridge, self._tolerance, self._clock = bridge, tolerance, clock
        self._until = clock() + timeout_s
        self._plans_before = bridge.report().plans
        self._refusal = ""
        if not (tolerance > 0 and timeout_s > 0):
            self._refusal = f"tolerance and timeout must be above 0, got {tolerance} and {timeout_s}"
            self._number = bridge.goal_number
            return
        try:
            bridge.set_goal(image)
        except presage.PresageError as error:
            self._refusal = str(error)
        self._number = bridge.goal_number

    def step(self, cancelled: bool) -> Progress:
        """How far it is. Any outcome has stopped the robot, unless another goal has taken over."""
        report = self._bridge.report()
        outcome: Outcome = ""
        message = report.trouble
        if self._refusal:
            outcome, message = "refused", self._refusal
        elif self._bridge.goal_number != self._number:
            outcome, message = "replaced", "another goal was set"
        elif cancelled:
            outcome, message = "cancelled", "as asked"
        elif report.goal_distance <= self._tolerance:
            outcome, message = "reached", ""
        elif self._clock() >= self._until:
            outcome = "timeout"
            message = f"not reached in time; {report.trouble}" if report.trouble else "not reached in time"
        if outcome in ("reached", "timeout", "cancelled"):
            self._bridge.clear_goal()
            self._bridge.tick()
        return Progress(outcome, message, report.goal_distance, report.plans - self._plans_before, report.stopped)
