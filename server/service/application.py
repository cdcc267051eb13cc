"""The application: one core behind gRPC, REST and tests. Values and numpy in and out, ServiceError for what goes wrong.

It imports no transport and no torch: models live in engine processes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

from presage.fields import from_fields
from presage.values import (
    ClipClasses,
    ClipEmbedding,
    Embedding,
    Goal,
    Landscape,
    Model,
    Plan,
    Rollout,
    Score,
    SessionStatus,
    Surprise,
)

from server.config import Settings, server_version, share_of
from server.engine.messages import EngineSettings, Loader
from server.engine.pool import EnginePool
from server.engine.supervisor import EngineState
from server.errors import invalid
from server.recording.recorder import Recorder
from server.service import validation
from server.service.clips import Clips
from server.service.embedding import EmbeddingCalls, describe
from server.service.goals import Goal as CachedGoal
from server.service.goals import GoalCache
from server.service.planning import PlanCalls
from server.service.prediction import PredictionCalls
from server.service.sessions.session import Session
from server.service.sessions.session_table import SessionTable
from server.service.sessions.stages import Stages
from server.values.caller import calling
from server.values.calls import (
    CalibrateRequest,
    ClassifyClipRequest,
    DistanceReply,
    DistanceRequest,
    EmbedClipRequest,
    EmbedImagesRequest,
    GoalRequest,
    LandscapeRequest,
    PlanRequest,
    RolloutRequest,
    ScoreRequest,
    SessionRequest,
    SurpriseRequest,
)

HOUSEKEEPING_S = 2.0
MAX_BATCH = 64  # searches in one rollout
REPLY_MARGIN_S = 0.005  # at least this long before a deadline, a plan leaves the engine


class Application:
    """One core for every gateway. Async; raises ServiceError only (and CancelledError, where its caller is cancelled).

    `deadline` is an instant of time.monotonic() by which the reply must have been sent, `received` the instant the call
    came in, `decode_ms` what the gateway spent on decoding it.
    """

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder | None = None,
        loader: Loader | None = None,
        max_batch: int = MAX_BATCH,
        reply_margin_s: float = REPLY_MARGIN_S,
    ) -> None:
        """Use `start`, which also starts the engines."""
        self._settings, limits = settings, settings.limits
        engines = [_engine_settings(settings, device, loader, max_batch) for device in settings.devices]
        self._engines = EnginePool(engines, limits.max_queue, reply_margin_s)
        self._goals = GoalCache(limits.goal_cache_bytes, limits.goal_cache_total_bytes)
        self._sessions = SessionTable(
            limits.sessions,
            share_of(limits.sessions, limits.sessions_per_key),
            limits.session_age_s,
            closed=lambda session: self._goals.release(session.session_id),
        )
        self._clips = Clips(limits)
        self._plans = PlanCalls(self._engines, self._sessions, self._goals, limits, server_version(), recorder)
        self._embeddings = EmbeddingCalls(self._engines, self._goals, self._clips, limits)
        self._predictions = PredictionCalls(self._engines, self._sessions, self._goals, limits)
        self._housekeeping: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        settings: Settings,
        recorder: Recorder | None = None,
        loader: Loader | None = None,
        max_batch: int = MAX_BATCH,
        reply_margin_s: float = REPLY_MARGIN_S,
    ) -> Application:
        """Start the engines and return at once; `ready` follows when every model has warmed up.

        Plans go to the `recorder`, if there is one; closing it is the caller's. `loader` is another way to load a model
        than model.registry's.
        """
        application = cls(settings, recorder, loader, max_batch, reply_margin_s)
        application._engines.start()
        application._housekeeping = asyncio.create_task(application._keep_house())
        return application

    async def stop(self, shutdown_grace_s: float) -> None:
        """Refuse what is new, let what is running end within `shutdown_grace_s` seconds, and end the engines."""
        await self._engines.stop(shutdown_grace_s)
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.gather(self._housekeeping, return_exceptions=True)
        await self._clips.close()

    @property
    def ready(self) -> bool:
        """Whether every engine is warm."""
        return self._engines.ready

    @property
    def calls_in_hand(self) -> int:
        """Calls that engines work on or that wait for one."""
        return self._engines.in_hand

    @property
    def sessions_open(self) -> int:
        return len(self._sessions)

    @property
    def goal_bytes(self) -> int:
        """Bytes of goals' latents held."""
        return self._goals.bytes

    @property
    def engine_restarts(self) -> int:
        """How often an engine died and was started again."""
        return self._engines.restarts

    @property
    def engine_states(self) -> tuple[EngineState, ...]:
        """What each engine is at: ready, loading, restarting, or unable to load its models."""
        return self._engines.states

    @property
    def engines_away_s(self) -> float:
        """For how many seconds there has been no engine, after there was one."""
        return self._engines.away_s(time.monotonic())

    @property
    def engine_pids(self) -> tuple[int, ...]:
        """Of the engine processes there are."""
        return self._engines.pids

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until ready. Raises NOT_READY: too slow, or (at once) a model that cannot be loaded."""
        await self._engines.wait_ready(timeout_s)

    # Models

    def models(self) -> tuple[Model, ...]:
        """Every model, the default first. Raises NOT_READY until they are loaded."""
        return tuple(served.reply for served in self._engines.models())

    def model(self, name: str) -> Model:
        """One model; an empty name means the default. Raises UNKNOWN_MODEL."""
        return self._engines.model(name).reply

    def judge_images(self, request: object) -> Callable[[str, int, int], None]:
        """What judges the images of a request before they are decoded (see `validation.images_ahead`).

        Raises what the call itself would for an unknown session or model, and for a wrong number of images.
        """
        session_id = getattr(request, "session_id", "")
        name = self._session(session_id).model if session_id else getattr(request, "model", "")
        return validation.images_ahead(request, self._engines.model(name).reply, self._settings.limits)

    # Goals

    async def create_goal(self, request: GoalRequest, deadline: float | None = None) -> Goal:
        """Embed a goal, unless the same one is still cached."""
        return await self._embeddings.goal(request, deadline)

    async def get_goal(self, goal_id: str) -> Goal:
        """Raises UNKNOWN_GOAL."""
        caller = calling()
        own: CachedGoal | None = self._goals.find(goal_id, caller.owner)
        if own is None and caller.role != "robot":
            own = self._goals.seen(goal_id)
        return describe(own or self._goals.get(goal_id, caller.owner), cached=True)

    async def delete_goal(self, goal_id: str) -> None:
        """Let go of a goal of the caller's; an admin's call of every one. Sessions keep theirs. Raises UNKNOWN_GOAL."""
        if calling().role == "admin":
            self._goals.delete_seen(goal_id)
        else:
            self._goals.delete(goal_id, calling().owner)

    # Sessions

    async def create_session(self, request: SessionRequest) -> SessionStatus:
        """Open a session."""
        served = self._engines.model(request.model)
        validation.can_predict(served)
        validation.seed(request.seed)
        most = self._settings.limits.session_ttl_s
        if not 0 <= request.ttl_s <= most:
            raise invalid("ttl_s", f"must be 0 (for the default) to {most:g}", request.ttl_s)
        validation.stages(request)
        limits = validation.limits(request.limits, None, served.reply)
        caller = calling()
        for index, stage in enumerate(request.stages):
            self._goals.toward(stage.goal_id, served.reply.name, f"stages[{index}].goal_id", caller.owner)
        if request.goal_id:
            self._goals.toward(request.goal_id, served.reply.name, owner=caller.owner)
        session = Session(
            session_id=secrets.token_urlsafe(16),
            model=served.reply.name,
            goal_id=request.goal_id,
            history=served.reply.history,
            ttl_s=request.ttl_s or self._settings.session_ttl_s,
            seed=secrets.randbits(53) if request.seed is None else request.seed,
            wall_ns=time.time_ns(),
            stages=Stages(request.stages) if request.stages else None,
            block=validation.actions_of(served.reply).block if served.reply.past_actions else 1,
            execute=served.reply.execute,
            limits=limits,
            caller=caller,
        )
        self._sessions.add(session, time.monotonic())
        self._goals.hold(session.session_id, caller.owner, session.goal_ids)
        return session.describe()

    async def get_session(self, session_id: str) -> SessionStatus:
        """Raises UNKNOWN_SESSION."""
        return self._sessions.seen(session_id, time.monotonic(), calling()).describe()

    async def reset_session(self, session_id: str) -> SessionStatus:
        """Forget history and plan, keep model and goal. Raises UNKNOWN_SESSION."""
        session = self._session(session_id)
        session.reset()
        return session.describe()

    async def delete_session(self, session_id: str) -> None:
        """Raises UNKNOWN_SESSION."""
        self._sessions.delete(session_id, time.monotonic(), calling())

    def forget(self, owner: str) -> None:
        """Close the sessions and let go of the goals of an owner whose keys are accepted no more."""
        self._sessions.forget(owner)
        self._goals.forget(owner)

    async def calibrate(self, request: CalibrateRequest, deadline: float | None = None) -> SessionStatus:
        """Learn from exploratory moves how the camera is turned; plans of the session are turned back from now on."""
        return await self._predictions.calibrate(request, deadline, time.monotonic())

    # Planning

    async def plan(self, request: PlanRequest, deadline: float | None, received: float, decode_ms: float = 0.0) -> Plan:
        """Plan by the deadline. Cancelling the awaiting task frees the engine within one iteration.

        The first iteration is done whatever the budget; after it, none begins that would end past the budget. Without
        time for one by the deadline, the reply is what is left of the session's plan toward this goal, else DEADLINE.
        """
        return await self._plans.plan(request, deadline, received, decode_ms)

    async def rollout(self, request: RolloutRequest, deadline: float | None = None) -> Rollout:
        """Predict the latents that actions lead to."""
        return await self._predictions.rollout(request, deadline, time.monotonic())

    async def score(self, request: ScoreRequest, deadline: float | None = None) -> Score:
        """Cost given candidates toward a goal."""
        return await self._predictions.score(request, deadline, time.monotonic())

    async def distance(self, request: DistanceRequest, deadline: float | None = None) -> DistanceReply:
        """How far images are from a goal, in the planner's cost for one step."""
        return await self._predictions.distance(request, deadline, time.monotonic())

    async def surprise(self, request: SurpriseRequest, deadline: float | None = None) -> Surprise:
        """How far each observation is from the one predicted from those before it; a session learns what is usual."""
        return await self._predictions.surprise(request, deadline, time.monotonic())

    async def landscape(self, request: LandscapeRequest, deadline: float | None = None) -> Landscape:
        """Cost a grid of actions around rest, each held for one step of the model."""
        return await self._predictions.landscape(request, deadline, time.monotonic())

    # Embeddings

    async def embed_images(self, request: EmbedImagesRequest, deadline: float | None = None) -> Embedding:
        """Embed images one by one."""
        return await self._embeddings.images(request, deadline)

    async def embed_clip(self, request: EmbedClipRequest, deadline: float | None = None) -> ClipEmbedding:
        """Decode a video file elsewhere and embed it."""
        return await self._embeddings.clip(request, deadline)

    async def classify_clip(self, request: ClassifyClipRequest, deadline: float | None = None) -> ClipClasses:
        """Decode a video file elsewhere and say what it shows."""
        return await self._embeddings.classify(request, deadline)

    # Within

    def _session(self, session_id: str) -> Session:
        return self._sessions.get(session_id, time.monotonic(), calling())

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self._sessions.expire(time.monotonic())


def _engine_settings(settings: Settings, device: str, loader: Loader | None, max_batch: int) -> EngineSettings:
    return from_fields(
        EngineSettings,
        settings,
        device=device,
        threads=settings.engine_threads,
        max_batch=max_batch,
        loader=loader,
        batches=settings.batches,
        nice=settings.engine_nice,
        silence_s=settings.engine_heartbeat_timeout_s,
    )
