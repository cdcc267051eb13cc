"""Plan calls: validation, order within the session, search, recording.

What a plan is, the engines know; when one can be had, the pool.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import fields, is_dataclass, replace

import numpy as np
from presage.limits import LONGEST_DWELL
from presage.values import Plan

from server.config import Limits
from server.engine.admission import too_late
from server.engine.messages import Floats, PlanJob, ServedModel, Start
from server.engine.pool import EnginePool, Planned
from server.errors import Reason, ServiceError, invalid
from server.observability import tracing
from server.recording.recorder import Recorder
from server.recording.records import PlanRecord
from server.service import validation, work_limits
from server.service.goals import GoalCache
from server.service.plan_replies import RequestContext, found, limit_fault, reply_from_previous_plan
from server.service.sessions.session import (
    CurrentPlan,
    EncodedObservation,
    ObservationTicket,
    PlanProgress,
    Session,
    WarmStart,
)
from server.service.sessions.session_table import SessionTable
from server.service.sessions.stages import GoalChoice
from server.values.caller import calling
from server.values.calls import Observation, PlanRequest


class PlanCalls:
    """Answers plan requests, each at most once."""

    def __init__(
        self,
        pool: EnginePool,
        sessions: SessionTable,
        goals: GoalCache,
        limits: Limits,
        server_version: str,
        recorder: Recorder | None,
    ) -> None:
        self._engines, self._sessions, self._goals = pool, sessions, goals
        self._limits, self._version, self._recorder = limits, server_version, recorder
        self._answering: dict[tuple[str, str], asyncio.Event] = {}  # by session and request id

    async def plan(self, request: PlanRequest, deadline: float | None, received: float, decode_ms: float) -> Plan:
        """See `Application.plan`."""
        validation.plan(request)
        if not request.session_id:
            return await self._plan(request, None, deadline, received, decode_ms)
        session = self._sessions.get(request.session_id, received, calling())
        if not request.request_id:
            return await self._plan(request, session, deadline, received, decode_ms)
        call = (request.session_id, request.request_id)
        while (answering := self._answering.get(call)) is not None:  # the first of these calls is still at it
            left_s = None if deadline is None else deadline - time.monotonic()
            try:
                await asyncio.wait_for(answering.wait(), left_s)
            except asyncio.TimeoutError:
                raise too_late("the call that this one repeats is still in progress") from None
        asked = _digest(request)
        answered = session.reply(request.request_id, asked)
        if answered is not None:
            return answered
        over = self._answering[call] = asyncio.Event()
        try:
            reply = await self._plan(request, session, deadline, received, decode_ms)
            session.keep_reply(request.request_id, reply, asked)
        finally:
            del self._answering[call]
            over.set()
        return reply

    async def _plan(
        self, request: PlanRequest, session: Session | None, deadline: float | None, received: float, decode_ms: float
    ) -> Plan:
        served = self._engines.model(session.model if session is not None else request.model)
        size = validation.search_size(request.planner, served, self._limits)
        ends = deadline is not None or request.budget_ms is not None
        own = validation.can_predict(served)
        work_limits.search(size, own, served.reply, self._engines.pace(served.reply.name), self._limits, ends)
        validation.observation(request.observation, served.reply)
        validation.past(request.observation, served, session is not None)
        limits = validation.limits(request.limits, None if session is None else session.limits, served.reply)
        told = validation.previous_action(request.previous_action, served.reply)
        place, pursued, follows = PlanProgress(0), GoalChoice(request.goal_id), WarmStart()
        if session is not None:
            place = session.place(request.executed, request.plan_sequence)
            pursued = session.pursuit(request.goal_id, place)
        goal = self._goals.toward(pursued.goal_id, served.reply.name, **held_by(session))
        if session is not None:
            follows = session.continuation(place, request.committed, goal.goal_id, size.optimizer)
        if told is not None:  # none of a plan's, and so over
            follows = replace(follows, previous_action=told, held=(float(LONGEST_DWELL),) * len(told))
        length = size.horizon * validation.actions_of(served.reply).block
        if request.committed > length:
            raise invalid("committed", f"must fit into the plan, {length} actions", request.committed)
        next_goal, switch_below = self._onward(pursued, served, session)
        turn = session.begin(request.observation.sequence) if session is not None else None
        sequence = request.observation.sequence if turn is None else turn.sequence
        seed = _seed(request, session, sequence)
        job = PlanJob(
            model=served.reply.name,
            start=start_of(request.observation, session, sequence, served, place),
            goal=goal.latent,
            size=size,
            seed=seed,
            warm_start=follows.warm_start,
            previous_action=follows.previous_action,
            committed=follows.committed,
            limits=limits,
            held=follows.held,
            arrival=follows.arrival,
            budget_until=None if request.budget_ms is None else received + request.budget_ms / 1e3,
            next_goal=next_goal,
            switch_below=switch_below,
        )
        asked = RequestContext(
            observation=request.observation,
            sequence=sequence,
            epoch=0 if turn is None else turn.epoch,
            seed=seed,
            goal_id=goal.goal_id,
            received=received,
            decode_ms=decode_ms,
            budget_ms=request.budget_ms,
            warnings=(*pursued.warnings, *follows.warnings),
            limits=limits,
            previous_action=follows.previous_action,
            held=follows.held,
        )
        if session is None or turn is None:
            alone = await self._engines.plan(job, deadline)
            reply = found(asked, alone, served, self._version, time.monotonic())
            self._record(request, reply, job, alone)
            return reply
        try:
            reply, planned, pursued = await self._search(job, asked, session, place, pursued, served, deadline)
        except BaseException:
            session.give_back(turn)
            raise
        self._remember(session, turn, asked, place, pursued, reply, planned, served)
        self._record(request, reply, job, planned)
        return reply

    def _onward(self, pursued: GoalChoice, served: ServedModel, session: Session | None) -> tuple[Floats | None, float]:
        """The goal of the next stage, and how near the present one's leads on to it."""
        stages = pursued.stages
        if stages is None or stages.next is None or not stages.current.switch_below:
            return None, 0.0
        following = self._goals.toward(stages.next.goal_id, served.reply.name, **held_by(session))
        return following.latent, stages.current.switch_below

    async def _search(
        self,
        job: PlanJob,
        asked: RequestContext,
        session: Session,
        place: PlanProgress,
        pursued: GoalChoice,
        served: ServedModel,
        deadline: float | None,
    ) -> tuple[Plan, Planned | None, GoalChoice]:
        """The reply, what was found, and what is pursued now. Without time to search: the rest of a plan, and None."""
        try:
            planned = await self._engines.plan(job, deadline)
        except ServiceError as error:
            rest = session.rest(place, asked.goal_id)
            now = time.monotonic()
            if error.reason is not Reason.DEADLINE or rest is None or deadline is None or now >= deadline:
                raise
            if limit_fault(rest.actions, asked, served.reply):  # limits are narrower now
                raise
            return reply_from_previous_plan(asked, rest, job.size, served, self._version, now), None, pursued
        if planned.done.goal_reached:
            near = f"the observation's goal_distance was at or below {job.switch_below:g} in the stage before"
            before, pursued = pursued, pursued.onward(place.since_reset, near)
            asked = replace(
                asked, goal_id=pursued.goal_id, warnings=(*asked.warnings, *pursued.warnings[len(before.warnings) :])
            )
        reply = found(asked, planned, served, self._version, time.monotonic())
        return reply, planned, pursued

    def _remember(
        self,
        session: Session,
        turn: ObservationTicket,
        asked: RequestContext,
        place: PlanProgress,
        pursued: GoalChoice,
        reply: Plan,
        planned: Planned | None,
        served: ServedModel,
    ) -> None:
        plan = CurrentPlan(
            actions=reply.actions,
            step_costs=reply.step_costs,
            block=validation.actions_of(served.reply).block,
            goal_id=reply.provenance.goal_id,
            goal_distance=reply.goal_distance,
            sequence=turn.sequence,
            begins_at=place.since_reset,
            previous_action=asked.previous_action,
            held=asked.held,
            arrival=reply.arrival,
            optimizer=reply.provenance.planner.optimizer or "",
        )
        proprioception = asked.observation.proprioception if served.reply.proprioception_names else None
        seen = None
        if planned is not None:
            seen = EncodedObservation(turn.sequence, planned.done.latent, proprioception, place.since_reset)
        session.commit(turn, plan, seen, pursued.stages, place)
        if self._sessions.touch(session, time.monotonic()):
            self._goals.hold(session.session_id, session.caller.owner, session.goal_ids)

    def _record(self, request: PlanRequest, reply: Plan, job: PlanJob, planned: Planned | None) -> None:
        if self._recorder is None:
            return
        given = None if planned is None else replace(job, size=planned.done.size, budget_until=None)
        done = None if planned is None else planned.done
        self._recorder.put(PlanRecord(time.time_ns(), request, reply, given, done, tracing.current()))


