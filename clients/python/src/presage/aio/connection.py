"""Sends calls over one grpc.aio channel, with deadlines and retries."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Awaitable, Callable, TypeVar

import grpc.aio

from presage.aio.control import AsyncControlLoop
from presage.connection import Connection, read_reply
from presage.errors import Cancelled
from presage.protocol import arguments
from presage.protocol.conversation import ControlSettings
from presage.protocol.memory import Calls, GoalMemory, SequenceCounter, SessionMemory
from presage.protocol.methods import Call, Method
from presage.protocol.retry import Attempts
from presage.protocol.transport import Endpoint, Metadata
from presage.protocol.upload import ClipUpload, Progress

Value = TypeVar("Value")


class AsyncConnection:
    """One server. The channel belongs to the event loop of the first call."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self.endpoint, self.timeout_s = endpoint, arguments.number("timeout_s", timeout_s)
        self.goals = GoalMemory()
        self._opened: grpc.aio.Channel | None = None
        self._senders: dict[str, Any] = {}
        self._loops: weakref.WeakSet[AsyncControlLoop] = weakref.WeakSet()
        self._uploads: set[Connection] = set()
        self._closed = False

    async def send(self, call: Call[Value], timeout_s: float | None = None) -> Value:
        """The reply's value. Raises a PresageError."""
        channel = self._channel()
        if call.path not in self._senders:
            self._senders[call.path] = channel.unary_unary(call.path)
        sender = self._senders[call.path]

        async def attempt(remaining_s: float, metadata: Metadata) -> bytes:
            reply: bytes = await sender(call.payload, timeout=remaining_s, metadata=metadata)
            return reply

        reply = await self._repeat(attempt, call.repeatable, timeout_s, call.request_id)
        return read_reply(call.read, reply, call.request_id)

    async def follow(self, calls: Calls[Value]) -> Value:
        """As `Connection.follow`."""
        reply: Any = None
        while True:
            try:
                call = calls.send(reply)
            except StopIteration as end:
                result: Value = end.value
                return result
            reply = await self.send(call)

    async def upload(
        self,
        clip: ClipUpload,
        method: Method[Any, Any],
        read: Callable[[bytes], Value],
        progress: Progress | None,
        timeout_s: float,
    ) -> Value:
        """Sends a clip from a thread. Raises a PresageError, or what reading the file or `progress` raised.

        Over a blocking channel: grpc.aio (1.70, for one) loses the status of a call that the server ends while a
        message is being written, and reading a file would hold up the event loop.
        """
        self._check_open()
        blocking = Connection(self.endpoint, self.timeout_s)
        self._uploads.add(blocking)
        try:
            return await in_thread(lambda: blocking.upload(clip, method, read, progress, timeout_s))
        finally:
            blocking.close()  # which also ends the thread where this task was cancelled
            self._uploads.discard(blocking)

    def control(self, settings: ControlSettings, memory: SessionMemory, sequences: SequenceCounter) -> AsyncControlLoop:
        """A control loop that ends with this connection at the latest."""
        self._check_open()
        loop = AsyncControlLoop(
            self.endpoint, settings, sequences, memory, lambda lost_id: self.follow(memory.remade(lost_id))
        )
        self._loops.add(loop)
        return loop

    async def close_loops(self, session_id: str | None = None) -> None:
        """Ends the control loops of one session, or all of them."""
        for loop in list(self._loops):
            if session_id in (None, loop.session_id):
                await loop.close()

    async def close(self) -> None:
        """Ends every loop and call in progress."""
        self._closed = True
        for blocking in self._uploads:
            blocking.close()
        await self.close_loops()
        if self._opened is not None:
            await self._opened.close()
        self._opened = None  # with the last channel of a process, grpc.aio's own thread goes too
        self._senders.clear()

    async def _repeat(
        self,
        attempt: Callable[[float, Metadata], Awaitable[bytes]],
        repeatable: bool,
        timeout_s: float | None,
        request_id: str,
    ) -> bytes:
        attempts = Attempts(self.timeout_s if timeout_s is None else timeout_s, repeatable)
        while True:
            self._check_open()
            left_s = attempts.remaining_s()
            try:
                return await attempt(left_s, self.endpoint.metadata(request_id, left_s))
            except grpc.aio.AioRpcError as failed:
                error = self.endpoint.error(failed, request_id)
                pause = attempts.pause_s(error)
                if pause is None:
                    raise error from failed
            except asyncio.CancelledError:
                self._check_open()  # close() ends calls in progress the way a task is cancelled
                raise
            await asyncio.sleep(pause)

    def _channel(self) -> grpc.aio.Channel:
        self._check_open()
        if self._opened is None:
            self._opened = self.endpoint.open_async_channel()
        return self._opened

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("this client is closed", reason="CLOSED")


async def in_thread(work: Callable[[], Value]) -> Value:
    """What `work` returns, without holding up the event loop meanwhile."""
    return await asyncio.get_event_loop().run_in_executor(None, work)
