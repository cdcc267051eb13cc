"""Engine pool: routes each call to the least loaded engine that admits it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.engine.admission import AdmissionController, ReplyMargin, too_late
from server.engine.messages import EngineSettings, Job, Pace, PlanDone, PlanJob, Result, SearchSize, ServedModel
from server.engine.supervisor import Engine, EngineState
from server.errors import Reason, ServiceError, invalid
from server.values.caller import calling

LAG_LOOK_S = 0.05  # how often the front looks how late it wakes
LAG_HALF_LIFE_S = 0.1


@dataclass(eq=False)
class PooledEngine:
    """An engine and what it has in hand."""

    engine: Engine
    admission: AdmissionController


@dataclass(frozen=True)
class Planned:
    """What an engine found, and the search that was asked for: `done.size`, which ran, may be a smaller one."""

    done: PlanDone
    asked: SearchSize


class EnginePool:
    """Every engine has every model; a call goes to the one that has least in hand."""

    def __init__(self, engines: Sequence[EngineSettings], queue_limit: int, reply_margin_s: float) -> None:
        admissions = [AdmissionController(queue_limit) for _ in engines]
        held: dict[str, str] = {}
        self._engines = tuple(
            PooledEngine(Engine(settings, admission.learn, held), admission)
            for settings, admission in zip(engines, admissions, strict=True)
        )
        self._margin = ReplyMargin(reply_margin_s)
        self._lag = ReplyMargin(0.0, half_life_s=LAG_HALF_LIFE_S)  # of this process, right now
        self._measuring_lag: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        for pooled in self._engines:
            pooled.engine.start()
        self._measuring_lag = asyncio.create_task(self._measure_lag())

    async def stop(self, shutdown_grace_s: float) -> None:
        """Refuse what is new, let what is in hand end within `shutdown_grace_s` seconds, and end the engines."""
        self._closed = True
        until = time.monotonic() + shutdown_grace_s
        while self.in_hand and time.monotonic() < until:
            await asyncio.sleep(0.02)
        if self._measuring_lag is not None:
            self._measuring_lag.cancel()
            await asyncio.gather(self._measuring_lag, return_exceptions=True)
        await asyncio.gather(*(pooled.engine.stop() for pooled in self._engines))

    @property
    def ready(self) -> bool:
        """Whether every engine is warm."""
        return not self._closed and all(pooled.engine.ready.is_set() for pooled in self._engines)

    @property
    def in_hand(self) -> int:
        """Calls that engines work on or that wait for one."""
        return sum(pooled.admission.in_hand for pooled in self._engines)

    @property
    def states(self) -> tuple[EngineState, ...]:
        """What each engine is at."""
        return tuple(pooled.engine.state for pooled in self._engines)

    def away_s(self, now: float) -> float:
        """For how long none of the engines that were ready before has been; 0 while one is, or none was yet."""
        since = [pooled.engine.away_since for pooled in self._engines]
        known = [instant for instant in since if instant is not None]
        return now - max(known) if len(known) == len(since) else 0.0

    @property
    def restarts(self) -> int:
        """How often an engine died and was started again."""
        return sum(pooled.engine.restarts for pooled in self._engines)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the engine processes there are."""
        return tuple(pooled.engine.pid for pooled in self._engines if pooled.engine.pid is not None)

    async def wait_ready(self, timeout_s: float) -> None:
        """Raises NOT_READY: too slow, or (at once) a model that cannot be loaded."""
        try:
            await asyncio.wait_for(self._all_ready(), timeout_s)
        except asyncio.TimeoutError:
            raise ServiceError(Reason.NOT_READY, f"the models were not ready within {timeout_s:g} s") from None

    async def _all_ready(self) -> None:
        # A coroutine of its own: a bare gather that is cancelled inside wait_for is a future whose end nobody looks at.
        await asyncio.gather(*(pooled.engine.wait_ready() for pooled in self._engines))

    def models(self) -> tuple[ServedModel, ...]:
        """The models, the default first; known for good once one engine has loaded them. Raises NOT_READY."""
        for pooled in self._engines:
            if pooled.engine.models:
                return pooled.engine.models
        failures = [pooled.engine.failure for pooled in self._engines if pooled.engine.failure is not None]
        raise failures[0] if failures else _not_ready()

    def model(self, name: str) -> ServedModel:
        """One model; an empty name means the default. Raises UNKNOWN_MODEL and NOT_READY."""
        models = self.models()
        for served in models:
            if name in ("", served.reply.name):
                return served
        known = ", ".join(served.reply.name for served in models)
        raise invalid("model", f"must be one of {known}", name, Reason.UNKNOWN_MODEL)

    def pace(self, name: str) -> Pace:
        """How fast the engines are with a model: the slowest of them."""
        paces = [pooled.admission.pace(name) for pooled in self._engines]
        return max(paces, key=lambda pace: pace.least_step_s)

    async def run(self, job: Job, deadline: float | None, work_s: float = 0.0) -> Result:
        """Have a job done that is no plan, for the caller at work. It takes `work_s` seconds at the least."""
        pooled, caller = self._shortest(), calling()
        ticket = pooled.admission.admit(time.monotonic(), deadline, caller, work_s)
        try:
            return await pooled.engine.submit(job, deadline, caller)
        finally:
            pooled.admission.give_back(ticket)

    async def plan(self, job: PlanJob, deadline: float | None) -> Planned:
        """Have a plan searched for, to be back a little before the deadline.

        Raises OVERLOADED, DEADLINE, ENGINE_LOST, and what the engine says of the job.
        """
        pooled, began, caller = self._shortest(), time.monotonic(), calling()
        leaves = until = None
        if deadline is not None:
            self._require_wakefulness(began, deadline)
            margin_s = self._margin.seconds(began, deadline)
            leaves, until = deadline - margin_s, deadline - margin_s / 2
        try:
            ticket = pooled.admission.admit_plan(job.model, job.size, began, leaves, caller)
            try:
                sized = replace(job, size=ticket.size, deadline=leaves, on_trust=ticket.on_trust)
                done = await pooled.engine.submit(sized, until, caller)
            finally:
                pooled.admission.give_back(ticket)
        except ServiceError as error:
            if error.reason is Reason.DEADLINE:
                pooled.admission.learn_late(job.model)
                now = time.monotonic()
                if until is not None and began < until < now:  # the alarm was late: this process waited for its turn
                    self._margin.observe(now - until, now)
            raise
        assert isinstance(done, PlanDone)
        now = time.monotonic()
        pooled.admission.learn_duration(now - began)
        self._margin.observe(now - done.ended, now)
        return Planned(done, job.size)

    async def _measure_lag(self) -> None:
        """Learn how long this process waits for its turn, also while no plan tells."""
        while True:
            due = time.monotonic() + LAG_LOOK_S
            await asyncio.sleep(LAG_LOOK_S)
            now = time.monotonic()
            self._margin.observe(now - due, now)
            self._lag.observe(now - due, now)

    def _require_wakefulness(self, now: float, deadline: float) -> None:
        """Raises DEADLINE while this process itself waits for its turns for so long that a reply would be late."""
        lag_s = self._lag.slowest_s(now)
        if 2 * lag_s > deadline - now > 0:
            raise too_late(f"the service waited {1e3 * lag_s:.0f} ms for its turn on the machine just now")

    def _shortest(self) -> PooledEngine:
        if self._closed:
            raise _not_ready("the service is shutting down")
        ready = [pooled for pooled in self._engines if pooled.engine.ready.is_set()]
        if not ready:
            failures = [pooled.engine.failure or pooled.engine.away for pooled in self._engines]
            raise next((failure for failure in failures if failure is not None), None) or _not_ready()
        return min(ready, key=lambda pooled: (pooled.admission.pass_s, pooled.admission.in_hand))


def _not_ready(why: str = "the models are still loading") -> ServiceError:
    return ServiceError(Reason.NOT_READY, why, retry_after_s=1.0)
