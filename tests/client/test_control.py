"""Both control loops over real gRPC: plans, faults, reconnections, and nothing left running."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable

import numpy as np
import presage
import pytest

from tests.support.client.blocking import Connect
from tests.support.client.protocol_behavior import Refusal
from tests.support.client.protocol_server import Running, running
from tests.support.client.protocol_service import expected_actions

PATIENCE_S = 20.0  # for things that take milliseconds on a machine that has nothing else to do


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it must happen eventually"
        time.sleep(0.01)


@pytest.fixture
def session(client: Any, image: np.ndarray) -> Any:
    return client.session(goal=client.goal(image))


def test_each_observation_gets_its_plan(session: Any, image: np.ndarray) -> None:
    with session.control(budget_ms=50) as loop:
        assert loop.latest() is None
        for turn in range(1, 4):
            sequence = loop.send(image, seed=turn)
            answer = loop.wait(PATIENCE_S)
            assert answer is not None
            assert sequence == answer.plan.observation_sequence == turn
            np.testing.assert_array_equal(answer.plan.actions, expected_actions(turn, turn))
            assert loop.latest() is answer
            assert answer.round_trip_s > 0
        assert loop.connected
        assert loop.trouble is None
        assert loop.errors() == ()


def test_a_loop_goes_on_from_single_plans_and_back(session: Any, image: np.ndarray) -> None:
    assert session.plan(image).observation_sequence == 1
    with session.control() as loop:
        assert loop.send(image) == 2
        loop.wait(PATIENCE_S)
        assert session.plan(image).observation_sequence == 3
        assert loop.send(image) == 4


def test_the_robot_never_waits_while_a_plan_is_made(session: Any, server: Running, image: np.ndarray) -> None:
    with session.control() as loop:
        server.behavior.planning.clear()
        first = loop.send(image)
        eventually(lambda: server.behavior.observations)
        later = [loop.send(image) for _ in range(20)]
        assert loop.latest() is None
        assert loop.wait(0.05) is None
        server.behavior.planning.set()
        assert loop.wait(PATIENCE_S, first).plan.observation_sequence == first
        newest = loop.wait(PATIENCE_S, later[-1])
        assert newest.plan.observation_sequence == later[-1]
        assert newest.skipped_sequences == tuple(later[:-1])
    assert len(server.behavior.observations) == 2


def test_a_goal_is_swapped_in_the_stream(session: Any, client: Any, image: np.ndarray) -> None:
    other = client.goal(image // 2)
    with session.control() as loop:
        loop.send(image)
        before = loop.wait(PATIENCE_S).plan.provenance.goal_id
        loop.set_goal(other)
        loop.send(image)
        assert loop.wait(PATIENCE_S).plan.provenance.goal_id == other.goal_id != before


def test_a_failed_observation_fails_alone(session: Any, server: Running, image: np.ndarray) -> None:
    with session.control() as loop:
        server.behavior.refused_observations.append(Refusal("", "IMAGE_SIZE", "observation.images[0] must be 8x8"))
        failed = loop.send(image)
        with pytest.raises(presage.InvalidRequest, match="must be 8x8") as caught:
            loop.wait(PATIENCE_S)
        assert caught.value.reason == "IMAGE_SIZE"
        assert [each.sequence for each in loop.errors()] == [failed]
        loop.send(image)
        assert loop.wait(PATIENCE_S) is not None


def test_a_dropped_stream_is_dialled_again_and_the_session_goes_on(
    session: Any, server: Running, image: np.ndarray
) -> None:
    with session.control(budget_ms=30) as loop:
        loop.send(image)
        loop.wait(PATIENCE_S)
        server.behavior.drop_streams = 1
        loop.send(image)
        with pytest.raises(presage.Unavailable, match="ENGINE_LOST"):
            loop.wait(PATIENCE_S)
        third = loop.send(image)
        assert loop.wait(PATIENCE_S).plan.observation_sequence == third == 3
        eventually(lambda: loop.connected)
    assert [(start.session_id, start.budget_ms) for start in server.behavior.starts] == [(session.session_id, 30)] * 2


def test_a_silent_server_is_left_and_dialled_anew(session: Any, server: Running, image: np.ndarray) -> None:
    with session.control(heartbeat_s=0.05, stall_s=0.5) as loop:
        loop.send(image)
        loop.wait(PATIENCE_S)
        server.behavior.muted = True
        lost = loop.send(image)
        with pytest.raises(presage.Unavailable, match="has been silent") as caught:
            loop.wait(PATIENCE_S)
        assert caught.value.reason == "CONNECTION_LOST"
        server.behavior.muted = False
        sequence = loop.send(image)
        assert loop.wait(PATIENCE_S).plan.observation_sequence == sequence > lost


def test_heartbeats_keep_an_idle_loop_alive(session: Any, server: Running, image: np.ndarray) -> None:
    with session.control(heartbeat_s=0.05, stall_s=5.0) as loop:
        eventually(lambda: loop.connected)
        eventually(lambda: server.behavior.heartbeats >= 5)
        assert loop.connected
        loop.send(image)
        assert loop.wait(PATIENCE_S) is not None
    assert len(server.behavior.starts) == 1


def test_a_restarted_server_is_found_again(connect: Connect, image: np.ndarray) -> None:
    with running() as first:
        client = connect(first.address, timeout_s=30.0)
        session = client.session(goal=client.goal(image))
        loop = session.control()
        loop.send(image)
        assert loop.wait(PATIENCE_S) is not None
    with client:
        eventually(lambda: not loop.connected)
        eventually(lambda: loop.trouble is not None)
        waiting = loop.send(image)
        with running(int(first.address.rpartition(":")[2]), first.service):
            assert loop.wait(PATIENCE_S, waiting).plan.observation_sequence == waiting


def test_a_session_ended_on_a_living_server_ends_the_loop(session: Any, server: Running, image: np.ndarray) -> None:
    with session.control() as loop:
        loop.send(image)
        loop.wait(PATIENCE_S)
        server.behavior.refused_observations.append(Refusal("", "UNKNOWN_SESSION", "session_id must name one"))
        loop.send(image)
        with pytest.raises(presage.NotFound, match="UNKNOWN_SESSION"):
            loop.wait(PATIENCE_S)
        with pytest.raises(presage.NotFound, match="UNKNOWN_SESSION"):
            loop.send(image)
        assert loop.latest() is not None
        assert loop.restored == 0


def test_a_session_that_a_server_lost_is_made_again_with_its_goal_and_calibration(
    session: Any, client: Any, server: Running, image: np.ndarray
) -> None:
    seen = presage.Observation((image,))
    session.calibrate([presage.CalibrationMove(seen, action, seen) for action in ((0.1, 0.0), (0.0, 0.1))])
    first_id, goal_id = session.session_id, session.status().goal_id
    with session.control(budget_ms=30) as loop:
        loop.send(image)
        before = loop.wait(PATIENCE_S)
        forget(server)
        loop.send(image, executed=1, committed=2)
        with pytest.raises(presage.Unavailable):
            loop.wait(PATIENCE_S)
        eventually(lambda: loop.restored == 1)
        again = loop.send(image, executed=3, committed=1, plan=before)
        after = loop.wait(PATIENCE_S)
        assert (after.plan.observation_sequence, after.plan.provenance.goal_id) == (again, goal_id)
        assert session.session_id == loop.session_id != first_id
        counted = server.behavior.observations[-1]
        assert (counted.executed, counted.committed, counted.plan_sequence) == (0, 0, 0)  # the new session has no plan
        loop.send(image, executed=1)
        loop.wait(PATIENCE_S)
        assert server.behavior.observations[-1].plan_sequence == again
    assert session.status().calibration.moves == 2
    session.close()
    assert not server.service.sessions


def test_a_session_goes_on_at_its_stage(client: Any, server: Running, image: np.ndarray) -> None:
    goals = [client.goal(image // part) for part in (2, 3, 4)]
    session = client.session(stages=[presage.GoalStage(goal, max_actions=5) for goal in goals])
    with session.control(goal=goals[1]) as loop:
        loop.send(image)
        loop.wait(PATIENCE_S)
        forget(server)
        eventually(lambda: loop.send(image) and loop.restored == 1)
        made = [request for request in server.behavior.requests if type(request).__name__ == "SessionsCreateRequest"]
        assert [stage.goal_id for stage in made[-1].stages] == [goal.goal_id for goal in goals[1:]]
        loop.send(image)
        assert loop.wait(PATIENCE_S).plan.provenance.goal_id == goals[1].goal_id


def test_a_session_that_was_taken_up_by_its_id_cannot_be_made_again(
    session: Any, client: Any, server: Running, image: np.ndarray
) -> None:
    taken_up = client.resume_session(session.session_id)
    with taken_up.control() as loop:
        loop.send(image)
        loop.wait(PATIENCE_S)
        forget(server)
        loop.send(image)
        eventually(lambda: isinstance(loop.trouble, presage.NotFound))
        with pytest.raises(presage.NotFound, match="UNKNOWN_SESSION"):
            loop.send(image)


def test_a_goal_that_another_client_made_cannot_be_made_again(
    connect: Connect, client: Any, server: Running, image: np.ndarray
) -> None:
    with connect(server.address, timeout_s=30.0) as other:
        session = other.session(goal=client.goal(image).goal_id)
        with session.control() as loop:
            loop.send(image)
            loop.wait(PATIENCE_S)
            forget(server)
            loop.send(image)
            eventually(lambda: loop.trouble is not None and loop.trouble.reason == "UNKNOWN_GOAL")


def forget(server: Running) -> None:
    """What a restart does: streams break, and sessions and goals are gone."""
    server.service.sessions.clear()
    server.service.goals.clear()
    server.behavior.drop_streams = 1


def test_an_argument_that_breaks_its_rule_is_refused_at_once(session: Any, image: np.ndarray) -> None:
    with session.control() as loop:
        with pytest.raises(presage.InvalidRequest, match="uint8"):
            loop.send(image.astype(np.float32))
        with pytest.raises(presage.InvalidRequest, match="stall_s must be above"):
            session.control(heartbeat_s=2.0, stall_s=1.0)


@pytest.mark.parametrize("how", ["loop", "session", "client"])
def test_nothing_is_left_running(server: Running, connect: Connect, image: np.ndarray, how: str) -> None:
    before = set(threading.enumerate())
    client = connect(server.address, timeout_s=30.0)
    session = client.session(goal=client.goal(image))
    loop = session.control()
    loop.send(image)
    loop.wait(PATIENCE_S)
    server.behavior.planning.clear()
    loop.send(image)  # its plan never comes
    if how == "loop":
        loop.close()
        loop.close()
    if how == "session":
        session.close()
    client.close()
    assert loop.wait(PATIENCE_S) is None
    eventually(lambda: not [thread for thread in threads_since(before) if thread.is_alive()])


def threads_since(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that the client started, so without the server's workers."""
    mine = set(threading.enumerate()) - before
    return [thread for thread in mine if "ThreadPoolExecutor" not in thread.name]
