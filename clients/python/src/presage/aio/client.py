"""The client for asyncio programs. Every call ends by a deadline; `protocol.requests` is what is sent and read.

The blocking client may be shared between threads; the asyncio client belongs to the event loop of its first call.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Sequence

from presage.aio.connection import AsyncConnection, in_thread
from presage.aio.session import AsyncSession
from presage.errors import PresageError
from presage.limits import ActionLimits
from presage.protocol import methods, requests
from presage.protocol.memory import SessionWish
from presage.protocol.requests import Seen
from presage.protocol.retry import Readiness
from presage.protocol.transport import TLS, Endpoint
from presage.protocol.upload import ClipLike, Progress, announce_clip, upload_time_s
from presage.values import (
    ClipClasses,
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
    """A Presage server. Nothing is dialled before the first call; a context manager, `async` in asyncio programs.

    `address` is "host:port". `api_key` is sent with every call and never shown. `tls=TLS()` encrypts. `timeout_s` is
    the deadline of every call that names none, all its tries included. `affinity` is a name of the robot's own for a
    cluster or a proxy in front of several servers: goals and sessions live in one of them, and all calls with the same
    name, from whichever client, reach the same one; 1 to 128 letters, digits, `. _ : -`.
    Images are uint8 arrays [height, width, 3] in RGB, PIL pictures, or JPEG, PNG or WebP files as their bytes or their
    path. A model name of "" means the server's default model. No proxy of the environment
    is used to reach this machine itself. Every call raises a PresageError.
    """

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
        """What the server says of itself. Needs no key."""
        return await self._connection.send(requests.health(), timeout_s)

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns once the server serves. Raises Unavailable after `timeout_s`."""
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
        """Every model the server has loaded, the default first."""
        return await self._connection.send(requests.list_models(), timeout_s)

    async def model(self, name: str = "", *, timeout_s: float | None = None) -> Model:
        """What to send a model, what it answers in, how it was made and what it scored."""
        return await self._connection.send(requests.get_model(name), timeout_s)

    async def goal(
        self,
        image: ImageLike | None = None,
        *,
        latent: ArrayLike | None = None,
        proprioception: Sequence[float] = (),
        model: str = "",
        timeout_s: float | None = None,
    ) -> Goal:
        """Embeds a goal: what the scene should look like, or a latent. The same content gives the same goal.

        `proprioception`: what the robot should measure there, beside an image, for models with `measures_goals`.
        """
        call = requests.create_goal(image, latent, model, proprioception)
        return self._connection.goals.keep(await self._connection.send(call, timeout_s), call)

    async def get_goal(self, goal: Goal | str, *, timeout_s: float | None = None) -> Goal:
        """Describes a goal, given as itself or its id. Raises NotFound once the server has dropped it."""
        return await self._connection.send(requests.get_goal(goal), timeout_s)

    async def delete_goal(self, goal: Goal | str, *, timeout_s: float | None = None) -> None:
        """Forgets a goal."""
        await self._connection.send(requests.delete_goal(goal), timeout_s)

    async def session(
        self,
        model: str = "",
        goal: Goal | str | None = None,
        ttl_s: float = 0.0,
        seed: int | None = None,
        *,
        stages: Sequence[GoalStage] = (),
        limits: ActionLimits | None = None,
        timeout_s: float | None = None,
    ) -> AsyncSession:
        """Opens a session. `ttl_s` seconds without a call and the server forgets it (0: the server's default).

        `seed`: where the seeds of plans that name none follow from; None lets the server choose. `stages`: goals to be
        reached one after another, in place of `goal`. `limits`: what all its plans keep to, narrower than the model's.
        """
        call = requests.create_session(model, goal, ttl_s, seed, stages, limits)
        status = await self._connection.send(call, timeout_s)
        return AsyncSession(self._connection, status, SessionWish(ttl_s, seed, tuple(stages), limits))

    async def resume_session(self, session_id: str, *, timeout_s: float | None = None) -> AsyncSession:
        """Takes up a session opened before, for example by a program that has been restarted since."""
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
        limits: ActionLimits | None = None,
        timeout_s: float | None = None,
    ) -> Plan:
        """Plans once, without history or warm start. Arguments as in `Session.plan`."""
        call = requests.plan(
            seen,
            session_id="",
            model=model,
            goal=goal,
            proprioception=proprioception,
            budget_ms=budget_ms,
            executed=0,
            committed=0,
            follows=None,
            seed=seed,
            settings=settings,
            limits=limits,
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
        """Predicts where `actions` [time, action], in robot units, lead. Time is a multiple of the model's block."""
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
        """Costs `candidates` [candidates, time, action], in robot units, without searching."""
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
        """How far each image's latent is from the goal's, in the planner's cost for one step."""
        return await self._connection.send(requests.distance(images, session_id="", model=model, goal=goal), timeout_s)

    async def surprise(
        self, seen: Sequence[Seen], actions: ArrayLike, *, model: str = "", timeout_s: float | None = None
    ) -> Surprise:
        """How far what was seen is from what the model predicts. Arguments as in `Session.surprise`."""
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
        """Costs a grid of actions around rest: what a search sees from where the robot stands.

        `dimensions`: up to three action entries to vary, none for the first three searched; `points` along each, odd;
        `extent`: how far to go, as a fraction of the bounds; `plot`: whether to draw it too.
        """
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
        """Embeds images. `kind`: "pooled" (one vector), "per_frame" or "tokens". With a goal, distances to it too."""
        return await self._connection.send(requests.embed_images(images, kind, goal, model), timeout_s)

    async def embed_clip(
        self,
        clip: ClipLike,
        kind: str = "pooled",
        *,
        fps: float | None = None,
        frames: int | None = None,
        goal: Goal | str | None = None,
        step_distances: bool = False,
        model: str = "",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> ClipEmbedding:
        """Uploads a video file in chunks and embeds it. `kind`: "pooled" (one vector), "per_frame" or "tokens".

        `fps` or `frames` (evenly spaced) says which frames are used; neither means all. A goal and `step_distances` ask
        for distances of frames, for which V-JEPA 2 encodes every frame by itself too. `progress(sent, total)` counts
        bytes, in another thread, from 0 again if the upload is repeated. `timeout_s`: None allows the client's and a
        second for each MiB. Raises OSError for a file that cannot be read.
        """
        announce = partial(announce_clip, clip, kind=kind, fps=fps, frames=frames, goal=goal, model=model)
        upload = await in_thread(partial(announce, step_distances=step_distances))
        limit = upload_time_s(upload.size, self._connection.timeout_s) if timeout_s is None else timeout_s
        read = partial(requests.clip_embedding, kind=kind)
        return await self._connection.upload(upload, methods.EMBED_CLIP, read, progress, limit)

    async def classify(
        self,
        clip: ClipLike,
        top_k: int = 5,
        *,
        fps: float | None = None,
        frames: int | None = None,
        model: str = "",
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> ClipClasses:
        """Uploads a video file in chunks and says what it shows: the `top_k` likeliest of the model's labels.

        `fps` or `frames` (evenly spaced) says which frames are used; neither means as many as the model was trained on,
        or all where that is not known. `progress` and `timeout_s` as for `embed_clip`. Raises OSError for a file that
        cannot be read.
        """
        upload = await in_thread(lambda: announce_clip(clip, top_k=top_k, fps=fps, frames=frames, model=model))
        limit = upload_time_s(upload.size, self._connection.timeout_s) if timeout_s is None else timeout_s
        return await self._connection.upload(upload, methods.CLASSIFY_CLIP, requests.clip_classes, progress, limit)

    async def close(self) -> None:
        """Ends every call and control loop, and their threads. Open sessions stay until the server forgets them."""
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
