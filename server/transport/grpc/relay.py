"""The port of gRPC, in front of its server: connections within limits, and few bytes of whoever is not known yet.

gRPC's own server counts connections of all addresses together and refuses the newest; and it takes in as large a
message as a call may have before it knows what the call is. So connections are accepted here, like those of REST, and
their bytes handed on as they are, TLS too, over a socket that nobody else can reach. Until a call on a connection has
been let in, its bytes are handed on slowly: as many as health checks need.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import tempfile

from server.transport.callers.connections import AT_ONCE, Connection, Connections, GatedSocket

STRANGERS_BYTES = 128 * 1024  # of a connection that no call was let in on, at once
STRANGERS_RATE = 32 * 1024  # and bytes per second after that
PARTYS_BYTES = 32 * 2**20  # of all connections of one address, at once
PARTYS_RATE = 64 * 2**20  # and bytes per second after that: a whole clip in four seconds
_PARTIES = 4096
_HELD_BYTES = 256 * 1024  # on their way to one side, until the other is told to wait


class Relay:
    """A listening socket, and the address of the server behind it."""

    def __init__(self, connections: Connections, stalled_s: float = 30.0) -> None:
        """`stalled_s`: how long a caller may take nothing of what is sent to it."""
        self.connections, self.stalled_s = connections, stalled_s
        self._folder = ""
        self.buffer = memoryview(bytearray(256 * 1024))
        self._numbers = itertools.count()
        self._outer: dict[str, _Outer] = {}  # by the address that the server sees
        self._allowances: dict[str, _Allowance] = {}
        self._server: asyncio.Server | None = None

    @property
    def inner_path(self) -> str:
        """Where the server listens: in a folder for its owner alone, which is there from now on."""
        self._folder = self._folder or tempfile.mkdtemp(prefix="presage-grpc-")
        return os.path.join(self._folder, "server")

    async def listen(self, listening: socket.socket) -> None:
        """Take connections from now on; the socket is this relay's."""
        gate = GatedSocket.of(listening, self.connections)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Outer(self, gate), sock=gate, backlog=AT_ONCE)

    async def close(self) -> None:
        """Take no more connections, and end those there are."""
        if self._server is not None:
            self._server.close()
        for outer in list(self._outer.values()):
            outer.transport.abort()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def peer(self, seen: str) -> str:
        """The address of a caller that the server sees as this one."""
        outer = self._outer.get(seen)
        return seen if outer is None else outer.address

    def recognize(self, seen: str) -> Connection | None:
        """A call is let in on this connection: its bytes are handed on as they come."""
        outer = self._outer.get(seen)
        if outer is None or outer.place is None:
            return None
        if not outer.place.is_known:
            outer.place.is_known = True
            outer.resume_reading()
        return outer.place

    def end(self, seen: str) -> None:
        """Close a caller's connection, whatever is going on over it."""
        outer = self._outer.get(seen)
        if outer is not None:
            outer.transport.abort()

    def allowance(self, party: str) -> _Allowance:
        """Of all connections of one address that calls were let in on."""
        found = self._allowances.pop(party, None) or _Allowance(PARTYS_BYTES, PARTYS_RATE)
        self._allowances[party] = found  # the latest last
        if len(self._allowances) > _PARTIES:
            del self._allowances[next(iter(self._allowances))]
        return found

    def connect(self, outer: _Outer) -> socket.socket:
        """A socket to the server, whose own name is how the server will know the caller."""
        name = os.path.join(self._folder, str(next(self._numbers)))
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        inner.setblocking(False)
        inner.bind(name)
        self._outer[f"unix:{name}"] = outer
        outer.name = name
        return inner

    def leave(self, outer: _Outer) -> None:
        """It is closed."""
        if self._outer.pop(f"unix:{outer.name}", None) is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(outer.name)


class _Allowance:
    """Bytes that may come at once, and bytes per second after that."""

    def __init__(self, most: float, rate: float) -> None:
        self._most, self._rate, self._left, self._since = most, rate, most, 0.0

    def take(self, size: int, now: float) -> float:
        """Seconds to wait after so many more."""
        self._left = min(self._most, self._left + self._rate * (now - self._since)) - size
        self._since = now
        return max(0.0, -self._left / self._rate)


class _Half(asyncio.BufferedProtocol):
    """One end of a connection; bytes go to the other half."""

    transport: asyncio.Transport
    other: _Half | None = None

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer  # of all connections: what is read into it is handed on at once
        self._waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_HELD_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.other is not None:
            self.other.transport.write(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.wait(True)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.wait(False)

    def wait(self, waits: bool) -> None:
        """Read nothing meanwhile."""
        self._waits = waits
        if waits:
            self.transport.pause_reading()
        else:
            self.resume_reading()

    def resume_reading(self) -> None:
        if not self._waits and not self.transport.is_closing():
            self.transport.resume_reading()


class _Outer(_Half):
    """The end toward a caller."""

    def __init__(self, relay: Relay, gate: GatedSocket) -> None:
        super().__init__(relay.buffer)
        self._relay, self._gate = relay, gate
        self._loop = asyncio.get_running_loop()
        self._strangers = _Allowance(STRANGERS_BYTES, STRANGERS_RATE)
        self._alarm: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self.address, self.name = "", ""
        self.place: Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.place = self._gate.place_of(transport.get_extra_info("socket"))
        self.address = self.place.address if self.place is not None else ""
        self.transport.pause_reading()  # until the server is there to read
        self._connecting = self._loop.create_task(self._connect())

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        if self.place is None:
            return
        now = self._loop.time()
        self.place.spoke = now
        allowance = self._relay.allowance(self.place.party) if self.place.is_known else self._strangers
        pause_s = allowance.take(nbytes, now)
        if pause_s:
            self.transport.pause_reading()
            self._alarm = self._loop.call_later(pause_s + 0.01, self.resume_reading)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self._loop.call_later(self._relay.stalled_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._connecting.cancel()
        if self._stalled is not None:
            self._stalled.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        self._relay.leave(self)

    async def _connect(self) -> None:
        try:
            inner = self._relay.connect(self)
            await self._loop.sock_connect(inner, self._relay.inner_path)
            _, half = await self._loop.create_connection(lambda: _Half(self._buffer), sock=inner)
        except OSError:
            self.transport.abort()
            return
        self.other, half.other = half, self
        self.resume_reading()
