"""Transport of messages between the front and an engine over a local socket pair.

What a message looks like as bytes is `wire`'s. Large messages travel in parts, between which small ones pass: a clip on
its way holds up no plan.

    part := number, total bytes of its message, bytes of this part (0 takes the message back), bytes
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from collections.abc import Iterator

from server.engine.messages import FromEngine, ToEngine
from server.engine.serialization import pack, unpack

_PART = struct.Struct("<IQI")
_AT_ONCE = 4 * 1024 * 1024  # a message up to this size is one part, handed to the socket in one go: a millisecond
_PART_BYTES = 512 * 1024
_NUMBERS = 1 << 32


class Assembly:
    """Messages of which only some parts have arrived."""

    def __init__(self) -> None:
        self._partial: dict[int, bytearray] = {}

    def add(self, header: bytes | bytearray, part: bytes | bytearray) -> ToEngine | FromEngine | None:
        """Take a part; the message it completes, if it does."""
        number, total, length = _PART.unpack(header)
        if length == 0:
            self._partial.pop(number, None)
            return None
        if length == total:
            return unpack(part if isinstance(part, bytearray) else bytearray(part))
        content = self._partial.setdefault(number, bytearray())
        content += part
        if len(content) < total:
            return None
        del self._partial[number]
        return unpack(content)


class FrontChannel:
    """The front's end: never blocks the event loop, neither to write nor to read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._assembly = Assembly()
        self._number = 0
        self._large = asyncio.Lock()  # one large message at a time

    @classmethod
    async def open(cls, end: socket.socket) -> FrontChannel:
        return cls(*await asyncio.open_connection(sock=end, limit=_AT_ONCE))

    def send(self, message: ToEngine) -> asyncio.Task[None] | None:
        """Hand over a message; what the socket does not take now is sent when it can. Lost if the engine is gone.

        A large message is sent by the task returned; cancelling that takes the message back.
        """
        if self._writer.is_closing():
            return None
        pieces = pack(message)
        total = sum(len(piece) for piece in pieces)
        self._number = (self._number + 1) % _NUMBERS
        if total > _AT_ONCE:
            return asyncio.create_task(self._send_in_parts(self._number, total, pieces))
        self._writer.write(b"".join([_PART.pack(self._number, total, total), *pieces]))
        return None

    async def receive(self) -> FromEngine | None:
        """The next message; None once the engine is gone."""
        while True:
            try:
                header = await self._reader.readexactly(_PART.size)
                part = await self._reader.readexactly(_PART.unpack(header)[2])
            except (asyncio.IncompleteReadError, OSError):
                return None
            message = self._assembly.add(header, part)
            if message is not None:
                return message  # type: ignore[return-value]  # an engine sends nothing else

    def close(self) -> None:
        self._writer.close()

    async def _send_in_parts(self, number: int, total: int, pieces: list[memoryview]) -> None:
        async with self._large:
            try:
                for part in _parts(pieces):
                    self._writer.write(_PART.pack(number, total, len(part)) + part)
                    await self._writer.drain()
            except asyncio.CancelledError:
                self._writer.write(_PART.pack(number, total, 0))
                raise
            except OSError:  # the engine is gone; whoever waits for its answer is told elsewhere
                return


class EngineChannel:
    """The engine's end: blocking, since an engine does one thing at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(True)
        self._assembly = Assembly()
        self._number = 0
        self._sending = threading.Lock()

    def send(self, message: FromEngine) -> None:
        """From any thread. Raises OSError once the front is gone."""
        pieces = pack(message)
        total = sum(len(piece) for piece in pieces)
        with self._sending:
            self._number = (self._number + 1) % _NUMBERS
            if total <= _AT_ONCE:
                self._end.sendall(b"".join([_PART.pack(self._number, total, total), *pieces]))
                return
            for part in _parts(pieces):
                self._end.sendall(_PART.pack(self._number, total, len(part)) + part)

    def receive(self, wait_s: float | None) -> list[ToEngine] | None:
        """The messages here, waiting up to `wait_s` (None: for ever) for something to arrive; None once the front left.

        Reads only so much at once; the rest of a large message is left for the next call.
        """
        messages: list[ToEngine] = []
        read = 0
        while read < _AT_ONCE and select.select([self._end], [], [], 0.0 if read else wait_s)[0]:
            header = self._exactly(_PART.size)
            length = _PART.unpack(header)[2] if header else 0
            part = self._exactly(length)
            if not header or len(part) < length:
                return None
            read += len(header) + len(part)
            message = self._assembly.add(header, part)
            if message is not None:
                messages.append(message)  # type: ignore[arg-type]  # the front sends nothing else
        return messages

    def close(self) -> None:
        self._end.close()

    def _exactly(self, count: int) -> bytearray:
        """`count` bytes, or none at all where the other end closed."""
        content = bytearray(count)
        view, read = memoryview(content), 0
        while read < count:
            try:
                found = self._end.recv_into(view[read:])
            except ConnectionError:
                found = 0
            if not found:
                return bytearray()
            read += found
        return content


def _parts(pieces: list[memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        for begin in range(0, len(piece), _PART_BYTES):
            yield piece[begin : begin + _PART_BYTES]
