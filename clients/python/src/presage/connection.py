"""Sends calls over one blocking channel, with deadlines and retries. Calls are built in `protocol.requests`."""

from __future__ import annotations

import time
import weakref
from typing import Any, Callable, Iterator, TypeVar

import grpc

from presage.control import ControlLoop
from presage.errors import Cancelled, ServerError
from presage.protocol import arguments, methods
from presage.protocol.conversation import ControlSettings
from presage.protocol.memory import Calls, GoalMemory, SequenceCounter, SessionMemory
from presage.protocol.methods import Call, Method
from presage.protocol.retry import Attempts
from presage.protocol.transport import Endpoint, Metadata
from presage.protocol.upload import ClipUpload, Progress

Value = TypeVar("Value")


class Connection:
    """One server, reached from any thread. `timeout_s` is for calls that name none."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self.endpoint, self.timeout_s = endpoint, arguments.number("timeout_s", timeout_s)
        self.goals = GoalMemory()
        self._channel = endpoint.open_channel()
        self._senders: dict[str, Callable[..., bytes]] = {}
        self._loops: weakref.WeakSet[ControlLoop] = weakref.WeakSet()
        self._closed = False

    def send(self, call: Call[Value], timeout_s: float | None = None) -> Value:
        """The reply's value. Raises a PresageError."""
        if call.path not in self._senders:
            self._senders[call.path] = self._channel.unary_unary(call.path)
        sender = self._senders[call.path]

        def attempt(remaining_s: float, metadata: Metadata) -> bytes:
            return sender(call.payload, timeout=remaining_s, metadata=metadata)

        reply = self._repeat(attempt, call.repeatable, timeout_s, call.request_id)
        return read_reply(call.read, reply, call.request_id)

    def follow(self, calls: Calls[Value]) -> Value:
        """Sends calls one after another, and returns what they come to. Raises a PresageError."""
        reply: Any = None
        while True:
            try:
                call = calls.send(reply)
            except StopIteration as end:
                result: Value = end.value
                return result
            reply = self.send(call)

    def upload(
        self,
        clip: ClipUpload,
        method: Method[Any, Any],
        read: Callable[[bytes], Value],
        progress: Progress | None,
        timeout_s: float,
    ) -> Value:
        """Sends a clip. Raises a PresageError, or what reading the file or `progress` raised."""
        sender: Any = self._channel.stream_unary(method.path)

        def attempt(remaining_s: float, metadata: Metadata) -> bytes:
            feed = _Feed(clip.messages(progress))
            try:
                reply: bytes = sender(feed, timeout=remaining_s, metadata=metadata)
            finally:
                if feed.failure is not None:
                    raise feed.failure
            return reply

        request_id = methods.new_request_id()
        reply = self._repeat(attempt, method.repeatable, timeout_s, request_id)
        return read_reply(read, reply, request_id)

    def control(self, settings: ControlSettings, memory: SessionMemory, sequences: SequenceCounter) -> ControlLoop:
        """A control loop that ends with this connection at the latest."""
        self._check_open()
        loop = ControlLoop(
            self.endpoint, settings, sequences, memory, lambda lost_id: self.follow(memory.remade(lost_id))
        )
        self._loops.add(loop)
        return loop

    def close_loops(self, session_id: str | None = None) -> None:
        """Ends the control loops of one session, or all of them."""
        for loop in list(self._loops):
            if session_id in (None, loop.session_id):
                loop.close()

    def close(self) -> None:
        """Ends every loop and call in progress, and the channel's threads."""
        self._closed = True
        self.close_loops()
        self._channel.close()

    def _repeat(
        self,
        attempt: Callable[[float, Metadata], bytes],
        repeatable: bool,
        timeout_s: float | None,
        request_id: str,
    ) -> bytes:
        attempts = Attempts(self.timeout_s if timeout_s is None else timeout_s, repeatable)
        while True:
            self._check_open()
            left_s = attempts.remaining_s()
            try:
                return attempt(left_s, self.endpoint.metadata(request_id, left_s))
            except grpc.RpcError as failed:
                error = self.endpoint.error(failed, request_id)
                pause = attempts.pause_s(error)
                if pause is None:
                    raise error from failed
            except ValueError:
                self._check_open()  # what gRPC says of a channel that was closed just now
                raise
            time.sleep(pause)

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("this client is closed", reason="CLOSED")


class _Feed:
    """Hands messages to gRPC's thread, which logs their exceptions and hides them: `failure` keeps one instead."""

    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages = messages
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._messages)
        except StopIteration:
            raise
        except BaseException as failure:
            self.failure = failure
            raise StopIteration from failure


def in_thread(work: Callable[[], Value]) -> Value:
    """What `work` returns. There is no event loop here that it could hold up."""
    return work()


def read_reply(read: Callable[[bytes], Value], reply: bytes, request_id: str) -> Value:
    """The value of a reply; what is wrong with one is said with the call's id."""
    try:
        return read(reply)
    except ServerError as error:
        error.request_id = request_id
        raise
