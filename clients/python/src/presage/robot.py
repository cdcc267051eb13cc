"""Runs a robot from a control loop at a steady rate: one observation and one action each tick.

Not a safety system: what the robot does with an action is the robot's. This code decides which action of which plan is
next, and takes the hold action where no fresh plan has one. While the service is lost the robot carries out no more of
its plan than the model's `execute`, then holds, and goes on with the first plan that the service makes again.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Protocol, Sequence

import numpy as np

from presage.errors import PresageError, Unavailable, invalid
from presage.limits import LONGEST_DWELL, ActionLimits, fault, held_for
from presage.protocol import arguments
from presage.protocol.requests import Seen
from presage.values import ControlPlan, FailedObservation, ImageLike

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from presage.values import Floats


REMEMBERED = 1000  # observations that a plan may still come for


class Robot(Protocol):
    """What a robot must be able to do. Neither may wait longer than a tick lasts."""

    def observe(self) -> tuple[ImageLike | Sequence[ImageLike], Sequence[float] | None]:
        """The newest image, or one per camera; and the proprioception [entries] in robot units, or None."""

    def act(self, action: Floats) -> None:
        """Starts one action [action], in robot units, and returns."""


class Loop(Protocol):
    """What is needed of a control loop; ControlLoop and AsyncControlLoop both have it."""

    def send(
        self,
        seen: Seen,
        proprioception: Sequence[float] | None = None,
        executed: int = 0,
        committed: int = 0,
        seed: int | None = None,
        plan: ControlPlan | None = None,
        previous_action: ArrayLike | None = None,
    ) -> int: ...

    def latest(self) -> ControlPlan | None: ...

    def errors(self) -> tuple[FailedObservation, ...]: ...

    @property
    def connected(self) -> bool: ...

    @property
    def trouble(self) -> PresageError | None: ...

    @property
    def restored(self) -> int: ...

    @property
    def execute(self) -> int: ...


@dataclass(frozen=True, eq=False)
class ControlTick:
    """What one tick did. `action` is [action], robot units; `held` says that no fresh plan had one."""

    tick: int
    sequence: int
    action: Floats
    held: bool
    plan: ControlPlan | None


@dataclass(frozen=True)
class ControlReport:
    """What a run did.

    `late`: ticks that began after their time. `failed`: observations that got no plan. `degraded`: plans that were cut
    short for want of time, the newest of them for the reasons in `warnings`. `lost`: ticks without the service.
    `restored`: how often the session was made again at a server that had lost it.
    """

    ticks: int
    held: int
    late: int
    plans: int
    failed: int
    degraded: int = 0
    lost: int = 0
    restored: int = 0
    warnings: tuple[str, ...] = ()


class PlanFollower:
    """Which action comes next. A plan's first action belongs to the observation it was made from.

    A plan arrives some actions after its observation; it is joined where the robot is by then. The actions in between
    were announced as committed, so the plan begins with them. Time spent holding moves nothing and counts for nothing.
    """

    def __init__(self, rate_hz: float, max_open_loop: int | None) -> None:
        self._rate_hz, self._max_open_loop = rate_hz, max_open_loop
        self._taken = 0  # actions of plans, of all of them
        self._taken_at: dict[int, int] = {}  # the same, when an observation was made
        self._is_over = False
        self.plan: ControlPlan | None = None

    def follow(self, plan: ControlPlan | None) -> None:
        """Goes over to a newer plan."""
        if plan is None or plan is self.plan:
            return
        self.plan, self._is_over = plan, False
        self._taken_at.setdefault(self._used, self._taken)  # a plan from before this run begins here
        self._taken_at = {number: taken for number, taken in self._taken_at.items() if number >= self._used}

    def give_up(self) -> None:
        """No more of this plan: what is left of it has become old."""
        self._is_over = True

    def seen(self, sequence: int) -> None:
        """An observation was made here."""
        self._taken_at[sequence] = self._taken
        if len(self._taken_at) > REMEMBERED:  # no plan has come for long: the oldest ones get none any more
            del self._taken_at[min(number for number in self._taken_at if number != self._used)]

    @property
    def _used(self) -> int:
        return 0 if self.plan is None else self.plan.plan.observation_sequence

    @property
    def executed(self) -> int:
        """How far into its plan the robot is, in actions."""
        return 0 if self.plan is None else self._taken - self._taken_at[self._used]

    def executed_of(self, plan: ControlPlan) -> int:
        """How far into a plan the robot would be."""
        return self._taken - self._taken_at.get(plan.plan.observation_sequence, self._taken)

    @property
    def left(self) -> int:
        """How many more actions its plan has for it."""
        if self.plan is None or self._is_over:
            return 0
        length = len(self.plan.plan.actions)
        usable = length if self._max_open_loop is None else min(length, self._max_open_loop)
        return max(0, usable - self.executed)

    @property
    def committed(self) -> int:
        """How many actions will be executed while the next plan is made, going by the last one's round trip."""
        if self.plan is None:
            return 0
        return min(self.left, math.ceil(self.plan.round_trip_s * self._rate_hz))

    def next_action(self) -> Floats | None:
        """The plan's next action [action], or None if there is none left."""
        if self.plan is None or not self.left:
            return None
        action: Floats = self.plan.plan.actions[self.executed]
        self._taken += 1
        return action


