"""A control loop over threads: observations in, plans out, and no call of the robot's ever waits for the network.

Threads rather than an event loop of its own: grpc.aio before 1.7x logs BlockingIOError for every message once two event
loops of a process use it, and a robot's program may well have one already.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, Mapping, Sequence

import grpc

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


class ControlLoop:
    """Closes a control loop with the server. Made by `session.control()`; usable from any thread; a context manager.

    The stream has no deadline of its own: heartbeats stand in for it. A lost stream is dialled anew until `close()`,
    and the session goes on where it was. A server that has lost the session too (it was started again) is given its
    goals, the session and its calibration once more, where this client made them. The observation that was under way is
    reported as failed rather than sent again: by then it is old.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: ControlSettings,
        sequences: SequenceCounter,
        memory: SessionMemory,
        remake: Callable[[str], Mapping[str, str]],
    ) -> None:
        """`remake` makes the session of an id again at the server; see `SessionMemory.remade`."""
        self._endpoint, self._memory, self._remake = endpoint, memory, remake
        self._conversation = Conversation(settings, sequences)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="presage-control", daemon=True)
        self._thread.start()

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
        """Offers an observation and returns its sequence at once; a newer one replaces it until it has left.

        `executed`: actions of `plan` (by default the newest received) that were executed when this was seen.
        `committed`: actions of it that will still be executed while the new plan is made; they head it unchanged.
        `previous_action`: [action], the last one executed, where it was none of a plan's, such as a stop: a slew limit
        begins there.
        Raises InvalidRequest, or the error that ended the loop for good (NotFound for a session that is gone,
        Unauthenticated).
        """
        observation = codec.as_observation(seen, proprioception)
        with self._changed:
            sequence = self._conversation.offer(
                observation, executed, committed, seed, plan, time.monotonic(), previous_action
            )
            self._changed.notify_all()
        return sequence

    def set_goal(self, goal: Goal | str) -> None:
        """Swaps the goal for the observations that follow. Returns at once."""
        self._memory.choose(codec.goal_id(goal))
        with self._changed:
            self._conversation.swap_goal(codec.goal_id(goal))
            self._changed.notify_all()

    def latest(self) -> ControlPlan | None:
        """The newest plan; None before the first. Returns at once."""
        with self._changed:
            return self._conversation.latest

    def wait(self, timeout_s: float, sequence: int | None = None) -> ControlPlan | None:
        """Waits for a plan made from observation `sequence` (by default the newest sent) or a newer one.

        None after `timeout_s`. Raises the error of that observation if it got no plan, or the one that ended the loop.
        """
        deadline = time.monotonic() + arguments.number("timeout_s", timeout_s)
        with self._changed:
            wanted = self._conversation.newest if sequence is None else sequence
            while not self._closing:
                plan = self._conversation.outcome(wanted)
                left = deadline - time.monotonic()
                if plan is not None or left <= 0:
                    return plan
                self._changed.wait(left)
        return None

    def errors(self) -> tuple[FailedObservation, ...]:
        """What failed since the last call, oldest first; 64 are kept. Returns at once."""
        with self._changed:
            return self._conversation.take_errors()

    @property
    def session_id(self) -> str:
        """The session's name at the server."""
        return self._memory.session_id

    @property
    def execute(self) -> int:
        """Actions of a plan to carry out before planning again, as the session's model was measured."""
        return self._memory.execute

    @property
    def restored(self) -> int:
        """How often the session was made again at a server that had lost it."""
        with self._changed:
            return self._conversation.restored

    @property
    def connected(self) -> bool:
        """Whether the server has answered on the present stream."""
        with self._changed:
            return self._conversation.connected

    @property
    def trouble(self) -> PresageError | None:
        """What broke the last stream, until a new one stands."""
        with self._changed:
            return self._conversation.trouble

    def close(self) -> None:
        """Ends the stream and its threads. The session stays. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> ControlLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ControlLoop({self._endpoint.address!r}, session {self.session_id!r})"

    def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None:
            error = self._converse()
            with self._changed:
                pause = None if self._closing else self._conversation.end(error)
                is_lost = self._conversation.session_lost
                self._changed.notify_all()
            if is_lost and pause is not None:
                pause = self._restore()
            with self._changed:
                self._changed.wait_for(lambda: self._closing, pause or 0.0)
                pause = None if self._closing else pause

    def _restore(self) -> float | None:
        """Makes the session again; how long to wait before the next stream, as `Conversation.end`."""
        lost_id = self._conversation.session_id
        try:
            renamed = self._remake(lost_id)
        except PresageError as error:
            with self._changed:
                return self._conversation.end(error)
        with self._changed:
            self._conversation.adopt(self._memory.session_id, renamed)
        return 0.0

    def _converse(self) -> PresageError | None:
        """One stream from start to end, and what ended it."""
        stream = _Stream()
        request_id = methods.new_request_id()
        with self._changed:
            start = self._conversation.begin(time.monotonic())
        # A channel of its own, anew for each stream: a stalled connection is left, not reused.
        channel = self._endpoint.open_channel()
        converse: Any = channel.stream_stream(methods.CONTROL.path)
        call = converse(self._messages(start, stream), metadata=self._endpoint.metadata(request_id))
        reader = threading.Thread(
            target=self._read, args=(call, stream, request_id), name="presage-control-reader", daemon=True
        )
        reader.start()
        with self._changed:
            while not (self._closing or stream.ended or self._conversation.fatal is not None):
                left = self._conversation.silence_left_s(time.monotonic())
                if left <= 0:
                    stream.error = self._silent()
                    break
                self._changed.wait(left)
            stream.ended = True
            self._changed.notify_all()
        call.cancel()
        reader.join()
        channel.close()
        return stream.error

    def _messages(self, start: bytes, stream: _Stream) -> Iterator[bytes]:
        """Runs in gRPC's thread."""
        message: bytes | None = start
        while message is not None:
            yield message
            with self._changed:
                message = None if stream.ended else self._conversation.next_message(time.monotonic())
                while message is None and not stream.ended:
                    self._changed.wait(self._conversation.heartbeat_in_s(time.monotonic()))
                    message = None if stream.ended else self._conversation.next_message(time.monotonic())

    def _read(self, call: Iterator[bytes], stream: _Stream, request_id: str) -> None:
        error: PresageError | None = None
        try:
            for data in call:
                with self._changed:
                    self._conversation.hear(data, time.monotonic())
                    self._remember()
                    self._changed.notify_all()
        except grpc.RpcError as failed:
            error = self._endpoint.error(failed, request_id)
        except PresageError as unreadable:
            error = unreadable
        with self._changed:
            stream.error = stream.error or error
            stream.ended = True
            self._changed.notify_all()

    def _remember(self) -> None:
        if self._conversation.latest is not None:
            self._memory.saw(self._conversation.latest.plan)

    def _silent(self) -> PresageError:
        stall_s = self._conversation.settings.stall_s
        return Unavailable(f"{self._endpoint.address} has been silent for {stall_s:g} s", reason="CONNECTION_LOST")


class _Stream:
    """One stream's end, seen by the three threads that serve it."""

    def __init__(self) -> None:
        self.ended = False
        self.error: PresageError | None = None
