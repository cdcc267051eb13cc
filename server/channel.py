"""The wire between the front and an engine: whole messages over a local socket pair, both ends ours.

Messages are pickled, which is safe here and only here: the socket has no name, and its other end is a process that this
one started. Nothing that a client sends is ever unpickled.
"""

from __future__ import annotations

import asyncio
import pickle
import select
import socket
import struct

from server.jobs import FromEngine, ToEngine

_LENGTH = struct.Struct("<Q")
_READ_AHEAD = 4 * 1024 * 1024  # bytes the front buffers before it makes the engine wait


def encode(message: ToEngine | FromEngine) -> bytes:
    """A message with its length in front."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class FrontChannel:
    """The front's end: never blocks the event loop, neither to write nor to read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, end: socket.socket) -> FrontChannel:
        return cls(*await asyncio.open_connection(sock=end, limit=_READ_AHEAD))

    def send(self, message: ToEngine) -> None:
        """Hand over a message; what the socket does not take now is sent when it can. Lost if the engine is gone."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def receive(self) -> FromEngine | None:
        """The next message; None once the engine is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            message: FromEngine = pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None
        return message

    def close(self) -> None:
        self._writer.close()


class EngineChannel:
    """The engine's end: blocking, since an engine does one thing at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(True)

    def send(self, message: FromEngine) -> None:
        """Raises OSError once the front is gone."""
        self._end.sendall(encode(message))

    def receive(self, wait_s: float | None) -> list[ToEngine] | None:
        """Every message that has arrived, waiting up to `wait_s` (None: for ever) for the first; None: the front left."""
        messages: list[ToEngine] = []
        while self._readable(wait_s if not messages else 0.0):
            message = self._receive_one()
            if message is None:
                return None
            messages.append(message)
        return messages

    def _readable(self, wait_s: float | None) -> bool:
        return bool(select.select([self._end], [], [], wait_s)[0])

    def _receive_one(self) -> ToEngine | None:
        header = self._exactly(_LENGTH.size)
        body = self._exactly(_LENGTH.unpack(header)[0]) if header else b""
        if not body:
            return None
        message: ToEngine = pickle.loads(body)
        return message

    def _exactly(self, count: int) -> bytes:
        """`count` bytes, or none at all where the other end closed."""
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._end.recv(min(count - len(parts), 1 << 20))
            except ConnectionError:
                return b""
            if not part:
                return b""
            parts += part
        return bytes(parts)
