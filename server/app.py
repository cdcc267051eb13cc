"""The application: one core behind gRPC, REST and tests. Values and numpy in and out, ServiceError for what goes wrong.

It imports no transport and no torch: models live in engine processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.jobs import Loader
from server.messages import (
    EmbedClipRequest,
    EmbedImagesRequest,
    EmbedReply,
    GoalReply,
    GoalRequest,
    ModelReply,
    PlanReply,
    PlanRequest,
    RolloutReply,
    RolloutRequest,
    ScoreReply,
    ScoreRequest,
    SessionReply,
    SessionRequest,
)

MIB = 1024 * 1024


@dataclass(frozen=True)
class AppSettings:
    """What the application needs to know; the doors' settings produce it."""

    models: tuple[str, ...] = ("arm",)  # package names or folders, the default first
    devices: tuple[str, ...] = ("auto",)  # one engine process each: cpu, cuda, cuda:1, mps, or auto
    engine_threads: int = 0  # CPU threads of an engine; 0 leaves the choice to torch
    max_sessions: int = 1024
    session_ttl_s: float = 600.0
    max_session_ttl_s: float = 86_400.0
    goal_cache_bytes: int = 64 * MIB
    queue_limit: int = 64  # calls in an engine, running or waiting
    max_batch: int = 64  # searches in one rollout
    max_rollout_steps: int = 2_000_000  # horizon x samples x iterations of one plan; candidates x horizon of one score
    max_iteration_steps: int = 65_536  # horizon x samples in one rollout: bounds an engine's memory
    max_iterations: int = 1_000
    max_images: int = 256  # in one embedding
    clip_frames: int = 4_096  # used of one clip
    clip_pixels: int = 512 * MIB  # of all frames used of one clip
    clip_timeout_s: float = 60.0  # to decode one clip
    clip_workers: int = 2  # clips decoded at once
    reply_margin_s: float = 0.005  # at least this long before a deadline, a plan leaves the engine
    loader: Loader | None = None  # another way to load a model; None: model.catalog.load


class Application:
    """One core for every door. Async; raises ServiceError only (and CancelledError, where its caller is cancelled).

    `deadline` is an instant of time.monotonic() by which the reply must have been sent, `received` the instant the call
    came in, `decode_ms` what the door spent on decoding it.
    """

    @classmethod
    async def start(cls, settings: AppSettings) -> Application:
        """Start the engines and return at once; `ready` follows when every model has warmed up."""
        raise NotImplementedError

    async def stop(self, drain_s: float) -> None:
        """Refuse what is new, let what is running end within `drain_s` seconds, and end the engines."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether every engine is warm."""
        raise NotImplementedError

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until ready. Raises NOT_READY: too slow, or (at once) a model that cannot be loaded."""
        raise NotImplementedError

    def models(self) -> tuple[ModelReply, ...]:
        """Every model, the default first. Raises NOT_READY until they are loaded."""
        raise NotImplementedError

    def model(self, name: str) -> ModelReply:
        """One model; an empty name means the default. Raises UNKNOWN_MODEL."""
        raise NotImplementedError

    async def create_goal(self, request: GoalRequest, deadline: float | None = None) -> GoalReply:
        raise NotImplementedError

    async def get_goal(self, goal_id: str) -> GoalReply:
        raise NotImplementedError

    async def delete_goal(self, goal_id: str) -> None:
        raise NotImplementedError

    async def create_session(self, request: SessionRequest) -> SessionReply:
        raise NotImplementedError

    async def get_session(self, session_id: str) -> SessionReply:
        raise NotImplementedError

    async def reset_session(self, session_id: str) -> SessionReply:
        raise NotImplementedError

    async def delete_session(self, session_id: str) -> None:
        raise NotImplementedError

    async def plan(
        self, request: PlanRequest, deadline: float | None, received: float, decode_ms: float = 0.0
    ) -> PlanReply:
        """Plan by the deadline. Cancelling the awaiting task frees the engine within one iteration."""
        raise NotImplementedError

    async def embed_images(self, request: EmbedImagesRequest, deadline: float | None = None) -> EmbedReply:
        raise NotImplementedError

    async def embed_clip(self, request: EmbedClipRequest, deadline: float | None = None) -> EmbedReply:
        raise NotImplementedError

    async def rollout(self, request: RolloutRequest, deadline: float | None = None) -> RolloutReply:
        raise NotImplementedError

    async def score(self, request: ScoreRequest, deadline: float | None = None) -> ScoreReply:
        raise NotImplementedError
