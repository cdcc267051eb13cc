"""State of a control stream on the robot's side: the next message to send, what arrived, and loss of the server.

Free of threads, sockets and clocks: control.py and async_control.py move its bytes. Not safe to share without a lock.

One observation is under way at a time. A newer one waits here, not at the server, and replaces the one that waited
before: what would be skipped is never uploaded, and when it leaves, `executed` can be counted from the newest plan. An
observation seen while plan A was followed, but sent after plan B arrived, says how far it is into B: that is how far it
was into A, less how far the observation behind B was. The plan counted from is named, in case the server has one more.

A server that comes back after a lost stream may have forgotten the session. It is made again (memory.py) and the
conversation goes on in the new one, which knows none of the plans before it: until it has made one, nothing is counted.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Mapping

from presage.errors import (
    Cancelled,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    PresageError,
    ServerError,
    Unavailable,
    from_reason,
    invalid,
)
from presage.limits import ActionLimits
from presage.protocol import arguments, codec, methods
from presage.protocol.memory import SequenceCounter
from presage.v1 import planning_pb2
from presage.values import ControlPlan, FailedObservation, Observation, PlannerSettings

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

KEPT_ERRORS = 64
KEPT_ORIGINS = 16
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class ControlSettings:
    """What a control loop is told once. `budget_ms` is the time to think for each plan; None leaves it to the server.

    A heartbeat is sent every `heartbeat_s`; a server silent for `stall_s` is left and dialled anew. `can_be_remade`:
    the client knows enough of the session to make it again.
    """

    session_id: str
    goal_id: str = ""
    planner: PlannerSettings | None = None
    limits: ActionLimits | None = None
    budget_ms: float | None = None
    heartbeat_s: float = 1.0
    stall_s: float = 3.0
    can_be_remade: bool = False

    def __post_init__(self) -> None:
        codec.budget(self.budget_ms)
        codec.limits_message(self.limits)
        arguments.positive("heartbeat_s", self.heartbeat_s)
        if not self.heartbeat_s < arguments.number("stall_s", self.stall_s) < float("inf"):
            raise invalid("stall_s", f"must be above heartbeat_s = {self.heartbeat_s} and finite", self.stall_s)


@dataclass(frozen=True)
class Progress:
    """How far a robot was: `executed` actions into the plan made from observation `plan`, 0 for no plan."""

    plan: int
    executed: int


@dataclass(frozen=True)
class Offered:
    """An observation that waits to be sent, or is under way."""

    sequence: int
    message: planning_pb2.ControlObservation
    progress: Progress
    offered_at: float


class Conversation:
    """One control loop's memory, over as many streams as it takes. `now` is monotonic, in seconds."""

    def __init__(
        self, settings: ControlSettings, sequences: SequenceCounter, random_unit: Callable[[], float] = random.random
    ) -> None:
        self.settings = settings
        self.session_id = settings.session_id
        self.session_lost = False  # the server has forgotten it: it is to be made again before the next stream
        self.restored = 0  # how often it was
        self.latest: ControlPlan | None = None
        self.fatal: PresageError | None = None
        self.connected = False
        self.trouble: PresageError | None = None
        self.newest = 0
        self._sequences, self._random_unit = sequences, random_unit
        self._goal_id, self._goal_changed = settings.goal_id, False
        self._waiting: Offered | None = None
        self._under_way: Offered | None = None
        self._origins: OrderedDict[int, Progress] = OrderedDict()  # of plans, by their observation
        self._skipped: list[int] = []
        self._errors: deque[FailedObservation] = deque(maxlen=KEPT_ERRORS)
        self._newest_failure = FailedObservation(0, PresageError(""))
        self._heartbeat_at = self._heard_at = 0.0
        self._nonce = self._lost_streams = self._streams = 0
        self._heard = False  # on the present stream
        self._forgotten = -1  # plans up to this observation are unknown to the session as it was made again

    # What the robot says

    def offer(
        self,
        observation: Observation,
        executed: int,
        committed: int,
        seed: int | None,
        plan: ControlPlan | None,
        now: float,
        previous_action: ArrayLike | None = None,
    ) -> int:
        """Puts an observation in place of one that still waits. Its sequence. Raises the error that ended the loop."""
        if self.fatal is not None:
            raise self.fatal.with_traceback(None)
        message = planning_pb2.ControlObservation(
            observation=codec.observation_message(observation),
            executed=arguments.whole("executed", executed),
            committed=arguments.whole("committed", committed),
            seed=codec.seed_number(seed),
            previous_action=codec.previous_action(previous_action),
        )
        followed = self.latest if plan is None else plan
        progress = Progress(followed.plan.observation_sequence if followed is not None else 0, executed)
        self.newest = message.observation.sequence = self._sequences.claim(observation.sequence)
        if self._waiting is not None:
            self._skipped.append(self._waiting.sequence)
        self._waiting = Offered(self.newest, message, progress, now)
        return self.newest

    def swap_goal(self, goal_id: str) -> None:
        """The goal of the observations that leave from now on, one that still waits included."""
        self._goal_id, self._goal_changed = goal_id, True

    # What goes out

    def begin(self, now: float) -> bytes:
        """The first message of a new stream."""
        self._heartbeat_at, self._heard_at, self._goal_changed = now, now, False
        self._streams, self._heard = self._streams + 1, False
        start = planning_pb2.ControlStart(
            session_id=self.session_id,
            goal_id=self._goal_id,
            planner=codec.planner_message(self.settings.planner),
            budget_ms=self.settings.budget_ms,
            limits=codec.limits_message(self.settings.limits),
        )
        return planning_pb2.ControlRequest(start=start).SerializeToString()

    def next_message(self, now: float) -> bytes | None:
        """What to send now, if anything: a new goal, the newest observation, a heartbeat that is due."""
        if self._goal_changed:
            self._goal_changed = False
            goal = planning_pb2.ControlGoal(goal_id=self._goal_id)
            return planning_pb2.ControlRequest(goal=goal).SerializeToString()
        if self._waiting is not None and self._under_way is None:
            return self._dispatch(self._waiting)
        if now >= self._heartbeat_at:
            self._heartbeat_at, self._nonce = now + self.settings.heartbeat_s, self._nonce + 1
            heartbeat = planning_pb2.ControlHeartbeat(nonce=self._nonce)
            return planning_pb2.ControlRequest(heartbeat=heartbeat).SerializeToString()
        return None

    def _dispatch(self, offered: Offered) -> bytes:
        progress = self._into_latest(offered.progress)
        message, self._waiting = offered.message, None
        if progress != offered.progress and self.latest is not None:  # by now the robot goes over to the latest
            left = max(0, len(self.latest.plan.actions) - progress.executed)
            message.executed, message.committed = progress.executed, min(message.committed, left)
        message.plan_sequence = progress.plan
        if progress.plan <= self._forgotten:  # the session as it was made again has no plan yet to count from
            message.executed = message.committed = message.plan_sequence = 0
        self._under_way = Offered(offered.sequence, message, progress, offered.offered_at)
        return planning_pb2.ControlRequest(observation=message).SerializeToString()

    def _into_latest(self, progress: Progress) -> Progress:
        """The same place, counted in the latest plan where it is known how the two hang together."""
        latest = 0 if self.latest is None else self.latest.plan.observation_sequence
        before, since = latest, 0  # walks back from the latest plan to the one that was followed
        while before != progress.plan and before in self._origins:
            before, since = self._origins[before].plan, since + self._origins[before].executed
        return Progress(latest, max(0, progress.executed - since)) if before == progress.plan else progress

    def heartbeat_in_s(self, now: float) -> float:
        return max(0.0, self._heartbeat_at - now)

    # What comes in

    def hear(self, data: bytes, now: float) -> None:
        """Takes one message of the server. Raises ServerError for one that cannot be read or acted on."""
        reply = methods.CONTROL.parse(data)
        self._heard_at, self._lost_streams, self._heard = now, 0, True
        self.connected, self.trouble = True, None
        kind = reply.WhichOneof("message")
        if kind == "plan":
            self._take_plan(reply.plan, now)
        elif kind == "error":
            error = from_reason(reply.error.reason, reply.error.message)
            self._fail(reply.error.observation_sequence, error)
            if error.reason == "UNKNOWN_SESSION":
                self.fatal = error

    def _take_plan(self, message: planning_pb2.ControlPlan, now: float) -> None:
        plan = codec.plan_value(message.plan)
        used = plan.observation_sequence
        mine = self._under_way if self._under_way is not None and self._under_way.sequence == used else None
        self._sequences.saw(used)
        skipped = sorted({*message.skipped_sequences, *(number for number in self._skipped if number < used)})
        self._skipped = [number for number in self._skipped if number > used]
        if mine is not None:
            self._origins[used] = mine.progress
            while len(self._origins) > KEPT_ORIGINS:
                self._origins.popitem(last=False)
        round_trip_s = 0.0 if mine is None else now - mine.offered_at
        self.latest = ControlPlan(plan, tuple(skipped), round_trip_s)
        self._answered(used)

    def silence_left_s(self, now: float) -> float:
        """How much longer the server may stay silent; 0 once it is to be left."""
        return max(0.0, self._heard_at + self.settings.stall_s - now)

    def end(self, error: PresageError | None) -> float | None:
        """A stream is over. How long to wait before the next one, or None if what ended it stays."""
        lost = error or Unavailable("the server ended the stream", reason="CONNECTION_LOST")
        self.connected, self.trouble = False, lost
        if self._is_forgotten(lost):  # nobody has looked at the observation that was under way: it still waits
            if self._waiting is not None and self._under_way is not None:
                self._skipped.append(self._under_way.sequence)
            self._waiting, self._under_way = self._waiting or self._under_way, None
            self.session_lost = True
            return 0.0
        if self._under_way is not None:
            self._fail(self._under_way.sequence, lost)
        if not isinstance(lost, (Unavailable, Overloaded, DeadlineExceeded, Cancelled, ServerError)):
            self.fatal = self.fatal or lost
        if self.fatal is not None:
            return None
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self._lost_streams) * (0.5 + 0.5 * self._random_unit())
        self._lost_streams = min(self._lost_streams + 1, 16)
        return pause + (lost.retry_after_s or 0.0)

    def _is_forgotten(self, lost: PresageError) -> bool:
        """Whether a stream was refused because the server lost the session with the stream before.

        One that a living server ends in the middle of a stream was ended on purpose, and stays so.
        """
        forgotten = isinstance(lost, NotFound) and lost.reason == "UNKNOWN_SESSION"
        return forgotten and self.settings.can_be_remade and not self._heard and self._streams > 1

    def adopt(self, session_id: str, renamed: Mapping[str, str]) -> None:
        """Goes on in the session as it was made again; `renamed` says what its goals are called now."""
        self.session_id, self.session_lost = session_id, False
        self.restored += 1
        self._goal_id = renamed.get(self._goal_id, self._goal_id)
        self._forgotten = 0 if self.latest is None else self.latest.plan.observation_sequence

    # What the robot asks

    def outcome(self, sequence: int) -> ControlPlan | None:
        """The newest plan if it used `sequence` or a newer observation, None if that is still to come.

        Raises the error of that observation if it failed, or the one that ended the loop.
        """
        if self.latest is not None and self.latest.plan.observation_sequence >= sequence > 0:
            return self.latest
        if self.fatal is not None:
            raise self.fatal.with_traceback(None)
        if self._newest_failure.sequence >= sequence > 0:
            raise self._newest_failure.error.with_traceback(None)
        return None

    def take_errors(self) -> tuple[FailedObservation, ...]:
        """What failed since the last question, oldest first."""
        taken = tuple(self._errors)
        self._errors.clear()
        return taken

    def _fail(self, sequence: int, error: PresageError) -> None:
        failed = FailedObservation(sequence, error)
        self._errors.append(failed)
        if sequence >= self._newest_failure.sequence:
            self._newest_failure = failed
        self._answered(sequence)

    def _answered(self, sequence: int) -> None:
        if self._under_way is not None and self._under_way.sequence <= sequence:
            self._under_way = None
