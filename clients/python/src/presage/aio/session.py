"""session.py for asyncio programs: the same questions, awaited."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Sequence

from presage.aio.connection import AsyncConnection
from presage.aio.control import AsyncControlLoop
from presage.errors import DeadlineExceeded, NotFound, PresageError, Unavailable
from presage.protocol import codec, requests
from presage.protocol.conversation import ControlSettings
from presage.protocol.requests import Seen
from presage.protocol.sequences import SequenceCounter
from presage.values import (
    CalibrationMove,
    Goal,
    ImageLike,
    Landscape,
    Plan,
    PlannerSettings,
    Rollout,
    Score,
    SessionStatus,
    Surprise,
)

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import ArrayLike


class AsyncSession:
    """One episode. Made by `AsyncClient.session()`; an async context manager that closes the session at the server."""

    def __init__(self, connection: AsyncConnection, status: SessionStatus) -> None:
        self.session_id, self.model = status.session_id, status.model
        self._connection = connection
        self._sequences = SequenceCounter(status.last_sequence)

    async def plan(
        self,
        seen: Seen,
        *,
        goal: Goal | str | None = None,
        proprioception: Sequence[float] | None = None,
        budget_ms: float | None = None,
        executed: int = 0,
        follows: Plan | None = None,
        seed: int | None = None,
        settings: PlannerSettings | None = None,
        timeout_s: float | None = None,
    ) -> Plan:
        """As `Session.plan`."""
        call = requests.plan(
            seen,
            session_id=self.session_id,
            model="",
            goal=goal,
            proprioception=proprioception,
            budget_ms=budget_ms,
            executed=executed,
            follows=follows,
            seed=seed,
            settings=settings,
        )
        plan = await self._connection.send(call, timeout_s)
        self._sequences.saw(plan.observation_sequence)
        return plan

    async def rollout(
        self,
        seen: Seen,
        actions: ArrayLike,
        *,
        goal: Goal | str | None = None,
        proprioception: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ) -> Rollout:
        """As `Session.rollout`."""
        call = requests.rollout(
            seen, actions, session_id=self.session_id, model="", goal=goal, proprioception=proprioception
        )
        return await self._connection.send(call, timeout_s)

    async def score(
        self,
        seen: Seen,
        candidates: ArrayLike,
        *,
        goal: Goal | str | None = None,
        proprioception: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ) -> Score:
        """As `Session.score`."""
        call = requests.score(
            seen, candidates, session_id=self.session_id, model="", goal=goal, proprioception=proprioception
        )
        return await self._connection.send(call, timeout_s)

    async def distance(
        self, images: Sequence[ImageLike], *, goal: Goal | str | None = None, timeout_s: float | None = None
    ) -> tuple[float, ...]:
        """As `Session.distance`."""
        call = requests.distance(images, session_id=self.session_id, model="", goal=goal)
        return await self._connection.send(call, timeout_s)

    async def surprise(self, seen: Sequence[Seen], actions: ArrayLike, *, timeout_s: float | None = None) -> Surprise:
        """As `Session.surprise`."""
        call = requests.surprise(seen, actions, session_id=self.session_id, model="")
        return await self._connection.send(call, timeout_s)

    async def landscape(
        self,
        seen: Seen,
        *,
        goal: Goal | str | None = None,
        proprioception: Sequence[float] | None = None,
        dimensions: Sequence[str] = (),
        points: int = 5,
        extent: float = 1.0,
        plot: bool = False,
        timeout_s: float | None = None,
    ) -> Landscape:
        """As `Session.landscape`."""
        call = requests.landscape(
            seen,
            session_id=self.session_id,
            model="",
            goal=goal,
            proprioception=proprioception,
            dimensions=dimensions,
            points=points,
            extent=extent,
            plot=plot,
        )
        return await self._connection.send(call, timeout_s)

    async def calibrate(self, moves: Sequence[CalibrationMove], *, timeout_s: float | None = None) -> SessionStatus:
        """As `Session.calibrate`."""
        return await self._connection.send(requests.calibrate_session(self.session_id, moves), timeout_s)

    def control(
        self,
        *,
        goal: Goal | str | None = None,
        budget_ms: float | None = None,
        settings: PlannerSettings | None = None,
        heartbeat_s: float = 1.0,
        stall_s: float = 3.0,
    ) -> AsyncControlLoop:
        """As `Session.control`."""
        control = ControlSettings(self.session_id, codec.goal_id(goal), settings, budget_ms, heartbeat_s, stall_s)
        return self._connection.control(control, self._sequences)

    async def status(self, *, timeout_s: float | None = None) -> SessionStatus:
        """As `Session.status`."""
        return await self._connection.send(requests.get_session(self.session_id), timeout_s)

    async def reset(self, *, timeout_s: float | None = None) -> SessionStatus:
        """As `Session.reset`."""
        return await self._connection.send(requests.reset_session(self.session_id), timeout_s)

    async def close(self) -> None:
        """As `Session.close`."""
        await self._connection.close_loops(self.session_id)
        with suppress(NotFound, Unavailable, DeadlineExceeded):
            await self._connection.send(requests.delete_session(self.session_id))

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except PresageError:
            if error is None:  # otherwise what went wrong inside is the news
                raise

    def __repr__(self) -> str:
        return f"AsyncSession({self.session_id!r}, model {self.model!r})"