def held_by(session: Session | None) -> dict[str, str]:
    """Whose goals a call may name: the session's, with those that it alone still holds, or the caller's."""
    if session is None:
        return {"owner": calling().owner}
    return {"owner": session.caller.owner, "holder": session.session_id}


def start_of(
    seen: Observation,
    session: Session | None,
    sequence: int,
    served: ServedModel,
    progress: PlanProgress | None = None,
) -> Start:
    """Where predictions start: what is seen, and what the session saw before it, as far as the model looks back.

    A model that its past actions matter to looks back on what was seen whole model steps before. Where nobody says how
    far the robot is by now (`progress`), or a step is not known whole, on nothing beyond.
    """
    most = served.reply.history - 1
    earlier: tuple[EncodedObservation, ...] = ()
    executed = seen.past_actions
    if served.reply.past_actions:
        if session is not None and progress is not None:
            earlier, executed = session.steps_before(
                sequence, progress, validation.actions_of(served.reply).block, most
            )
    elif session is not None and most:
        earlier = session.earlier(sequence)[-most:]
    proprioception = None
    if seen.proprioception is not None and seen.proprioception.size:
        before = [past.proprioception for past in earlier if past.proprioception is not None]
        proprioception = np.stack([*before, seen.proprioception]).astype(np.float32)
    calibration = session.calibration if session is not None else None
    return Start(
        seen.images,
        tuple(past.latent for past in earlier),
        proprioception,
        0.0 if calibration is None else calibration.angle_rad,
        past_frames=seen.past_images,
        past_actions=None if executed is None or not executed.size else executed.astype(np.float32),
    )


def _digest(request: PlanRequest) -> bytes:
    """Of everything that makes one request another; the time that is left for it does not."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        elif isinstance(value, tuple):
            digest.update(f"({len(value)}".encode())
            for entry in value:
                add(entry)
        elif is_dataclass(value):
            for field in fields(value):
                if field.name not in ("request_id", "budget_ms"):
                    add(getattr(value, field.name))
        else:
            digest.update(f"{type(value).__name__}:{value}\0".encode())

    add(request)
    return digest.digest()


def _seed(request: PlanRequest, session: Session | None, sequence: int) -> int:
    """The request's, else the session's for this observation, else any."""
    if request.seed is not None:
        return request.seed
    return secrets.randbits(53) if session is None else session.seed_for(sequence)
