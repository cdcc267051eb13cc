"""A robot's episode on the server: what it saw lately, the plan it is carrying out, and which observation comes next.

Pure and synchronous: the clock is an argument, and nothing here knows engines or transports. It lives in the front, so
that an engine that dies takes no session with it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass, replace

import numpy as np

from server.errors import Reason, ServiceError, invalid
from server.jobs import Floats
from server.messages import PlanReply, SessionReply

KEPT_REPLIES = 16  # plans a session can repeat for a caller that asks again


@dataclass(frozen=True)
class Seen:
    """An observation that was used."""

    sequence: int
    latent: Floats
    proprioception: Floats | None


@dataclass(frozen=True)
class CurrentPlan:
    """The plan a robot was given last."""

    actions: Floats  # [time, action]
    step_costs: tuple[float, ...]  # predicted, one per model step
    block: int  # actions per model step
    goal_id: str
    goal_distance: float  # of the observation it was made for


@dataclass(frozen=True)
class Continuation:
    """How the next search follows from the plan under way."""

    warm_start: Floats | None = None  # [at least 1, action]
    previous_action: Floats | None = None  # [action]
    committed: Floats | None = None  # [steps, action]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """The right of one observation to be planned for."""

    epoch: int
    sequence: int


class Session:
    """One robot's state. A turn is begun, then either committed with its plan or given back."""

    def __init__(
        self, session_id: str, model: str, goal_id: str, history: int, ttl_s: float, seed: int, wall_ns: int
    ) -> None:
        self.session_id, self.model, self.goal_id = session_id, model, goal_id
        self.ttl_s, self.seed, self.create_time_ns = ttl_s, seed, wall_ns
        self.epoch = 0
        self._kept = max(history - 1, 0)
        self._forget()

    def _forget(self) -> None:
        self.plans, self.last_sequence = 0, 0
        self.current: CurrentPlan | None = None
        self._previous_action: Floats | None = None
        self._used = 0
        self._turns: set[int] = set()
        self._seen: deque[Seen] = deque(maxlen=self._kept)
        self._replies: OrderedDict[str, PlanReply] = OrderedDict()

    def reset(self) -> None:
        """Start an episode anew: forget all but model and goal."""
        self.epoch += 1
        self._forget()

    @property
    def busy(self) -> bool:
        """Whether an observation is being planned for."""
        return bool(self._turns)

    def seed_for(self, sequence: int) -> int:
        """The seed of a plan that names none: the same whenever the same observation of the session is planned for."""
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}/{sequence}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 11  # 53 bits: exact in JSON

    def earlier(self, sequence: int) -> tuple[Seen, ...]:
        """What was seen before the observation of this sequence (0: a new one), oldest first."""
        return tuple(seen for seen in self._seen if not sequence or seen.sequence < sequence)

    def begin(self, sequence: int) -> Turn:
        """Take an observation; 0 gives it the next sequence. Raises STALE_OBSERVATION."""
        newest = max(self._used, *self._turns) if self._turns else self._used
        sequence = sequence or max(newest, self.last_sequence) + 1
        if sequence <= newest:
            rule = f"must be above {newest}, the newest observation used"
            raise invalid("observation.sequence", rule, sequence, Reason.STALE_OBSERVATION)
        self.last_sequence = max(self.last_sequence, sequence)
        self._turns.add(sequence)
        return Turn(self.epoch, sequence)

    def give_back(self, turn: Turn) -> None:
        """End a turn that came to nothing: its observation may be sent again."""
        if turn.epoch == self.epoch:
            self._turns.discard(turn.sequence)

    def commit(self, turn: Turn, plan: CurrentPlan, seen: Seen | None, executed: int) -> None:
        """Remember a turn's plan and observation, unless a reset or a newer observation has overtaken it."""
        if turn.epoch != self.epoch:
            return
        self._turns.discard(turn.sequence)
        self.plans += 1
        if turn.sequence <= self._used:
            return
        self._used = turn.sequence
        self._previous_action = self._last_executed(executed)
        self.current, self.goal_id = plan, plan.goal_id
        if seen is not None:
            self._seen.append(seen)

    def reply(self, request_id: str) -> PlanReply | None:
        """The plan that a call with this id was answered with, while it is kept."""
        return self._replies.get(request_id)

    def keep_reply(self, request_id: str, reply: PlanReply) -> None:
        if request_id and reply.epoch == self.epoch:
            self._replies[request_id] = reply
            while len(self._replies) > KEPT_REPLIES:
                self._replies.popitem(last=False)

    def continuation(self, executed: int, committed: int, goal_id: str) -> Continuation:
        """What the next search starts from after `executed` actions, with `committed` more under way.

        A plan toward another goal is no warm start. Raises INVALID_FIELD where the plan has not that many actions left.
        """
        plan = self.current
        if plan is None:
            if committed:
                raise invalid("committed", "must be 0 while the session has no plan", committed)
            warnings = (f"executed is {executed}, but the session has no plan yet",) if executed else ()
            return Continuation(warnings=warnings)
        time = len(plan.actions)
        warnings = (f"executed is {executed}, but the last plan had {time} actions",) if executed > time else ()
        left = plan.actions[min(executed, time) :]
        if committed > len(left):
            raise invalid("committed", f"must be at most the {len(left)} actions left of the last plan", committed)
        return Continuation(
            warm_start=left if len(left) and goal_id == plan.goal_id else None,
            previous_action=self._last_executed(executed),
            committed=left[:committed] if committed else None,
            warnings=warnings,
        )

    def rest(self, executed: int, goal_id: str) -> CurrentPlan | None:
        """What is left of the current plan, where it leads to this goal; None if nothing is."""
        plan = self.current
        if plan is None or plan.goal_id != goal_id or executed >= len(plan.actions):
            return None
        left = plan.actions[executed:]
        steps = -(-len(left) // plan.block)  # a block in the middle of which the robot stands still counts
        return replace(plan, actions=left, step_costs=plan.step_costs[-steps:])

    def _last_executed(self, executed: int) -> Floats | None:
        if self.current is None or executed == 0:
            return self._previous_action
        action: Floats = self.current.actions[min(executed, len(self.current.actions)) - 1]
        return np.array(action)

    def describe(self) -> SessionReply:
        return SessionReply(
            session_id=self.session_id,
            model=self.model,
            goal_id=self.goal_id,
            epoch=self.epoch,
            plans=self.plans,
            last_sequence=self.last_sequence,
            ttl_s=self.ttl_s,
            create_time_ns=self.create_time_ns,
        )


class SessionTable:
    """The open sessions, at most `limit` of them; each is forgotten `ttl_s` after its last call."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sessions: dict[str, Session] = {}
        self._expiry: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Session, now: float) -> None:
        """Raises TOO_MANY_SESSIONS."""
        if len(self._sessions) >= self._limit:
            self.expire(now)
        if len(self._sessions) >= self._limit:
            rule = f"must stay at most {self._limit}; delete one or wait for one to expire"
            raise invalid("sessions", rule, self._limit + 1, Reason.TOO_MANY_SESSIONS)
        self._sessions[session.session_id] = session
        self._expiry[session.session_id] = now + session.ttl_s

    def get(self, session_id: str, now: float) -> Session:
        """A session, kept alive by this. Raises UNKNOWN_SESSION."""
        session = self._sessions.get(session_id)
        if session is None or (self._expiry[session_id] <= now and not session.busy):
            self._drop(session_id)
            rule, shown = "must name an open session", session_id[:40]
            message = f"session_id {rule}, got {shown}: it never was, was deleted, or expired"
            raise ServiceError(Reason.UNKNOWN_SESSION, message, field="session_id", rule=rule, value=shown)
        self._expiry[session_id] = now + session.ttl_s
        return session

    def touch(self, session: Session, now: float) -> None:
        """Keep a session alive, if it is still open."""
        if session.session_id in self._expiry:
            self._expiry[session.session_id] = now + session.ttl_s

    def delete(self, session_id: str, now: float) -> None:
        """Raises UNKNOWN_SESSION."""
        self.get(session_id, now)
        self._drop(session_id)

    def expire(self, now: float) -> int:
        """Forget every session whose time is up and that is not being planned for; how many they were."""
        over = [name for name, instant in self._expiry.items() if instant <= now and not self._sessions[name].busy]
        for name in over:
            self._drop(name)
        return len(over)

    def _drop(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        self._expiry.pop(session_id, None)
