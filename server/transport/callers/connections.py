"""The open connections of a transport: a limited number, of one address too, and the newest is always let in.

One more than the limit ends the connection that matters least: one that never completed a request before one that did,
one without a key before one with, and of these the one that was silent longest. One that a call is in progress on is
never ended; where all are, the newcomer is.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from server.transport.callers.auth import party_of

_log = structlog.get_logger()


@dataclass(eq=False)
class Connection:
    """One of them. `close` ends it, whatever it is doing."""

    address: str  # as its transport writes a peer
    party: str  # whose it is
    close: Callable[[], None]
    is_busy: Callable[[], bool] = lambda: False  # whether a call is in progress on it
    spoke: float = field(default_factory=time.monotonic)  # when it last sent a request, or was opened
    requests: int = 0  # that came whole
    calls: int = 0  # in progress, as far as they are counted here
    is_known: bool = False  # a key was shown on it, or none is asked for and it has worked

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """The least is ended first."""
        return self.is_known, self.requests > 0, self.spoke


@contextmanager
def held(connection: Connection | None) -> Iterator[None]:
    """A call is in progress on it, if there is one."""
    if connection is None:
        yield
        return
    connection.calls += 1
    try:
        yield
    finally:
        connection.calls -= 1


class Connections:
    """`most` at once, `each` of one address."""

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, min(each, most)
        self._open: dict[str, Connection] = {}  # by address
        self._parties: Counter[str] = Counter()
        self.refused = 0  # since the start: newcomers, and those that were ended for one

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, address: str, close: Callable[[], None]) -> Connection | None:
        """A place for a new connection, `address` as a transport writes a peer; None where there is none."""
        party = party_of(address)
        rivals = None
        if self._parties[party] >= self._each:
            rivals = [each for each in self._open.values() if each.party == party]
        elif len(self._open) >= self._most:
            rivals = list(self._open.values())
        if rivals is not None:
            self.refused += 1
            ended = min(
                (each for each in rivals if not (each.calls or each.is_busy())),
                key=lambda each: each.rank,
                default=None,
            )
            if ended is None:
                return None
            self.leave(ended)
            ended.close()
        made = self._open[address] = Connection(address, party, close)
        self._parties[party] += 1
        return made

    def recognize(self, address: str) -> None:
        """Whoever is at the other end has shown a key, or none is asked for."""
        connection = self._open.get(address)
        if connection is not None:
            connection.is_known = True

    def end(self, address: str) -> None:
        """Close a connection, whatever is going on over it."""
        connection = self._open.get(address)
        if connection is not None:
            connection.close()

    def leave(self, connection: Connection) -> None:
        """It is closed. Again: nothing."""
        if self._open.get(connection.address) is connection:
            del self._open[connection.address]
            self._parties[connection.party] -= 1
            if not self._parties[connection.party]:
                del self._parties[connection.party]


AT_ONCE = 16  # connections that are accepted before those there are have been read
_WAITING = 1024
DESCRIPTORS_EACH = 4  # of a connection of REST and one of gRPC together
DESCRIPTORS_ELSE = 192  # for engines, parsers, uploads, files and libraries


def fitting_connections(most: int) -> int:
    """As many connections of each transport as there are file descriptors for; more are asked of the system first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most * DESCRIPTORS_EACH + DESCRIPTORS_ELSE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fitting = most if soft == resource.RLIM_INFINITY else max(4, (soft - DESCRIPTORS_ELSE) // DESCRIPTORS_EACH)
    if fitting < most:
        _log.warning("few file descriptors", limit=soft, connections=fitting, wanted=most)
    return min(most, fitting)


class GatedSocket(socket.socket):
    """A listening socket whose accepted connections have a place among `connections`, from before any TLS on."""

    connections: Connections
    by_descriptor: dict[int, Connection]

    @classmethod
    def of(cls, listening: socket.socket, connections: Connections) -> GatedSocket:
        """Takes the listening socket over."""
        made = cls(listening.family, listening.type, listening.proto, listening.detach())
        made.connections, made.by_descriptor = connections, {}
        return made

    def listen(self, backlog: int = 0) -> None:
        """With room for many that wait: an event loop takes `backlog` for how many it accepts before it reads any."""
        super().listen(_WAITING)

    def accept(self) -> tuple[socket.socket, tuple[object, ...]]:
        """The next connection that is let in. Raises what `socket.accept` raises where none waits."""
        while True:
            descriptor, address = self._accept()  # type: ignore[attr-defined]
            accepted = _Accepted(self.family, self.type, self.proto, fileno=descriptor)
            accepted.gate = self
            shown = f"[{address[0]}]:{address[1]}" if self.family == socket.AF_INET6 else f"{address[0]}:{address[1]}"
            place = self.connections.admit(shown, accepted.end)
            if place is None:
                accepted.close()
                continue
            accepted.place = self.by_descriptor[descriptor] = place
            if self.gettimeout() is None:
                accepted.setblocking(True)
            return accepted, address

    def place_of(self, connection: socket.socket) -> Connection | None:
        """The place of one that was accepted here."""
        return self.by_descriptor.get(connection.fileno())


class _Accepted(socket.socket):
    gate: GatedSocket | None = None
    place: Connection | None = None

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)  # whoever reads it finds its end

    def close(self) -> None:
        if self.gate is not None and self.place is not None:
            self.gate.connections.leave(self.place)
            if self.gate.by_descriptor.get(self.fileno()) is self.place:
                del self.gate.by_descriptor[self.fileno()]
        super().close()
