"""The table of sessions on a hand-held clock: expiry, room, deletion."""

from __future__ import annotations

import pytest

from server.errors import Reason, ServiceError
from server.service.sessions.session import Session
from server.service.sessions.session_table import SessionTable
from server.values.caller import Caller
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


def of(caller: Caller, name: str) -> Session:
    made = session(ttl_s=10)
    made.session_id, made.caller = name, caller
    return made


def test_one_callers_sessions_leave_room_for_another() -> None:
    table, anna, boris = SessionTable(limit=4, each=2), Caller("anna", "anna"), Caller("boris", "boris")
    for number in range(2):
        table.add(of(anna, f"a{number}"), now=0.0)
    with pytest.raises(ServiceError, match="at most 2 of one caller") as caught:
        table.add(of(anna, "a2"), now=0.0)
    assert caught.value.reason is Reason.TOO_MANY_SESSIONS
    table.add(of(boris, "b0"), now=0.0)
    table.delete("a0", 1.0, anna)
    table.add(of(anna, "a3"), now=1.0)


def test_a_session_is_its_callers_alone_but_for_who_may_look_or_administer() -> None:
    table, anna = SessionTable(limit=4), Caller("anna", "anna")
    table.add(of(anna, "a"), now=0.0)
    boris, viewer, admin = Caller("b", "b"), Caller("v", "v", "viewer"), Caller("c", "c", "admin")
    for caller in (boris, viewer):
        with pytest.raises(ServiceError):
            table.get("a", 1.0, caller)
        with pytest.raises(ServiceError):
            table.delete("a", 1.0, caller)
    with pytest.raises(ServiceError):
        table.seen("a", 1.0, boris)
    assert table.seen("a", 9.0, viewer) is table.get("a", 1.0, admin)
    assert table.expire(11.5) == 1, "who only looks keeps nothing alive"


def test_a_session_ends_at_its_age_however_busy_it_is_kept() -> None:
    ended: list[str] = []
    table = SessionTable(limit=2, age_s=25.0, closed=lambda session: ended.append(session.session_id))
    table.add(session(ttl_s=10), now=0.0)
    for now in (8.0, 16.0, 24.0):
        table.get("robot", now)
    with pytest.raises(ServiceError):
        table.get("robot", 25.0)
    assert ended == ["robot"]
