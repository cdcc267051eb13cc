"""The open sessions: a bounded number, each dropped after its time-to-live. The clock is an argument."""

from __future__ import annotations

from server.errors import Reason, ServiceError, invalid
from server.service.session import Session


class SessionTable:
    """The open sessions, at most `limit` of them; each is forgotten `ttl_s` after its last call."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sessions: dict[str, Session] = {}
        self._expiry: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Session, now: float) -> None:
        """Raises TOO_MANY_SESSIONS."""
        if len(self._sessions) >= self._limit:
            self.expire(now)
        if len(self._sessions) >= self._limit:
            rule = f"must stay at most {self._limit}; delete one or wait for one to expire"
            raise invalid("sessions", rule, self._limit + 1, Reason.TOO_MANY_SESSIONS)
        self._sessions[session.session_id] = session
        self._expiry[session.session_id] = now + session.ttl_s

    def get(self, session_id: str, now: float) -> Session:
        """A session, kept alive by this. Raises UNKNOWN_SESSION."""
        session = self._sessions.get(session_id)
        if session is None or (self._expiry[session_id] <= now and not session.busy):
            self._drop(session_id)
            rule, shown = "must name an open session", session_id[:40]
            message = f"session_id {rule}, got {shown}: it never was, was deleted, or expired"
            raise ServiceError(Reason.UNKNOWN_SESSION, message, field="session_id", rule=rule, value=shown)
        self._expiry[session_id] = now + session.ttl_s
        return session

    def touch(self, session: Session, now: float) -> None:
        """Keep a session alive, if it is still open."""
        if session.session_id in self._expiry:
            self._expiry[session.session_id] = now + session.ttl_s

    def delete(self, session_id: str, now: float) -> None:
        """Raises UNKNOWN_SESSION."""
        self.get(session_id, now)
        self._drop(session_id)

    def expire(self, now: float) -> int:
        """Forget every session whose time is up and that is not being planned for; how many they were."""
        over = [name for name, instant in self._expiry.items() if instant <= now and not self._sessions[name].busy]
        for name in over:
            self._drop(name)
        return len(over)

    def _drop(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        self._expiry.pop(session_id, None)
