"""The open sessions: a bounded number, each dropped after its time-to-live. The clock is an argument."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from server.errors import Reason, ServiceError, invalid
from server.service.sessions.session import Session
from server.values.caller import EVERYONE, Caller


class SessionTable:
    """The open sessions, at most `limit` of them and `each` of one caller.

    Each is forgotten `ttl_s` after its last call, and `age_s` after it was opened. `closed` is told of every one that
    ends.
    """

    def __init__(
        self,
        limit: int,
        each: int | None = None,
        age_s: float = float("inf"),
        closed: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self._limit, self._each, self._age_s, self._closed = limit, limit if each is None else each, age_s, closed
        self._sessions: dict[str, Session] = {}
        self._expiry: dict[str, float] = {}
        self._oldest: dict[str, float] = {}  # when each must end, however busy
        self._of: Counter[str] = Counter()  # sessions by the name of their caller

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Session, now: float) -> None:
        """Raises TOO_MANY_SESSIONS."""
        name = session.caller.name
        if len(self._sessions) >= self._limit or self._of[name] >= self._each:
            self.expire(now)
        for count, most, whose in (
            (self._of[name], self._each, " of one caller"),
            (len(self._sessions), self._limit, ""),
        ):
            if count >= most:
                rule = f"must stay at most {most}{whose}; delete one or wait for one to expire"
                raise invalid("sessions", rule, most + 1, Reason.TOO_MANY_SESSIONS)
        self._sessions[session.session_id] = session
        self._of[name] += 1
        self._oldest[session.session_id] = now + self._age_s
        self._keep(session, now)

    def get(self, session_id: str, now: float, caller: Caller = EVERYONE) -> Session:
        """A caller's session, kept alive by this. Raises UNKNOWN_SESSION, also for another's."""
        session = self._sessions.get(session_id)
        if session is not None and not caller.may_change(session.caller.owner):
            raise _unknown(session_id)
        session = self._open(session_id, now)
        self._keep(session, now)
        return session

    def seen(self, session_id: str, now: float, caller: Caller) -> Session:
        """A session that the caller may look at, kept alive by its own caller alone. Raises UNKNOWN_SESSION."""
        session = self._sessions.get(session_id)
        if session is not None and not caller.may_change(session.caller.owner) and caller.may_see(session.caller.owner):
            return self._open(session_id, now)
        return self.get(session_id, now, caller)

    def touch(self, session: Session, now: float) -> bool:
        """Keep a session alive, if it is still open; whether it is."""
        if session.session_id not in self._expiry:
            return False
        self._keep(session, now)
        return True

    def delete(self, session_id: str, now: float, caller: Caller = EVERYONE) -> None:
        """Raises UNKNOWN_SESSION."""
        self.get(session_id, now, caller)
        self._drop(session_id)

    def expire(self, now: float) -> int:
        """Forget every session whose time is up and that is not being planned for; how many they were."""
        over = [name for name, instant in self._expiry.items() if instant <= now and not self._sessions[name].busy]
        for name in over:
            self._drop(name)
        return len(over)

    def forget(self, owner: str) -> None:
        """Close every session of an owner."""
        for name in [name for name, session in self._sessions.items() if session.caller.owner == owner]:
            self._drop(name)

    def _open(self, session_id: str, now: float) -> Session:
        session = self._sessions.get(session_id)
        if session is None or (self._expiry[session_id] <= now and not session.busy):
            self._drop(session_id)
            raise _unknown(session_id)
        return session

    def _keep(self, session: Session, now: float) -> None:
        name = session.session_id
        self._expiry[name] = min(now + session.ttl_s, self._oldest[name])

    def _drop(self, session_id: str) -> None:
        session = self._sessions.pop(session_id, None)
        self._expiry.pop(session_id, None)
        self._oldest.pop(session_id, None)
        if session is not None:
            self._of[session.caller.name] -= 1
            self._of += Counter()  # lets go of those with none
            self._closed(session)


def _unknown(session_id: str) -> ServiceError:
    rule, shown = "must name an open session", session_id[:40]
    message = f"session_id {rule}, got {shown}: it never was, was deleted, or expired"
    return ServiceError(Reason.UNKNOWN_SESSION, message, field="session_id", rule=rule, value=shown)
