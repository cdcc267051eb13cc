"""WebSocket within limits while a message arrives: its time, its fragments, and what all unfinished ones hold."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from server.config import Limits

UNFINISHED_BYTES = 64 * 2**20  # of messages of all connections that are not whole yet
_SMALL_BYTES = 2**20  # an unfinished message of fewer is never in the way
_FRAGMENTS = 1024  # of a message


def bounded(limits: Limits) -> type[asyncio.Protocol]:
    """The class of a connection's protocol."""
    return type("BoundedWebSocket", (_Bounded,), {"message_s": limits.message_s, "unfinished": {}})


class _Bounded(WebSocketsSansIOProtocol):
    message_s: float
    unfinished: dict[_Bounded, int]  # bytes, by connection; of all connections of a service
    _alarm: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        conn: Any = self.conn
        held = len(conn.reader.buffer) + sum(len(frame) for frame in self.frames)
        if not held:
            self._whole()
            return
        if held < self.unfinished.get(self, 0):  # that message was whole, and this is the next
            self._whole()
        self.unfinished[self] = held
        self._alarm = self._alarm or asyncio.get_running_loop().call_later(self.message_s, self.transport.abort)
        if held > _SMALL_BYTES and sum(self.unfinished.values()) > UNFINISHED_BYTES:
            self._whole()
            self.transport.abort()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < _FRAGMENTS:  # counted one by one: many may arrive at once, and end the message
            super().handle_cont(event)
        else:
            self._whole()
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._whole()
        super().connection_lost(exc)

    def _whole(self) -> None:
        self.unfinished.pop(self, None)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
