"""What a client knows of its sessions: enough to make one again at a server that has forgotten it.

Free of threads and sockets: `remade` says which calls to send, and both clients send them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generator, Mapping, Sequence, TypeVar

from presage.errors import invalid
from presage.limits import ActionLimits
from presage.protocol import codec, methods, requests
from presage.protocol.methods import Call
from presage.values import CalibrationMove, Goal, GoalStage, SessionStatus

if TYPE_CHECKING:
    from presage.values import Plan

KEPT_GOALS = 256
KEPT_GOAL_BYTES = 64 << 20

Value = TypeVar("Value")
Calls = Generator["Call[Any]", Any, Value]
"""Calls to send one after another; each yields its reply's value, and the last is followed by the result."""


class GoalMemory:
    """How a client's goals were made, by id: the latest, within a number and an amount of bytes. Safe between threads.

    Sessions keep those that they pursue for themselves.
    """

    def __init__(self) -> None:
        self._calls: OrderedDict[str, Call[Goal]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def keep(self, goal: Goal, call: Call[Goal]) -> Goal:
        with self._lock:
            self._forget(goal.goal_id)
            self._calls[goal.goal_id] = call
            self._bytes += len(call.payload)
            while len(self._calls) > KEPT_GOALS or (self._bytes > KEPT_GOAL_BYTES and len(self._calls) > 1):
                self._forget(next(iter(self._calls)))
        return goal

    def find(self, goal_id: str) -> Call[Goal] | None:
        with self._lock:
            return self._calls.get(goal_id)

    def _forget(self, goal_id: str) -> None:
        call = self._calls.pop(goal_id, None)
        self._bytes -= 0 if call is None else len(call.payload)


@dataclass(frozen=True)
class SessionWish:
    """What a session was asked for with."""

    ttl_s: float = 0.0
    seed: int | None = None
    stages: tuple[GoalStage, ...] = ()
    limits: ActionLimits | None = None


class SessionMemory:
    """One session, as its client knows it. `session_id` changes when it is made again. Safe between threads.

    A session that was taken up by its id can be described and not made again: `wish` is None.
    """

    def __init__(self, status: SessionStatus, goals: GoalMemory, wish: SessionWish | None) -> None:
        self.session_id, self.model, self.execute = status.session_id, status.model, status.execute
        self._goals, self._wish = goals, wish
        self._pursued, self._chosen = status.goal_id, ""
        self._moves: tuple[CalibrationMove, ...] = ()
        self._made: dict[str, Call[Goal]] = {}  # how the goals that it pursues, or will, were made
        self._lock = threading.Lock()
        for goal_id in self._wanted():
            self._pin(goal_id)

    @property
    def can_be_remade(self) -> bool:
        return self._wish is not None

    def choose(self, goal_id: str) -> None:
        """A control loop asks for plans toward this goal from now on; empty: toward the session's own."""
        with self._lock:
            self._chosen = goal_id
            self._pin(goal_id)

    def saw(self, plan: Plan) -> None:
        """A plan says which goal the session pursues."""
        goal_id = plan.provenance.goal_id
        with self._lock:
            if goal_id != self._pursued:
                self._pursued = goal_id
                self._pin(goal_id)

    def calibrated(self, moves: Sequence[CalibrationMove]) -> None:
        """The session was calibrated with these moves."""
        self._moves = tuple(moves)

    def remade(self, lost_id: str) -> Calls[Mapping[str, str]]:
        """Makes the session again where `lost_id` still names it, and returns what its goals are called now, by old id.

        Goals first, then the session at the stage it was in, then its calibration. Raises what the calls raise:
        NotFound for a goal that this client did not make and that the server has lost too.
        """
        renamed: dict[str, str] = {}
        if self._wish is None or self.session_id != lost_id:
            return renamed
        for goal_id in self._wanted():
            made = self._made.get(goal_id)
            call = requests.get_goal(goal_id) if made is None else replace(made, request_id=methods.new_request_id())
            goal: Goal = yield call
            renamed[goal_id] = goal.goal_id
            if made is not None:
                self._goals.keep(goal, made)
        stages = tuple(replace(stage, goal=renamed[codec.goal_id(stage.goal)]) for stage in self._stages_left())
        goal_id = "" if stages else renamed.get(self._pursued, "")
        status: SessionStatus = yield requests.create_session(
            self.model, goal_id, self._wish.ttl_s, self._wish.seed, stages, self._wish.limits
        )
        if self._moves:
            yield requests.calibrate_session(status.session_id, self._moves)
        with self._lock:
            self.session_id, self._wish = status.session_id, replace(self._wish, stages=stages)
            self._pursued, self._chosen = renamed.get(self._pursued, ""), renamed.get(self._chosen, "")
            self._made = {renamed[old]: call for old, call in self._made.items() if old in renamed}
        return renamed

    def _stages_left(self) -> tuple[GoalStage, ...]:
        """From the stage that is pursued on; none once another goal has ended the stages."""
        stages = () if self._wish is None else self._wish.stages
        for at, stage in enumerate(stages):
            if codec.goal_id(stage.goal) == self._pursued:
                return stages[at:]
        return ()

    def _wanted(self) -> tuple[str, ...]:
        """Goals that it pursues or will, each once."""
        ids = [*(codec.goal_id(stage.goal) for stage in self._stages_left()), self._pursued, self._chosen]
        return tuple(dict.fromkeys(goal_id for goal_id in ids if goal_id))

    def _pin(self, goal_id: str) -> None:
        call = self._goals.find(goal_id)
        if call is not None:
            self._made[goal_id] = call
        wanted = set(self._wanted())
        self._made = {kept: call for kept, call in self._made.items() if kept in wanted}


class SequenceCounter:
    """The highest observation sequence of a session. Safe to share between threads."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._lock = threading.Lock()

    def claim(self, wanted: int = 0) -> int:
        """`wanted`, which must be new, or the next number for 0. Raises InvalidRequest for one that was passed."""
        with self._lock:
            if 0 < wanted <= self._last:
                rule = f"must be above {self._last}, the last one"
                raise invalid("observation.sequence", rule, wanted, "STALE_OBSERVATION")
            self._last = wanted or self._last + 1
            return self._last

    def saw(self, sequence: int) -> None:
        """The server used this number."""
        with self._lock:
            self._last = max(self._last, sequence)
