"""The port of gRPC, in front of its server: connections within limits, and few bytes of whoever is not known yet.

gRPC's own server counts connections of all addresses together and refuses the newest; and it takes in as large a
message as a call may have before it knows what the call is. So connections are accepted here, like those of REST, and
their bytes handed on as they are, TLS too, over a socket that nobody else can reach. Until a call on a connection has
been let in, its bytes are handed on slowly: as many as health checks need.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import tempfile

from server.transport.connections import Connection, Connections, GatedSocket

STRANGERS_BYTES = 128 * 1024  # of a connection that no call was let in on, at once
STRANGERS_RATE = 32 * 1024  # and bytes per second after that
_HELD_BYTES = 256 * 1024  # on their way to one side, until the other is told to wait


class Relay:
    """A listening socket, and the address of the server behind it."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._folder = tempfile.mkdtemp(prefix="presage-grpc-")  # for its owner alone
        self._numbers = itertools.count()
        self._outer: dict[str, _Outer] = {}  # by the address that the server sees
        self._server: asyncio.Server | None = None

    @property
    def inner_path(self) -> str:
        """Where the server listens."""
        return os.path.join(self._folder, "server")

    async def listen(self, listening: socket.socket) -> None:
        """Take connections from now on; the socket is this relay's."""
        gate = GatedSocket.of(listening, self.connections)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Outer(self, gate), sock=gate, backlog=512)

    async def close(self) -> None:
        """Take no more connections, and end those there are."""
        if self._server is not None:
            self._server.close()
        for outer in list(self._outer.values()):
            outer.transport.abort()
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
        if self._outer.pop(f"unix:{outer.name}", None) is not None:
            os.unlink(outer.name)


class _Half(asyncio.BufferedProtocol):
    """One end of a connection; bytes go to the other half."""

    transport: asyncio.Transport
    other: _Half | None = None

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(64 * 1024))
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
        super().__init__()
        self._relay, self._gate = relay, gate
        self._loop = asyncio.get_running_loop()
        self._left, self._since = float(STRANGERS_BYTES), self._loop.time()
        self._alarm: asyncio.TimerHandle | None = None
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
        if self.place.is_known:
            return
        self._left = min(STRANGERS_BYTES, self._left + STRANGERS_RATE * (now - self._since)) - nbytes
        self._since = now
        if self._left < 0:
            self.transport.pause_reading()
            self._alarm = self._loop.call_later(-self._left / STRANGERS_RATE + 0.01, self.resume_reading)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._connecting.cancel()
        if self._alarm is not None:
            self._alarm.cancel()
        self._relay.leave(self)

    async def _connect(self) -> None:
        try:
            inner = self._relay.connect(self)
            await self._loop.sock_connect(inner, self._relay.inner_path)
            _, half = await self._loop.create_connection(_Half, sock=inner)
        except OSError:
            self.transport.abort()
            return
        self.other, half.other = half, self
        self.resume_reading()
