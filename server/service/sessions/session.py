"""Session state: recent observations, the current plan, and the order of observations.

Pure and synchronous: the clock is an argument, and nothing here knows engines or transports. It lives in the front, so
that an engine that dies takes no session with it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from presage.limits import ActionLimits, held_for
from presage.values import Calibration, Plan, SessionStatus

from server.engine.messages import Floats
from server.errors import Reason, invalid
from server.service.sessions.stages import GoalChoice, Stages, pursuit
from server.service.sessions.surprise import RunningStatistics
from server.values.caller import EVERYONE, Caller

KEPT_REPLIES = 16  # plans a session can repeat for a caller that asks again
JUDGED_FROM = 8  # errors of predictions that must be known before another is judged
KEPT_PLANS = 16  # plans that a robot may say it follows


@dataclass(frozen=True)
class EncodedObservation:
    """An observation that was used."""

    sequence: int
    latent: Floats
    proprioception: Floats | None
    since_reset: int = 0  # actions the robot had executed in its episode when it made it


@dataclass(frozen=True)
class CurrentPlan:
    """A plan a robot was given."""

    actions: Floats  # [time, action]
    step_costs: tuple[float, ...]  # predicted, one per model step
    block: int  # actions per model step
    goal_id: str
    goal_distance: float  # of the observation it was made for
    sequence: int  # of that observation
    begins_at: int  # actions the robot had executed in its episode when it made that observation
    previous_action: Floats | None = None  # the last of them
    held: tuple[float, ...] | None = None  # actions for which each of its dimensions was kept
    arrival: int | None = None  # its action after which it means to be at the goal; None where that is not known
    optimizer: str = ""  # that it was found by


@dataclass(frozen=True)
class PlanProgress:
    """How far a robot was when it made an observation: `executed` actions into the plan it followed."""

    executed: int
    followed: CurrentPlan | None = None
    since_reset: int = 0  # actions executed in its episode

    @property
    def previous_action(self) -> Floats | None:
        """The last action executed."""
        if self.followed is None or self.executed == 0:
            return None if self.followed is None else self.followed.previous_action
        action: Floats = self.followed.actions[min(self.executed, len(self.followed.actions)) - 1]
        return np.array(action)

    @property
    def held(self) -> tuple[float, ...] | None:
        """For how many actions each dimension of `previous_action` was kept."""
        if self.followed is None:
            return None
        before = None if self.followed.previous_action is None else self.followed.previous_action.tolist()
        return held_for(self.followed.actions[: self.executed].tolist(), before, self.followed.held)


@dataclass(frozen=True)
class WarmStart:
    """How the next search follows from the plan under way."""

    warm_start: Floats | None = None  # [at least 1, action]
    previous_action: Floats | None = None  # [action]
    committed: Floats | None = None  # [steps, action]
    warnings: tuple[str, ...] = ()
    arrival: int | None = None  # actions that the plan has left until it means to be at the goal
    held: tuple[float, ...] | None = None  # actions for which each dimension of `previous_action` was kept


@dataclass(frozen=True)
class ObservationTicket:
    """The right of one observation to be planned for."""

    epoch: int
    sequence: int


class Session:
    """One robot's state. A turn is begun, then either committed with its plan or given back."""

    def __init__(
        self,
        session_id: str,
        model: str,
        goal_id: str,
        history: int,
        ttl_s: float,
        seed: int,
        wall_ns: int,
        stages: Stages | None = None,
        block: int = 1,
        execute: int = 0,
        limits: ActionLimits | None = None,
        caller: Caller = EVERYONE,
    ) -> None:
        """With `stages`, the first one's goal is the session's. It belongs to the `caller`.

        `history` latents are remembered, or, where a model's are `block` actions apart, as many as may lie between.
        """
        self.session_id, self.model = session_id, model
        self.goal_id, self._stages = goal_id if stages is None else stages.current.goal_id, stages
        self.execute, self.limits, self.caller = execute, limits, caller
        self.ttl_s, self.seed, self.create_time_ns = ttl_s, seed, wall_ns
        self.epoch = 0
        self.surprises = RunningStatistics()
        self.calibration: Calibration | None = None
        self._kept = max(history - 1, 0) * block
        self._forget()

    def _forget(self) -> None:
        self.plans, self.last_sequence = 0, 0
        self.current: CurrentPlan | None = None
        self._plans: OrderedDict[int, CurrentPlan] = OrderedDict()  # by sequence, the current one among them
        self._used = 0
        self._turns: set[int] = set()
        self._seen: deque[EncodedObservation] = deque(maxlen=self._kept)
        self._executed: OrderedDict[int, Floats] = OrderedDict()  # the latest actions, by their number in the episode
        self._replies: OrderedDict[str, tuple[bytes, Plan]] = OrderedDict()

    def reset(self) -> None:
        """Start an episode anew: forget all but model, goal, calibration, and how well the model predicts here.

        Stages begin with the first one again.
        """
        self.epoch += 1
        if self._stages is not None:
            self._stages = self._stages.restarted()
            self.goal_id = self._stages.current.goal_id
        self._forget()

    @property
    def goal_ids(self) -> frozenset[str]:
        """The goals that the session needs: those of its stages, and the one it pursues."""
        staged = () if self._stages is None else (stage.goal_id for stage in self._stages.goals)
        return frozenset((self.goal_id, *staged)) - {""}

    @property
    def busy(self) -> bool:
        """Whether an observation is being planned for."""
        return bool(self._turns)

    def seed_for(self, sequence: int) -> int:
        """The seed of a plan that names none: the same whenever the same observation of the session is planned for."""
        digest = hashlib.sha256(f"{self.seed}/{self.epoch}/{sequence}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 11  # 53 bits: exact in JSON

    def earlier(self, sequence: int) -> tuple[EncodedObservation, ...]:
        """What was seen before the observation of this sequence (0: a new one), oldest first."""
        return tuple(seen for seen in self._seen if not sequence or seen.sequence < sequence)

    def steps_before(
        self, sequence: int, progress: PlanProgress, block: int, most: int
    ) -> tuple[tuple[EncodedObservation, ...], Floats | None]:
        """What was seen one, two, ... whole model steps before, oldest first, and the actions executed since then.

        Only as far back as every step was seen at its beginning and all of its actions are known; at most `most` steps.
        """
        seen = {earlier.since_reset: earlier for earlier in self.earlier(sequence)}
        actions = {**self._executed, **_executed_of(progress)}
        found: list[EncodedObservation] = []
        taken: list[Floats] = []
        at = progress.since_reset
        while len(found) < most and at - block in seen:
            between = [actions.get(number) for number in range(at - block, at)]
            known = [action for action in between if action is not None]
            if len(known) < block:
                break
            at -= block
            found.insert(0, seen[at])
            taken = known + taken
        return tuple(found), np.stack(taken) if taken else None

    def begin(self, sequence: int) -> ObservationTicket:
        """Take an observation; 0 gives it the next sequence. Raises STALE_OBSERVATION."""
        newest = max(self._used, *self._turns) if self._turns else self._used
        sequence = sequence or max(newest, self.last_sequence) + 1
        if sequence <= newest:
            rule = f"must be above {newest}, the newest observation used"
            raise invalid("observation.sequence", rule, sequence, Reason.STALE_OBSERVATION)
        self.last_sequence = max(self.last_sequence, sequence)
        self._turns.add(sequence)
        return ObservationTicket(self.epoch, sequence)

    def give_back(self, turn: ObservationTicket) -> None:
        """End a turn that came to nothing: its observation may be sent again."""
        if turn.epoch == self.epoch:
            self._turns.discard(turn.sequence)

    def commit(
        self,
        turn: ObservationTicket,
        plan: CurrentPlan,
        seen: EncodedObservation | None,
        stages: Stages | None = None,
        progress: PlanProgress | None = None,
    ) -> None:
        """Remember a turn's plan, its stage and observation, unless a reset or a newer observation has overtaken it.

        `progress` says what the robot had executed by then, which is remembered too.
        """
        if turn.epoch != self.epoch:
            return
        self._turns.discard(turn.sequence)
        self.plans += 1
        self._plans[turn.sequence] = plan
        while len(self._plans) > KEPT_PLANS:
            self._plans.popitem(last=False)
        if turn.sequence <= self._used:
            return
        self._used = turn.sequence
        if progress is not None:
            self._executed.update(_executed_of(progress))
            while len(self._executed) > self._kept:
                self._executed.popitem(last=False)
        if self._stages is not None and stages is not None and stages.at < self._stages.at:
            stages = self._stages  # an earlier observation has ended this stage meanwhile
        self._stages, self.current = stages, plan
        self.goal_id = plan.goal_id if stages is None else stages.current.goal_id
        if seen is not None:
            self._seen.append(seen)

    def reply(self, request_id: str, asked: bytes = b"") -> Plan | None:
        """The plan that a call with this id was answered with, while it is kept.

        `asked` is a digest of what is asked. Raises INVALID_FIELD where something else was asked under this id.
        """
        kept = self._replies.get(request_id)
        if kept is None:
            return None
        if kept[0] != asked:
            rule = "must be new where another plan is asked for: it repeats a call"
            raise invalid("request_id", rule, request_id)
        return kept[1]

    def keep_reply(self, request_id: str, reply: Plan, asked: bytes = b"") -> None:
        if request_id and reply.epoch == self.epoch:
            self._replies[request_id] = asked, reply
            while len(self._replies) > KEPT_REPLIES:
                self._replies.popitem(last=False)

    def place(self, executed: int, plan_sequence: int = 0) -> PlanProgress:
        """Where a robot is that has executed so many actions of a plan: by default the session's last.

        Raises INVALID_FIELD for a plan that is not kept, and for a place before the last plan's beginning: actions of
        an older plan that were executed before the observation behind the last plan cannot come after it.
        """
        if self.current is None:
            return PlanProgress(executed)
        followed = self._plans.get(plan_sequence) if plan_sequence else self.current
        if followed is None:
            rule = f"must be 0 or the observation_sequence of one of the session's last {KEPT_PLANS} plans"
            raise invalid("plan_sequence", rule, plan_sequence)
        since_reset = followed.begins_at + executed
        if since_reset < self.current.begins_at:
            least = self.current.begins_at - followed.begins_at
            rule = f"must be at least {least}, as far into plan {plan_sequence} as plan {self.current.sequence} begins"
            raise invalid("executed", rule, executed)
        return PlanProgress(executed, followed, since_reset)

    def pursuit(self, wanted: str, place: PlanProgress) -> GoalChoice:
        """What to pursue from this place: the goal `wanted`, or the session's where it is empty."""
        return pursuit(self._stages, self.goal_id, wanted, place.since_reset)

    def continuation(self, place: PlanProgress, committed: int, goal_id: str, optimizer: str = "") -> WarmStart:
        """What the next search starts from at this place, with `committed` more actions of the followed plan under way.

        The warm start is what is left of the session's last plan, which need not be the one the robot follows; a plan
        toward another goal is none, and where another `optimizer` goes on, it chooses its own time of arrival. Raises
        INVALID_FIELD where the followed plan has not that many actions left.
        """
        executed, followed, plan = place.executed, place.followed, self.current
        if plan is None or followed is None:
            if committed:
                raise invalid("committed", "must be 0 while the session has no plan", committed)
            warnings: tuple[str, ...] = (
                (f"executed is {executed}, but the session has no plan yet",) if executed else ()
            )
            return WarmStart(warnings=warnings)
        time = len(followed.actions)
        which = "the last plan" if followed is plan else f"plan {followed.sequence}"
        warnings = (f"executed is {executed}, but {which} had {time} actions",) if executed > time else ()
        under_way = followed.actions[min(executed, time) :]
        if committed > len(under_way):
            raise invalid("committed", f"must be at most the {len(under_way)} actions left of {which}", committed)
        done = max(0, place.since_reset - plan.begins_at)
        left = plan.actions[done:]
        same = goal_id == plan.goal_id
        onward = same and plan.arrival is not None and plan.arrival > done
        if onward and plan.optimizer and optimizer and plan.optimizer != optimizer:
            onward = False
            warnings += (f"the last plan is of {plan.optimizer}, and {optimizer} chooses its own time of arrival",)
        return WarmStart(
            warm_start=left if len(left) and same else None,
            arrival=plan.arrival - done if onward and plan.arrival is not None else None,
            previous_action=place.previous_action,
            held=place.held,
            committed=under_way[:committed] if committed else None,
            warnings=warnings,
        )

    def rest(self, place: PlanProgress, goal_id: str) -> CurrentPlan | None:
        """What is left of the current plan at this place, where it leads to this goal; None if nothing is."""
        plan = self.current
        if plan is None or plan.goal_id != goal_id:
            return None
        done = max(0, place.since_reset - plan.begins_at)
        left = plan.actions[done:]
        if not len(left):
            return None
        steps = -(-len(left) // plan.block)  # a block in the middle of which the robot stands still counts
        arrival = None if plan.arrival is None or plan.arrival <= done else plan.arrival - done
        return replace(plan, actions=left, step_costs=plan.step_costs[-steps:], arrival=arrival)

    def judge(self, errors: Sequence[float]) -> tuple[float, ...]:
        """Errors of predictions, each as deviations above the mean of those before this call, which they then join.

        Nothing while fewer than `JUDGED_FROM` are known.
        """
        scores = self.surprises.scores(errors) if self.surprises.count >= JUDGED_FROM else ()
        self.surprises = self.surprises.including(errors)
        return scores

    @property
    def stage(self) -> int | None:
        """Which of the stages is pursued, counted from 0; None without stages."""
        return None if self._stages is None else self._stages.at

    def describe(self) -> SessionStatus:
        """The session as its callers are told of it: every field of a status is one of the session's."""
        return SessionStatus(**{field.name: getattr(self, field.name) for field in fields(SessionStatus)})


def _executed_of(progress: PlanProgress) -> dict[int, Floats]:
    """The actions of the followed plan that were executed, by their number in the episode."""
    if progress.followed is None:
        return {}
    begins_at = progress.followed.begins_at
    return {begins_at + index: action for index, action in enumerate(progress.followed.actions[: progress.executed])}
