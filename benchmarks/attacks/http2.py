"""Just enough HTTP/2 to begin a gRPC call and never end it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

_SETTINGS, _HEADERS, _DATA, _WINDOW = 4, 1, 0, 8
_INITIAL_WINDOW = 4  # a name of SETTINGS
_FRAME_BYTES = 16_384


def opened(address: tuple[str, int], timeout_s: float = 5.0, window: int | None = None) -> socket.socket:
    """A connection that has said hello, and that it takes `window` bytes of each stream at first."""
    made = socket.create_connection(address, timeout=timeout_s)
    asked = b"" if window is None else struct.pack(">HI", _INITIAL_WINDOW, window)
    hello = frame(_SETTINGS, 0, 0, asked) + frame(_SETTINGS, 1, 0, b"")
    made.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + hello)
    return made


def asked(method: str, stream: int, message: bytes, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A whole call of one message."""
    return call(method, stream, headers) + message_of(stream, message) + frame(_DATA, 1, stream, b"")


def message_of(stream: int, message: bytes) -> bytes:
    """A small message of a call that goes on."""
    return frame(_DATA, 0, stream, b"\0" + struct.pack(">I", len(message)) + message)


def widened(stream: int, by: int) -> bytes:
    """So many bytes more are taken of a stream."""
    return frame(_WINDOW, 0, stream, struct.pack(">I", by))


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def call(method: str, stream: int, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """The headers of a call."""
    fields = (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()), (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        *((name.encode(), value.encode()) for name, value in headers),
    )  # fmt: skip
    block = b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)
    return frame(_HEADERS, 4, stream, block)


def half_sent(connection: socket.socket, method: str, announced: int, sent: int, stream: int = 1) -> int:
    """Begin a call whose message is announced as so long, and send so much of it; the bytes that were taken."""
    connection.sendall(call(method, stream))
    waiting = b"\0" + struct.pack(">I", announced)
    taken, window, of_all, incoming = 0, 65_535, 65_535, b""
    zeros = bytes(_FRAME_BYTES)
    try:
        while taken < sent:
            if min(window, of_all) > 0:
                piece = (waiting + zeros)[: min(_FRAME_BYTES, window, of_all)]
                waiting = b""
                connection.sendall(frame(_DATA, 0, stream, piece))
                window, of_all, taken = window - len(piece), of_all - len(piece), taken + len(piece)
                continue
            incoming += connection.recv(65_536) or _ended()
            incoming, more, more_of_all = _windows(incoming, stream)
            window, of_all = window + more, of_all + more_of_all
    except OSError:
        pass
    return taken


def _ended() -> bytes:
    raise OSError("the other end closed the connection")


def _windows(incoming: bytes, stream: int) -> tuple[bytes, int, int]:
    """What is left of the frames that came, and what they added to the windows of the stream and of all."""
    more = more_of_all = 0
    while len(incoming) >= 9:
        length = int.from_bytes(incoming[:3], "big")
        if len(incoming) < 9 + length:
            break
        kind, number = incoming[3], int.from_bytes(incoming[5:9], "big")
        if kind == _WINDOW and number == stream:
            more += int.from_bytes(incoming[9:13], "big")
        if kind == _WINDOW and number == 0:
            more_of_all += int.from_bytes(incoming[9:13], "big")
        if kind == 3 and number == stream:
            _ended()
        incoming = incoming[9 + length :]
    return incoming, more, more_of_all