class Runner:
    """A run in progress: `tick()`, wait for `pause_s()`, again, and `hold()` at the end."""

    def __init__(
        self,
        loop: Loop,
        robot: Robot,
        rate_hz: float,
        hold: ArrayLike,
        max_open_loop: int | None,
        max_failures: int,
        max_outage_s: float,
        clock: Callable[[], float],
    ) -> None:
        rate_hz = arguments.positive("rate_hz", rate_hz)
        if max_open_loop is not None:
            max_open_loop = arguments.whole("max_open_loop", max_open_loop, least=1)
        if not max_outage_s >= 0:
            raise invalid("max_outage_s", "must be at least 0", max_outage_s)
        self._loop, self._robot, self._clock, self._period = loop, robot, clock, 1.0 / rate_hz
        self._hold = np.asarray(hold, np.float32)
        if self._hold.ndim != 1 or not np.isfinite(self._hold).all():
            raise invalid("hold", "must be finite numbers [action]", list(self._hold.shape))
        self._follower = PlanFollower(rate_hz, max_open_loop)
        self._max_failures, self._max_outage_s = max_failures, max_outage_s
        self._lost_at: float | None = None  # since when there is no service; None: there is
        self._on_its_own = 0  # actions carried out since
        self._restored_before = loop.restored
        self._warnings: tuple[str, ...] = ()
        self._last: Floats | None = None  # action, and for how many actions each of its entries was kept
        self._kept: tuple[float, ...] | None = None
        self._counted: ControlPlan | None = None
        self._next_tick = clock()
        self._in_a_row = 0
        self._ticks = self._held = self._late = self._plans = self._failed = self._degraded = self._lost = 0

    def tick(self) -> ControlTick:
        """Observes, sends, acts. Raises the loop's error once it cannot go on."""
        images, proprioception = self._robot.observe()
        self._take_news()
        follower = self._follower
        sequence = self._loop.send(
            images,
            proprioception,
            executed=follower.executed,
            committed=follower.committed,
            plan=follower.plan,
            previous_action=None if follower.left else self._hold,  # what the robot does until the plan is there
        )
        follower.seen(sequence)
        planned = follower.next_action()
        if self._lost_at is not None:
            self._lost += self._plans > 0
            self._on_its_own += planned is not None
        action = self._hold if planned is None else planned
        self._robot.act(action)
        self._note(action, planned is None)
        self._ticks, self._held = self._ticks + 1, self._held + (planned is None)
        return ControlTick(self._ticks - 1, sequence, action, planned is None, follower.plan)

    def _take_news(self) -> None:
        newest = self._loop.latest()
        if newest is not None and newest is not self._counted:
            self._counted = newest
            self._plans, self._in_a_row, self._lost_at, self._on_its_own = self._plans + 1, 0, None, 0
            if newest.plan.degraded:
                self._degraded, self._warnings = self._degraded + 1, newest.plan.warnings
        if newest is not None and self._leads_on(newest):
            self._follower.follow(newest)
        failures = self._loop.errors()
        refused = [failure for failure in failures if not isinstance(failure.error, Unavailable)]
        self._failed, self._in_a_row = self._failed + len(failures), self._in_a_row + len(refused)
        if self._in_a_row >= self._max_failures and refused:
            raise refused[-1].error
        self._mind_the_service(failures)

    def _note(self, action: Floats, is_hold: bool) -> None:
        """An action was taken. A hold ends every dwell."""
        before = None if self._last is None else self._last.tolist()
        kept = (float(LONGEST_DWELL),) * len(action)
        self._kept = kept if is_hold else held_for([action.tolist()], before, self._kept)
        self._last = action

    def _leads_on(self, newest: ControlPlan) -> bool:
        """Whether what is left of a plan follows on the last action within the slew and the dwell that it keeps to.

        A plan that comes later than was told may not: then the robot goes on as it does, until one leads on.
        """
        limits = getattr(getattr(newest.plan, "provenance", None), "limits", None)
        if limits is None or self._last is None or newest is self._follower.plan:
            return True
        left = newest.plan.actions[self._follower.executed_of(newest) :]
        seams = ActionLimits(slew=limits.slew, dwell=limits.dwell)
        return not len(left) or not fault(left, (), seams, (), self._last.tolist(), self._kept)

    def _mind_the_service(self, failures: Sequence[FailedObservation]) -> None:
        """Notes that the service is lost: for how long, and how much of its plan the robot may still carry out."""
        now = self._clock()
        is_away = not self._loop.connected or any(isinstance(failure.error, Unavailable) for failure in failures)
        if self._lost_at is None and is_away:
            self._lost_at = now
        if self._lost_at is None:
            return
        if self._on_its_own >= self._loop.execute:
            self._follower.give_up()
        if now - self._lost_at > self._max_outage_s:
            error = failures[-1].error if failures else self._loop.trouble
            raise error or Unavailable(f"no plan for {now - self._lost_at:.1f} s", reason="CONNECTION_LOST")

    def pause_s(self) -> float:
        """How long until the next tick. A tick that is late moves all later ones: none are made up for."""
        now = self._clock()
        self._next_tick += self._period
        if self._next_tick < now:
            self._late, self._next_tick = self._late + 1, now
        return self._next_tick - now

    def hold(self) -> None:
        """Leaves the robot at rest."""
        self._robot.act(self._hold)

    def report(self) -> ControlReport:
        return ControlReport(
            ticks=self._ticks,
            held=self._held,
            late=self._late,
            plans=self._plans,
            failed=self._failed,
            degraded=self._degraded,
            lost=self._lost,
            restored=self._loop.restored - self._restored_before,
            warnings=self._warnings,
        )


