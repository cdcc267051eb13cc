"""The table of sessions on a hand-held clock: expiry, room, deletion."""

from __future__ import annotations

import pytest

from server.errors import Reason, ServiceError
from server.service.sessions.session_table import SessionTable
from tests.server.service.sessions.test_session import session


def test_sessions_expire_after_their_last_call() -> None:
    table = SessionTable(limit=10)
    table.add(session(ttl_s=10), now=0.0)
    table.get("robot", now=9.0)
    assert table.expire(now=18.9) == 0
    assert table.expire(now=19.0) == 1
    with pytest.raises(ServiceError) as caught:
        table.get("robot", now=19.0)
    assert (caught.value.reason, caught.value.value) == (Reason.UNKNOWN_SESSION, "robot")


def test_a_session_that_is_over_is_not_revived_by_a_call_before_housekeeping() -> None:
    table = SessionTable(limit=10)
    table.add(session(ttl_s=10), now=0.0)
    with pytest.raises(ServiceError):
        table.get("robot", now=10.0)
    assert len(table) == 0


def test_a_session_being_planned_for_does_not_expire() -> None:
    table = SessionTable(limit=10)
    robot = session(ttl_s=10)
    table.add(robot, now=0.0)
    turn = robot.begin(0)
    assert table.expire(now=100.0) == 0
    assert table.get("robot", now=100.0) is robot
    robot.give_back(turn)
    assert table.expire(now=110.0) == 1


def test_a_full_table_makes_room_of_what_has_expired_and_of_nothing_else() -> None:
    table = SessionTable(limit=2)
    table.add(session(ttl_s=10, name="old"), now=0.0)
    table.add(session(ttl_s=100, name="new"), now=0.0)
    with pytest.raises(ServiceError) as caught:
        table.add(session(name="one too many"), now=5.0)
    assert caught.value.reason is Reason.TOO_MANY_SESSIONS
    table.add(session(name="in time"), now=10.0)
    assert len(table) == 2
    table.get("new", now=10.0)


def test_a_deleted_session_is_unknown() -> None:
    table = SessionTable(limit=2)
    table.add(session(), now=0.0)
    table.delete("robot", now=1.0)
    with pytest.raises(ServiceError):
        table.delete("robot", now=1.0)
