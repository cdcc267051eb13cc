"""client.py for asyncio programs: the same questions, awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Sequence

from presage.aio.connection import AsyncConnection, in_thread
from presage.aio.session import AsyncSession
from presage.errors import PresageError
from presage.protocol import requests
from presage.protocol.requests import Seen
from presage.protocol.retry import Readiness
from presage.protocol.transport import TLS, Endpoint, Path
from presage.protocol.upload import Progress, announce_clip, upload_time_s
from presage.values import (
    ClipEmbedding,
    Embedding,
    Goal,
    GoalStage,
    Health,
    ImageLike,
    Landscape,
    Model,
    Plan,
    PlannerSettings,
    Rollout,
    Score,
    Surprise,
)

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import ArrayLike


class AsyncClient:
    """A Presage server, for the event loop of its first call. Arguments as for `Client`; an async context manager."""

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        api_key: str | None = None,
        tls: TLS | None = None,
        timeout_s: float = 10.0,
        affinity: str | None = None,
    ) -> None:
        self._connection = AsyncConnection(Endpoint(address, api_key, tls, affinity), timeout_s)

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """As `Client.health`."""
        return await self._connection.send(requests.health(), timeout_s)

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """As `Client.wait_ready`."""
        readiness = Readiness(self._connection.endpoint.address, timeout_s)
        while True:
            answer: Health | PresageError
            try:
                answer = await self.health(timeout_s=readiness.ask_within_s(self._connection.timeout_s))
            except PresageError as error:
                answer = error
            pause = readiness.pause_s(answer)
            if pause is None:
                return
            await asyncio.sleep(pause)

    async def models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """As `Client.models`."""
        return await self._connection.send(requests.list_models(), timeout_s)

    async def model(self, name: str = "", *, timeout_s: float | None = None) -> Model:
        """As `Client.model`."""
        return await self._connection.send(requests.get_model(name), timeout_s)

    async def goal(
        self,
        image: ImageLike | None = None,
        *,
        latent: ArrayLike | None = None,
        model: str = "",
        timeout_s: float | None = None,
    ) -> Goal:
        """As `Client.goal`."""
        return await self._connection.send(requests.create_goal(image, latent, model), timeout_s)

    async def get_goal(self, goal: Goal | str, *, timeout_s: float | None = None) -> Goal:
        """As `Client.get_goal`."""
        return await self._connection.send(requests.get_goal(goal), timeout_s)

    async def delete_goal(self, goal: Goal | str, *, timeout_s: float | None = None) -> None:
        """As `Client.delete_goal`."""
        await self._connection.send(requests.delete_goal(goal), timeout_s)

    async def session(
        self,
        model: str = "",
        goal: Goal | str | None = None,
        ttl_s: float = 0.0,
        seed: int | None = None,
        *,
        stages: Sequence[GoalStage] = (),
        timeout_s: float | None = None,
    ) -> AsyncSession:
        """As `Client.session`."""
        status = await self._connection.send(requests.create_session(model, goal, ttl_s, seed, stages), timeout_s)
        return AsyncSession(self._connection, status)

    async def resume_session(self, session_id: str, *, timeout_s: float | None = None) -> AsyncSession:
        """As `Client.resume_session`."""
        return AsyncSession(self._connection, await self._connection.send(requests.get_session(session_id), timeout_s))

    async def plan(
        self,
        seen: Seen,
        goal: Goal | str,
        *,
        model: str = "",
        proprioception: Sequence[float] | None = None,
        budget_ms: float | None = None,
        seed: int | None = None,
        settings: PlannerSettings | None = None,
        timeout_s: float | None = None,
    ) -> Plan:
        """As `Client.plan`."""
        call = requests.plan(
            seen,
            session_id="",
            model=model,
            goal=goal,
            proprioception=proprioception,
            budget_ms=budget_ms,
            executed=0,
            follows=None,
            seed=seed,
            settings=settings,
        )
        return await self._connection.send(call, timeout_s)

    async def rollout(
        self,
        seen: Seen,
        actions: ArrayLike,
        *,
        goal: Goal | str | None = None,
        model: str = "",
        proprioception: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ) -> Rollout:
        """As `Client.rollout`."""
        call = requests.rollout(seen, actions, session_id="", model=model, goal=goal, proprioception=proprioception)
        return await self._connection.send(call, timeout_s)

    async def score(
        self,
        seen: Seen,
        candidates: ArrayLike,
        goal: Goal | str,
        *,
        model: str = "",
        proprioception: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ) -> Score:
        """As `Client.score`."""
        call = requests.score(seen, candidates, session_id="", model=model, goal=goal, proprioception=proprioception)
        return await self._connection.send(call, timeout_s)

    async def distance(
        self,
        images: Sequence[ImageLike],
        goal: Goal | str,
        *,
        model: str = "",
        timeout_s: float | None = None,
    ) -> tuple[float, ...]:
        """As `Client.distance`."""
        return await self._connection.send(requests.distance(images, session_id="", model=model, goal=goal), timeout_s)

    async def surprise(
        self, seen: Sequence[Seen], actions: ArrayLike, *, model: str = "", timeout_s: float | None = None
    ) -> Surprise:
        """As `Client.surprise`."""
        return await self._connection.send(requests.surprise(seen, actions, session_id="", model=model), timeout_s)

    async def landscape(
        self,
        seen: Seen,
        goal: Goal | str,
        *,
        model: str = "",
        proprioception: Sequence[float] | None = None,
        dimensions: Sequence[str] = (),
        points: int = 5,
        extent: float = 1.0,
        plot: bool = False,
        timeout_s: float | None = None,
    ) -> Landscape:
        """As `Client.landscape`."""
        call = requests.landscape(
            seen,
            session_id="",
            model=model,
            goal=goal,
            proprioception=proprioception,
            dimensions=dimensions,
            points=points,
            extent=extent,
            plot=plot,
        )
        return await self._connection.send(call, timeout_s)

    async def embed_images(
        self,
        images: Sequence[ImageLike],
        kind: str = "per_frame",
        *,
        goal: Goal | str | None = None,
        model: str = "",
        timeout_s: float | None = None,
    ) -> Embedding:
        """As `Client.embed_images`."""
        return await self._connection.send(requests.embed_images(images, kind, goal, model), timeout_s)

    async def embed_clip(
        self,
        path: Path,
        kind: str = "pooled",
        *,
        fps: float | None = None,
        frames: int | None = None,
        goal: Goal | str | None = None,
        model: str = "",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> ClipEmbedding:
        """As `Client.embed_clip`."""
        clip = await in_thread(lambda: announce_clip(path, kind=kind, fps=fps, frames=frames, goal=goal, model=model))
        limit = upload_time_s(clip.size, self._connection.timeout_s) if timeout_s is None else timeout_s
        return await self._connection.upload(clip, kind, progress, limit)

    async def close(self) -> None:
        """As `Client.close`."""
        await self._connection.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        endpoint, timeout_s = self._connection.endpoint, self._connection.timeout_s
        return f"AsyncClient({endpoint.address!r}, tls={endpoint.tls is not None}, timeout_s={timeout_s:g})"
