"""HTTP/1.1 within limits, before any request is admitted: head, trailers, time, and what is read after an answer.

uvicorn's protocol, which has none of them, with each. Its other parser, h11, counts bytes itself.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, cast

from server.config import Limits
from server.errors import Reason, ServiceError, invalid
from server.transport.callers.connections import Connection, GatedSocket
from server.transport.error_replies import PROBLEM_JSON, to_problem
from server.transport.gateway import checked_request_id

_PIPELINED = 16  # requests of one connection that wait for the one before
_AFTER_ANSWER_BYTES, _AFTER_ANSWER_S = 2**20, 2.0  # read of a request that was answered before it was whole
_CHUNKS = 16  # bytes of framing for each byte of a body in tiny chunks


def http_protocol(limits: Limits, gate: GatedSocket) -> type[asyncio.Protocol]:
    """The class of a connection's protocol."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        return type("BoundedH11", (_Timed, H11Protocol), {"limits": limits, "gate": gate})

    return type("BoundedHttpTools", (_Bounded, _Timed, HttpToolsProtocol), {"limits": limits, "gate": gate})


class _Timed:
    """Time to send a head in, and to take a reply in; a place among the connections."""

    limits: Limits
    gate: GatedSocket
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any
    conn: Any

    place: Connection | None = None
    _head_alarm: asyncio.TimerHandle | None = None
    _write_alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        accepted: socket.socket | None = transport.get_extra_info("socket")
        self.place = self.gate.place_of(accepted) if accepted is not None else None
        if self.place is not None:
            self.place.is_busy = self._is_busy
        self._expect_head()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop("_head_alarm")
        self._stop("_write_alarm")
        super().connection_lost(error)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]
        if self._is_busy():
            self._stop("_head_alarm")
            if self.place is not None:
                self.place.requests, self.place.spoke = self.place.requests + 1, self.loop.time()
        elif self._head_alarm is None and not self.transport.is_closing() and self._has_begun():
            self._expect_head()

    def _is_busy(self) -> bool:
        """Whether a call is in progress, or a conversation by another protocol."""
        cycle, protocol = self.cycle, cast(object, self.transport.get_protocol())
        return (cycle is not None and not cycle.response_complete) or protocol is not self

    def _has_begun(self) -> bool:
        """Whether a part of a head is here. As h11 has it."""
        return bool(self.conn.trailing_data[0])

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._write_alarm = self._write_alarm or self.loop.call_later(self.limits.stalled_s, self._abort)

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        self._stop("_write_alarm")

    def _expect_head(self) -> None:
        self._head_alarm = self.loop.call_later(self.limits.header_s, self._abort)

    def _stop(self, name: str) -> None:
        alarm = getattr(self, name)
        if alarm is not None:
            alarm.cancel()
            setattr(self, name, None)

    def _abort(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


class _Bounded(_Timed):
    """Bytes and number of headers, bytes of the path, trailers, requests in a row, and what follows an answer."""

    headers: list[tuple[bytes, bytes]]
    url: bytes
    pipeline: Any

    _refusal: ServiceError | None = None
    _in_head = True
    _head_bytes = 0
    _body_bytes = 0
    _framing_bytes = 0
    _trailers = 0
    _left_after_answer: int | None = None
    _after_answer_alarm: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        if self._left_after_answer is not None:
            self._left_after_answer -= len(data)
            if self._left_after_answer < 0:
                self.transport.close()
                return
        was_in_head, body = self._in_head, self._body_bytes
        if was_in_head and self._head_bytes > self.limits.header_bytes:
            return self._refuse(_too_large("headers", self.limits.header_bytes, "bytes"))
        self._head_bytes += len(data) if was_in_head else 0
        super().data_received(data)
        if self._refusal is not None:
            return self._refuse(self._refusal)
        if self._in_head and was_in_head and self._head_bytes > self.limits.header_bytes:
            return self._refuse(_too_large("headers", self.limits.header_bytes, "bytes"))
        if not was_in_head and not self._in_head:
            self._framing_bytes += len(data) - (self._body_bytes - body)
            if self._framing_bytes > self.limits.header_bytes + _CHUNKS * self._body_bytes:
                self.transport.close()  # trailers without end, or chunks that say more of themselves than they hold

    def _has_begun(self) -> bool:
        return self._in_head and self._head_bytes > 0

    def connection_lost(self, error: Exception | None) -> None:
        self._stop("_after_answer_alarm")
        super().connection_lost(error)

    # Of the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()  # type: ignore[misc]
        self._in_head, self._trailers, self._body_bytes, self._framing_bytes = True, 0, 0, 0

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > self.limits.path_bytes:
            self._refusal = _too_large("path", self.limits.path_bytes, "bytes")
            return
        super().on_url(url)  # type: ignore[misc]

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._trailers += 1  # nothing here reads one
            if self._trailers > self.limits.headers:
                self._refusal = _too_large("trailers", self.limits.headers, "entries")
            return
        if len(self.headers) >= self.limits.headers:
            self._refusal = _too_large("headers", self.limits.headers, "entries")
            return
        super().on_header(name, value)  # type: ignore[misc]

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            self._refusal = self._refusal or _too_large("headers", self.limits.header_bytes, "bytes")
        if len(self.pipeline) >= _PIPELINED:
            self._refusal = self._refusal or _too_large("requests in a row", _PIPELINED, "entries")
        self._in_head, self._head_bytes = False, 0
        if self._refusal is None:
            super().on_headers_complete()  # type: ignore[misc]

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._refusal is None:
            super().on_body(body)  # type: ignore[misc]

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._left_after_answer = None
        self._stop("_after_answer_alarm")
        if self._refusal is None:
            super().on_message_complete()  # type: ignore[misc]

    # Of the answer

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        if not self._in_head and not self.transport.is_closing():  # answered before the request was whole
            self._left_after_answer = _AFTER_ANSWER_BYTES
            self._after_answer_alarm = self.loop.call_later(_AFTER_ANSWER_S, self._abort)

    def _refuse(self, error: ServiceError) -> None:
        """Answer and close, where nothing of an answer is out yet."""
        self._refusal = error
        if self.cycle is None or self.cycle.response_complete:
            request_id = checked_request_id(None)
            content = json.dumps(to_problem(error, request_id)).encode()
            head = (
                f"HTTP/1.1 {error.reason.fault.http_status} Refused\r\nContent-Type: {PROBLEM_JSON}\r\n"
                f"Content-Length: {len(content)}\r\nX-Request-Id: {request_id}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + content)
        self.transport.close()


def _too_large(field: str, most: int, unit: str) -> ServiceError:
    return invalid(field, f"must have at most {most} {unit}", "more", Reason.HEAD_TOO_LARGE)
