"""Prediction calls: rollouts, scores, distances and surprise, without a search."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
from presage.values import Landscape, Rollout, Score, SessionStatus, Surprise

from server.config import Limits
from server.engine.messages import (
    CalibrateDone,
    CalibrateJob,
    EmbedDone,
    EmbedImagesJob,
    Floats,
    Move,
    RolloutDone,
    RolloutJob,
    ServedModel,
    SurpriseDone,
    SurpriseJob,
)
from server.engine.pool import EnginePool
from server.errors import Reason, ServiceError
from server.service import validation, work_limits
from server.service.goals import GoalCache
from server.service.landscape import draw, grid, landscape
from server.service.planning import held_by, start_of
from server.service.sessions.session import Session
from server.service.sessions.session_table import SessionTable
from server.values.caller import calling
from server.values.calls import (
    Array,
    CalibrateRequest,
    DistanceReply,
    DistanceRequest,
    LandscapeRequest,
    Observation,
    RolloutRequest,
    ScoreRequest,
    SurpriseRequest,
)


class PredictionCalls:
    """Answers rollouts, scores, distances, surprises, landscapes and calibrations."""

    def __init__(self, pool: EnginePool, sessions: SessionTable, goals: GoalCache, limits: Limits) -> None:
        self._engines, self._sessions, self._goals, self._limits = pool, sessions, goals, limits

    async def rollout(self, request: RolloutRequest, deadline: float | None, now: float) -> Rollout:
        """See `Application.rollout`."""
        session, served = self._asked(request.session_id, request.model, now)
        validation.can_predict(served)
        validation.observation(request.observation, served.reply)
        actions = np.asarray(request.actions, np.float32)
        validation.candidates(actions[None], served.reply, self._limits, "actions")
        work_limits.reply(
            len(actions) // validation.actions_of(served.reply).block, served.reply, self._limits, "actions"
        )
        goal = self._goal(request.goal_id, session, served) if request.goal_id else None
        done = await self._predict(request.observation, session, served, actions[None], goal, "actions", deadline)
        assert done.latents is not None
        distances = () if done.step_costs is None else tuple(done.step_costs[0].tolist())
        return Rollout(done.latents[0], distances)

    async def score(self, request: ScoreRequest, deadline: float | None, now: float) -> Score:
        """See `Application.score`."""
        session, served = self._asked(request.session_id, request.model, now)
        validation.can_predict(served)
        validation.observation(request.observation, served.reply)
        candidates = np.asarray(request.candidates, np.float32)
        validation.candidates(candidates, served.reply, self._limits, "candidates")
        goal = self._goal(request.goal_id, session, served)
        done = await self._predict(request.observation, session, served, candidates, goal, "candidates", deadline)
        assert done.step_costs is not None
        return Score(done.step_costs.sum(1), done.step_costs)

    async def distance(self, request: DistanceRequest, deadline: float | None, now: float) -> DistanceReply:
        """See `Application.distance`."""
        session, served = self._asked(request.session_id, request.model, now)
        validation.image_count(request.images, self._limits.images)
        for index, image in enumerate(request.images):
            validation.frame(image, served.reply, f"images[{index}]")
        goal = self._goal(request.goal_id, session, served)
        job = EmbedImagesJob(served.reply.name, request.images, "pooled", goal)
        pace = self._engines.pace(served.reply.name)
        work_s = work_limits.frames(len(request.images), pace, self._limits, "images")
        done = await self._engines.run(job, deadline, work_s)
        assert isinstance(done, EmbedDone)
        require_numbers(np.array(done.goal_distances))
        return DistanceReply(done.goal_distances)

    async def surprise(self, request: SurpriseRequest, deadline: float | None, now: float) -> Surprise:
        """See `Application.surprise`."""
        session, served = self._asked(request.session_id, request.model, now)
        validation.can_predict(served)
        actions = np.asarray(request.actions, np.float32)
        validation.steps_seen(request.observations, actions, served.reply, self._limits, self._limits.images)
        proprioception = [seen.proprioception for seen in request.observations if seen.proprioception is not None]
        job = SurpriseJob(
            model=served.reply.name,
            frames=tuple(seen.images[0] for seen in request.observations),
            actions=actions,
            proprioception=np.stack(proprioception) if served.reply.proprioception_names else None,
            turn_rad=0.0 if session is None or session.calibration is None else session.calibration.angle_rad,
        )
        pace, count = self._engines.pace(served.reply.name), len(request.observations)
        work_s = work_limits.frames(count, pace, self._limits, "observations") + (count - 1) * pace.least_serial_s
        done = await self._engines.run(job, deadline, work_s)
        assert isinstance(done, SurpriseDone)
        require_numbers(np.array(done.errors))
        if session is None:
            return Surprise(done.errors)
        scores = session.judge(done.errors)
        return Surprise(done.errors, scores, session.surprises.count)

    async def landscape(self, request: LandscapeRequest, deadline: float | None, now: float) -> Landscape:
        """See `Application.landscape`."""
        session, served = self._asked(request.session_id, request.model, now)
        validation.can_predict(served)
        validation.observation(request.observation, served.reply)
        validation.action_entries(request.dimensions, served.reply, "dimensions")
        asked = grid(request, served)
        validation.candidates(asked.candidates, served.reply, self._limits, "points")
        goal = self._goal(request.goal_id, session, served)
        done = await self._predict(request.observation, session, served, asked.candidates, goal, "points", deadline)
        assert done.step_costs is not None
        reply = landscape(asked, done.step_costs.sum(1))
        if not request.plot:
            return reply
        action = validation.actions_of(served.reply)
        units = dict(zip(action.names, action.units, strict=True))
        named = tuple(units[name] for name in reply.dimensions)
        drawn = await asyncio.to_thread(draw, reply, named, asked.rest)
        return replace(reply, plot=drawn)

    async def calibrate(self, request: CalibrateRequest, deadline: float | None, now: float) -> SessionStatus:
        """See `Application.calibrate`."""
        session = self._sessions.get(request.session_id, now, calling())
        served = self._engines.model(session.model)
        search = validation.can_predict(served)
        validation.moves(request.moves, served.reply)
        moves = tuple(
            Move(start_of(move.before, None, 0, served), move.action.astype(np.float32), move.after.images[0])
            for move in request.moves
        )
        pace, size = self._engines.pace(served.reply.name), replace(search, horizon=1)
        work_s = work_limits.frames(2 * len(moves), pace, self._limits, "moves")
        done = await self._engines.run(CalibrateJob(served.reply.name, moves, size), deadline, work_s)
        assert isinstance(done, CalibrateDone)
        session.calibration = done.calibration
        return session.describe()

    def _asked(self, session_id: str, model: str, now: float) -> tuple[Session | None, ServedModel]:
        """The session a call names, if any, and the model it is about."""
        session = self._sessions.get(session_id, now, calling()) if session_id else None
        return session, self._engines.model(model if session is None else session.model)

    def _goal(self, goal_id: str, session: Session | None, served: ServedModel) -> Floats:
        """The goal a call names, or its session's. Raises GOAL_REQUIRED and UNKNOWN_GOAL."""
        named = goal_id or (session.goal_id if session is not None else "")
        return self._goals.toward(named, served.reply.name, **held_by(session)).latent

    async def _predict(
        self,
        observation: Observation,
        session: Session | None,
        served: ServedModel,
        candidates: Floats,
        goal: Floats | None,
        field: str,
        deadline: float | None,
    ) -> RolloutDone:
        """`field` names the candidates in errors. The latents themselves come back for `actions` alone."""
        steps = candidates.shape[1] // validation.actions_of(served.reply).block
        pace, own = self._engines.pace(served.reply.name), validation.can_predict(served)
        work_s = work_limits.rollouts(len(candidates), steps, own, pace, self._limits, field)
        validation.past(observation, served, session is not None)
        start = start_of(observation, session, observation.sequence, served)
        job = RolloutJob(served.reply.name, start, candidates, goal, costs_only=field != "actions")
        done = await self._engines.run(job, deadline, work_s)
        assert isinstance(done, RolloutDone)
        for values in (done.latents, done.step_costs):
            if values is not None:
                require_numbers(values)
        return done


def require_numbers(values: Array) -> None:
    """Raises PLAN_FAILED for NaN and infinity: neither may leave as a prediction."""
    if not np.isfinite(values).all():
        raise ServiceError(Reason.PLAN_FAILED, "the model predicted NaN or infinity")
