"""A robot run from a control loop: which action at which tick, and what happens when plans fail to come."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np
import presage
import pytest
from presage.robot import PlanFollower
from presage.values import ControlPlan

from tests.support.client.protocol_behavior import Refusal
from tests.support.client.protocol_server import Running
from tests.support.client.protocol_service import ACTION, HORIZON, expected_actions

HOLD = np.array([9.0, 9.0], np.float32)


class Recorder:
    """A robot that keeps what it was told."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.actions: list[np.ndarray] = []

    def observe(self) -> tuple[np.ndarray, None]:
        return self.image, None

    def act(self, action: np.ndarray) -> None:
        assert action.shape == (ACTION,)
        self.actions.append(action)


class Lockstep:
    """A real control loop that has always heard the answer to what it said: ticks become repeatable."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.sent: list[dict[str, Any]] = []

    def send(self, seen: Any, proprioception: Any = None, **told: Any) -> int:
        self.sent.append(told)
        sequence: int = self.loop.send(seen, proprioception, **told)
        return sequence

    def latest(self) -> Any:
        if self.sent:
            try:
                return self.loop.wait(20.0)
            except presage.PresageError:
                return self.loop.latest()
        return self.loop.latest()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loop, name)


@pytest.fixture
def loop(client: Any, image: np.ndarray) -> Iterator[Any]:
    with client.session(goal=client.goal(image)) as session, session.control() as opened:
        yield opened


def plan_of(sequence: int, length: int = 4, round_trip_s: float = 0.0) -> ControlPlan:
    """Action number k of the plan made from observation s is [s, k]."""
    actions = np.array([[sequence, number] for number in range(length)], np.float32)
    plan: Any = type("Plan", (), {"actions": actions, "observation_sequence": sequence})()
    return ControlPlan(plan, (), round_trip_s)


def taken(follower: PlanFollower) -> list[float] | None:
    action = follower.next_action()
    return None if action is None else action.tolist()


def test_a_plan_is_joined_where_the_robot_has_got_to() -> None:
    follower = PlanFollower(10.0, None)
    follower.seen(1)
    assert taken(follower) is None  # no plan yet: holding, which moves nothing
    follower.follow(plan_of(1))
    follower.seen(2)
    assert (follower.executed, taken(follower)) == (0, [1, 0])
    follower.seen(3)
    assert (follower.executed, taken(follower)) == (1, [1, 1])
    follower.follow(plan_of(2))  # made before two actions were taken
    follower.seen(4)
    assert (follower.executed, taken(follower)) == (2, [2, 2])
    follower.follow(plan_of(4))
    assert (follower.executed, taken(follower)) == (1, [4, 1])


def test_an_old_plan_ends_in_holding() -> None:
    follower = PlanFollower(10.0, None)
    follower.seen(1)
    follower.follow(plan_of(1, length=2))
    assert [taken(follower) for _ in range(4)] == [[1, 0], [1, 1], None, None]
    follower.seen(2)
    follower.follow(plan_of(2))
    assert taken(follower) == [2, 0]
    short = PlanFollower(10.0, max_open_loop=1)
    short.seen(1)
    short.follow(plan_of(1))
    assert [taken(short) for _ in range(2)] == [[1, 0], None]


def test_a_long_silence_costs_no_memory_and_no_place() -> None:
    follower = PlanFollower(10.0, None)
    follower.seen(1)
    follower.follow(plan_of(1))
    taken(follower)
    for sequence in range(2, 3000):
        follower.seen(sequence)
    assert (follower.executed, taken(follower)) == (1, [1, 1])
    assert len(follower._taken_at) <= 1000
    follower.follow(plan_of(2999))
    assert taken(follower) == [2999, 1]


def test_what_will_pass_while_planning_is_committed() -> None:
    follower = PlanFollower(10.0, None)
    assert follower.committed == 0
    follower.seen(1)
    follower.follow(plan_of(1, round_trip_s=0.11))
    assert follower.committed == 2
    follower.next_action()
    follower.next_action()
    follower.next_action()
    assert follower.committed == 1  # no more is left


def test_a_robot_follows_its_plans_one_action_a_tick(loop: Any, image: np.ndarray) -> None:
    robot = Recorder(image)
    ticks = []
    lockstep = Lockstep(loop)
    report = presage.run_control(lockstep, robot, 200.0, HOLD, ticks=5, until=lambda tick: bool(ticks.append(tick)))
    # Each plan arrives before the next tick, made from the observation one action ago: its second action is due.
    expected = [HOLD, expected_actions(0, 1)[0]] + [expected_actions(0, turn)[1] for turn in (2, 3, 4)] + [HOLD]
    np.testing.assert_array_equal(robot.actions, expected)
    assert (report.ticks, report.held, report.plans, report.failed) == (5, 1, 4, 0)
    assert [told["executed"] for told in lockstep.sent] == [0, 0, 1, 1, 1]
    # While there is no plan the robot holds, which the service is told: a slew limit begins there.
    assert [told["previous_action"] is not None for told in lockstep.sent] == [True, False, False, False, False]
    np.testing.assert_array_equal(lockstep.sent[0]["previous_action"], HOLD)
    assert [(tick.tick, tick.sequence, tick.held) for tick in ticks] == [
        (number, number + 1, number == 0) for number in range(5)
    ]


def test_a_robot_without_plans_holds(loop: Any, server: Running, image: np.ndarray) -> None:
    robot = Recorder(image)
    server.behavior.planning.clear()
    report = presage.run_control(loop, robot, 200.0, HOLD, ticks=3)
    assert (report.ticks, report.held) == (3, 3)
    np.testing.assert_array_equal(robot.actions, [HOLD] * 4)


def test_a_plan_runs_out_while_the_server_is_silent(loop: Any, server: Running, image: np.ndarray) -> None:
    robot = Recorder(image)
    loop.send(image)
    loop.wait(20.0)
    server.behavior.planning.clear()
    report = presage.run_control(loop, robot, 200.0, HOLD, ticks=HORIZON + 2)
    assert (report.held, report.plans) == (2, 1)
    np.testing.assert_array_equal(robot.actions[:HORIZON], expected_actions(0, 1))


def test_a_robot_that_only_fails_holds_and_says_why(loop: Any, server: Running, image: np.ndarray) -> None:
    robot = Recorder(image)
    server.behavior.refused_observations += [Refusal("", "IMAGE_SIZE", "must be 8x8")] * 9
    with pytest.raises(presage.InvalidRequest, match="must be 8x8"):
        presage.run_control(Lockstep(loop), robot, 200.0, HOLD, ticks=50, max_failures=3)
    np.testing.assert_array_equal(robot.actions, [HOLD] * 4)


class Service:
    """A loop whose service comes and goes: every observation gets a plan of six actions at once, while it is there."""

    def __init__(self) -> None:
        self.connected, self.restored, self.execute, self.trouble = True, 0, 2, None
        self.plan: ControlPlan | None = None
        self.sequence = 0
        self.failures: list[presage.FailedObservation] = []
        self.degraded = False

    def send(self, seen: Any, proprioception: Any = None, **told: Any) -> int:
        self.sequence += 1
        if self.connected:
            self.plan = plan_of(self.sequence, length=6)
            self.plan.plan.degraded, self.plan.plan.warnings = self.degraded, ("1 of 8 iterations fit 80 ms",)
        return self.sequence

    def latest(self) -> ControlPlan | None:
        return self.plan

    def errors(self) -> tuple[presage.FailedObservation, ...]:
        taken, self.failures = tuple(self.failures), []
        return taken


def test_without_the_service_a_robot_does_execute_more_actions_and_then_holds(image: np.ndarray) -> None:
    service, robot = Service(), Recorder(image)

    def away(tick: presage.ControlTick) -> bool:
        service.connected = not 3 <= tick.tick < 8
        service.restored += tick.tick == 8
        return False

    report = presage.run_control(service, robot, 200.0, HOLD, ticks=12, until=away)
    # Tick 0 has no plan yet; the service is lost after tick 3, whose plan (of tick 2) is 2 actions old by then.
    expected = [HOLD, [1, 0], [2, 1], [3, 1], [4, 1], [4, 2], HOLD, HOLD, HOLD, HOLD, [10, 0], [11, 1], HOLD]
    np.testing.assert_array_equal(robot.actions, expected)
    assert (report.held, report.lost, report.restored) == (5, 6, 1)


def test_plans_cut_short_are_counted_with_what_the_last_one_warned_of(image: np.ndarray) -> None:
    service = Service()
    service.degraded = True
    report = presage.run_control(service, Recorder(image), 200.0, HOLD, ticks=5)
    assert (report.plans, report.degraded, report.warnings) == (4, 4, ("1 of 8 iterations fit 80 ms",))


def test_a_service_lost_for_too_long_ends_the_run_in_a_hold_with_what_was_wrong(image: np.ndarray) -> None:
    service, robot, now = Service(), Recorder(image), [0.0]
    service.connected, service.trouble = False, presage.Unavailable("cannot reach it")

    def sleep(pause_s: float) -> None:
        now[0] += pause_s

    with pytest.raises(presage.Unavailable, match="cannot reach it"):
        presage.run_control(service, robot, 10.0, HOLD, max_outage_s=1.95, clock=lambda: now[0], sleep=sleep)
    assert len(robot.actions) == 21  # twenty ticks and the last hold
    np.testing.assert_array_equal(robot.actions, [HOLD] * 21)


def test_an_engine_that_is_started_again_does_not_end_a_run(image: np.ndarray) -> None:
    service, robot = Service(), Recorder(image)

    def without_engine(tick: presage.ControlTick) -> bool:
        lost = presage.Unavailable("the engine stopped", reason="ENGINE_LOST")
        service.failures = [presage.FailedObservation(tick.sequence, lost)] * 3
        return False

    report = presage.run_control(service, robot, 200.0, HOLD, ticks=30, until=without_engine, max_failures=5)
    assert (report.ticks, report.failed) == (30, 87)


def test_whatever_ends_a_run_the_robot_is_left_holding(loop: Any, image: np.ndarray) -> None:
    class Broken(Recorder):
        def observe(self) -> tuple[np.ndarray, None]:
            raise OSError("the camera is gone")

    robot = Broken(image)
    with pytest.raises(OSError, match="camera"):
        presage.run_control(loop, robot, 10.0, HOLD)
    np.testing.assert_array_equal(robot.actions, [HOLD])


def test_a_late_tick_moves_the_later_ones(loop: Any, image: np.ndarray) -> None:
    now = [0.0]
    slept = []

    def sleep(pause_s: float) -> None:
        slept.append(round(pause_s, 6))
        now[0] += pause_s

    class Slow(Recorder):
        def act(self, action: np.ndarray) -> None:
            super().act(action)
            now[0] += 0.25 if len(self.actions) == 2 else 0.02

    report = presage.run_control(loop, Slow(image), 10.0, HOLD, ticks=4, clock=lambda: now[0], sleep=sleep)
    assert slept == [0.08, 0.0, 0.08, 0.08]
    assert report.late == 1


@pytest.mark.parametrize(
    ("named", "match"),
    [({"rate_hz": 0.0}, "rate_hz"), ({"hold": [np.nan]}, "hold"), ({"max_open_loop": 0}, "max_open_loop")],
)
def test_arguments_check_themselves(loop: Any, image: np.ndarray, named: dict[str, Any], match: str) -> None:
    robot = Recorder(image)
    with pytest.raises(presage.InvalidRequest, match=match):
        presage.run_control(loop, robot, **{"rate_hz": 10.0, "hold": HOLD, **named})
    assert not robot.actions


async def test_an_event_loop_runs_a_robot_too(server: Running, image: np.ndarray) -> None:
    robot = Recorder(image)
    async with presage.AsyncClient(server.address) as client:
        session = await client.session(goal=await client.goal(image))
        async with session, session.control() as loop:
            loop.send(image)
            await loop.wait(20.0)
            report = await presage.run_control_async(loop, robot, 200.0, HOLD, until=lambda tick: tick.tick == 2)
    assert report.ticks == 3
    assert len(robot.actions) == 4
    np.testing.assert_array_equal(robot.actions[0], expected_actions(0, 1)[0])
