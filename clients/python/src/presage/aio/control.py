"""The control loop for asyncio programs. The protocol's logic is in `protocol.conversation`."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Mapping, Sequence

import grpc.aio

from presage.errors import PresageError, Unavailable
from presage.protocol import arguments, codec, methods
from presage.protocol.conversation import ControlSettings, Conversation
from presage.protocol.memory import SequenceCounter, SessionMemory
from presage.protocol.requests import Seen
from presage.protocol.transport import Endpoint
from presage.values import ControlPlan, FailedObservation, Goal

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import ArrayLike


LOST_STATUS = "Internal error from Core"
"""What grpc.aio says in place of the status of a stream that the server ends while a message is being written."""


class AsyncControlLoop:
    """Closes a control loop with the server. Made by `session.control()`; an async context manager.

    As ControlLoop, with everything called from the event loop it was made on: only `wait` and `close` are awaited.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: ControlSettings,
        sequences: SequenceCounter,
        memory: SessionMemory,
        remake: Callable[[str], Awaitable[Mapping[str, str]]],
    ) -> None:
        """As `ControlLoop`."""
        self._endpoint, self._memory, self._remake = endpoint, memory, remake
        self._conversation = Conversation(settings, sequences)
        self._news = asyncio.Event()
        self._closing = False
        self._task = asyncio.ensure_future(self._run())

    def send(
        self,
        seen: Seen,
        proprioception: Sequence[float] | None = None,
        executed: int = 0,
        committed: int = 0,
        seed: int | None = None,
        plan: ControlPlan | None = None,
        previous_action: ArrayLike | None = None,
    ) -> int:
        """As `ControlLoop.send`."""
        observation = codec.as_observation(seen, proprioception)
        now = time.monotonic()
        sequence = self._conversation.offer(observation, executed, committed, seed, plan, now, previous_action)
        self._tell()
        return sequence

    def set_goal(self, goal: Goal | str) -> None:
        """As `ControlLoop.set_goal`."""
        self._memory.choose(codec.goal_id(goal))
        self._conversation.swap_goal(codec.goal_id(goal))
        self._tell()

    def latest(self) -> ControlPlan | None:
        """The newest plan; None before the first."""
        return self._conversation.latest

    async def wait(self, timeout_s: float, sequence: int | None = None) -> ControlPlan | None:
        """As `ControlLoop.wait`."""
        deadline = time.monotonic() + arguments.number("timeout_s", timeout_s)
        wanted = self._conversation.newest if sequence is None else sequence
        while not self._closing:
            plan = self._conversation.outcome(wanted)
            left = deadline - time.monotonic()
            if plan is not None or left <= 0:
                return plan
            await self._wait_for_news(left)
        return None

    def errors(self) -> tuple[FailedObservation, ...]:
        """What failed since the last call, oldest first; 64 are kept."""
        return self._conversation.take_errors()

    @property
    def session_id(self) -> str:
        """As `ControlLoop.session_id`."""
        return self._memory.session_id

    @property
    def execute(self) -> int:
        """As `ControlLoop.execute`."""
        return self._memory.execute

    @property
    def restored(self) -> int:
        """As `ControlLoop.restored`."""
        return self._conversation.restored

    @property
    def connected(self) -> bool:
        """Whether the server has answered on the present stream."""
        return self._conversation.connected

    @property
    def trouble(self) -> PresageError | None:
        """What broke the last stream, until a new one stands."""
        return self._conversation.trouble

    async def close(self) -> None:
        """Ends the stream. The session stays. May be called twice."""
        self._closing = True
        self._tell()
        await self._task

    async def __aenter__(self) -> AsyncControlLoop:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncControlLoop({self._endpoint.address!r}, session {self.session_id!r})"

    def _tell(self) -> None:
        """Wakes everyone who waits for news, each of whom waits on the event of the time."""
        self._news.set()
        self._news = asyncio.Event()

    async def _wait_for_news(self, timeout_s: float) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), timeout_s)

    async def _run(self) -> None:
        while not self._closing:
            error = await self._converse()
            pause = self._conversation.end(error)
            self._tell()
            if self._conversation.session_lost and not self._closing:
                pause = await self._restore()
            if pause is None:
                return
            until = time.monotonic() + pause
            while not self._closing and time.monotonic() < until:
                await self._wait_for_news(until - time.monotonic())

    async def _restore(self) -> float | None:
        """As `ControlLoop._restore`."""
        try:
            renamed = await self._remake(self._conversation.session_id)
        except PresageError as error:
            pause = self._conversation.end(error)
            self._tell()
            return pause
        self._conversation.adopt(self._memory.session_id, renamed)
        return 0.0

    async def _converse(self) -> PresageError | None:
        """One stream from start to end, and what ended it."""
        request_id = methods.new_request_id()
        # A channel of its own, anew for each stream: a stalled connection is left, not reused.
        channel = self._endpoint.open_async_channel()
        start = self._conversation.begin(time.monotonic())
        call: Any = channel.stream_stream(methods.CONTROL.path)(metadata=self._endpoint.metadata(request_id))
        reader = asyncio.ensure_future(self._read(call, request_id))
        reader.add_done_callback(lambda done: self._tell())
        writer = asyncio.ensure_future(self._write(call, start, reader))
        error: PresageError | None = None
        try:
            while not (self._closing or reader.done() or self._conversation.fatal is not None):
                left = self._conversation.silence_left_s(time.monotonic())
                if left <= 0:
                    error = self._silent()
                    break
                await self._wait_for_news(left)
        finally:
            # The writer also looks at the reader: asyncio.wait_for before Python 3.12 may swallow a cancellation.
            for ending in (call, reader, writer):
                ending.cancel()
            heard, _ = await asyncio.gather(reader, writer, return_exceptions=True)
            await channel.close()
        return error or (heard if isinstance(heard, PresageError) else None)

    async def _write(self, call: Any, start: bytes, reader: asyncio.Future[None]) -> None:
        message: bytes | None = start
        try:
            while not reader.done():
                if message is not None:
                    await call.write(message)
                message = self._conversation.next_message(time.monotonic())
                if message is None:
                    await self._wait_for_news(self._conversation.heartbeat_in_s(time.monotonic()))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the stream is over: the reader knows why

    async def _read(self, call: Any, request_id: str) -> None:
        """Raises what ended the stream."""
        try:
            while True:
                data = await call.read()
                if data is grpc.aio.EOF:
                    if not call.done() or await call.code() != grpc.StatusCode.OK:
                        await call  # raises
                    return
                self._conversation.hear(data, time.monotonic())
                if self._conversation.latest is not None:
                    self._memory.saw(self._conversation.latest.plan)
                self._tell()
        except grpc.aio.AioRpcError as failed:
            if failed.code() is grpc.StatusCode.INTERNAL and failed.details() == LOST_STATUS:
                lost = "the stream ended while a message was being sent"
                raise Unavailable(lost, reason="CONNECTION_LOST", request_id=request_id) from failed
            raise self._endpoint.error(failed, request_id) from failed

    def _silent(self) -> PresageError:
        stall_s = self._conversation.settings.stall_s
        return Unavailable(f"{self._endpoint.address} has been silent for {stall_s:g} s", reason="CONNECTION_LOST")