def run_control(
    loop: Loop,
    robot: Robot,
    rate_hz: float,
    hold: ArrayLike,
    *,
    until: Callable[[ControlTick], bool] | None = None,
    ticks: int | None = None,
    max_open_loop: int | None = None,
    max_failures: int = 10,
    max_outage_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ControlReport:
    """Runs `robot` at `rate_hz`, the model's action rate, for `ticks`, until `until` says so or the loop fails.

    `hold` [action], in robot units, is what the robot does where no plan has a fresh action: at first, past the end of
    the newest plan, past `max_open_loop` of its actions, past the model's `execute` while the service is lost, and last
    of all, whatever ends the run. `max_failures`: so many observations in a row that are refused, and their error is
    raised. `max_outage_s`: for so long the service may be lost, and started again, before its error is raised; the
    session, its goals and its calibration are made again there.
    """
    runner = Runner(loop, robot, rate_hz, hold, max_open_loop, max_failures, max_outage_s, clock)
    try:
        while ticks is None or runner.report().ticks < ticks:
            tick = runner.tick()
            if until is not None and until(tick):
                break
            sleep(runner.pause_s())
    finally:
        runner.hold()
    return runner.report()


async def run_control_async(
    loop: Loop,
    robot: Robot,
    rate_hz: float,
    hold: ArrayLike,
    *,
    until: Callable[[ControlTick], bool] | None = None,
    ticks: int | None = None,
    max_open_loop: int | None = None,
    max_failures: int = 10,
    max_outage_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> ControlReport:
    """`run_control` on an event loop, which the robot's two methods must not hold up."""
    runner = Runner(loop, robot, rate_hz, hold, max_open_loop, max_failures, max_outage_s, clock)
    try:
        while ticks is None or runner.report().ticks < ticks:
            tick = runner.tick()
            if until is not None and until(tick):
                break
            await asyncio.sleep(runner.pause_s())
    finally:
        runner.hold()
    return runner.report()
