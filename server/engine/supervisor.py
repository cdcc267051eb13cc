"""Supervises one engine process: starts it, sends it jobs, and restarts it when it dies.

Everything here is asyncio; what runs inside the process is `engine_process`, imported there alone (it needs torch).
"""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from typing import Literal

import structlog

from server.engine.ipc import FrontChannel
from server.engine.messages import (
    Cancel,
    Done,
    EngineSettings,
    Failed,
    FromEngine,
    Heartbeat,
    Job,
    Loaded,
    LoadFailed,
    Pace,
    Ready,
    Result,
    ServedModel,
    Submit,
)
from server.errors import Reason, ServiceError
from server.values.caller import EVERYONE, Caller

_log = structlog.get_logger()

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 30.0
SOCKET_BYTES = 4 * 1024 * 1024
LOOKS_IN_SILENCE = 10  # how often the front looks for heartbeats within the time that an engine may be silent


EngineState = Literal["ready", "loading", "restarting", "cannot load its models"]


class _TimeIsUpError(Exception):
    """The alarm of a call."""


class Engine:
    """One engine process, restarted when it dies. `learn` is told how fast it is with its models.

    `held` are the digests of the models' packages as they were when the service started, by name, which all engines of
    a service fill and keep to: what changed on the disk since then is not served.
    """

    def __init__(
        self,
        settings: EngineSettings,
        learn: Callable[[dict[str, Pace]], None],
        held: dict[str, str] | None = None,
    ) -> None:
        self._settings, self._learn = settings, learn
        self._held = {} if held is None else held
        self._process: SpawnProcess | None = None
        self._channel: FrontChannel | None = None
        self._calls: dict[int, asyncio.Future[Result]] = {}
        self._numbers = 0
        self._supervisor: asyncio.Task[None] | None = None
        self.models: tuple[ServedModel, ...] = ()
        self.ready = asyncio.Event()
        self.failure: ServiceError | None = None  # why it will never be ready
        self.away: ServiceError | None = None  # why it is not ready now, where it was before
        self.away_since: float | None = None  # an instant of time.monotonic(), where it was ready before and is not
        self._failed, self._was_ready = asyncio.Event(), False
        self._silent_looks = 0  # in a row, at none of which anything had been heard
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process, and from now on start it again whenever it dies."""
        self._supervisor = asyncio.create_task(self._supervise())

    async def wait_ready(self) -> None:
        """Wait until warm. Raises NOT_READY where a model cannot be loaded."""
        ready, failed = asyncio.ensure_future(self.ready.wait()), asyncio.ensure_future(self._failed.wait())
        try:
            await asyncio.wait((ready, failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            failed.cancel()
        if self.failure is not None:
            raise self.failure

    async def submit(self, job: Job, until: float | None = None, caller: Caller = EVERYONE) -> Result:
        """Have a caller's job done. Cancelling the awaiting task drops the job between two pieces of its work.

        Raises ServiceError: NOT_READY; ENGINE_LOST if the process dies meanwhile; DEADLINE at the instant `until`,
        whatever the engine is doing; or what went wrong with the job.
        """
        if self._channel is None or not self.ready.is_set():
            raise (
                self.failure or self.away or ServiceError(Reason.NOT_READY, "the engine is starting", retry_after_s=1.0)
            )
        self._numbers += 1
        number, channel = self._numbers, self._channel
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        alarm = None
        if until is not None:
            alarm = asyncio.get_running_loop().call_later(until - time.monotonic(), _give_up, answer)
        sending = channel.send(Submit(number, job, caller.name, caller.weight))
        try:
            return await answer
        except (asyncio.CancelledError, _TimeIsUpError) as error:
            if sending is not None and not sending.done():
                sending.cancel()
            else:
                channel.send(Cancel(number))
            if isinstance(error, _TimeIsUpError):
                raise ServiceError(Reason.DEADLINE, "the engine was not done by the deadline") from None
            raise
        finally:
            self._calls.pop(number, None)
            if alarm is not None:
                alarm.cancel()

    async def stop(self) -> None:
        """End the process; calls still in it are lost."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        await self._end()

    async def _supervise(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while self.failure is None:
            try:
                await self._spawn()
                await self._listen()
            except OSError as error:
                _log.error("the engine cannot be started", why=str(error))
            was_ready = self.ready.is_set()
            await self._end()
            if self.failure is not None:
                return
            self.restarts += 1
            if was_ready:
                self.away_since = time.monotonic()
            backoff_s = FIRST_BACKOFF_S if was_ready else min(2 * backoff_s, LONGEST_BACKOFF_S)
            if self.away is not None:
                self.away.retry_after_s = backoff_s
            _log.error("the engine died and is started again", in_s=backoff_s, restarts=self.restarts)
            await asyncio.sleep(backoff_s)

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):  # a camera's frame is written in one go, where the system allows
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        try:
            process = multiprocessing.get_context("spawn").Process(
                target=_run, args=(theirs, self._settings), name="presage-engine", daemon=True
            )
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        # The process ignores SIGTERM, with which multiprocessing would wait for it when an interpreter exits.
        atexit.register(process.kill)
        self._process = process
        ours.setblocking(False)
        self._channel = await FrontChannel.open(ours)

    async def _listen(self) -> None:
        """Take what the process says until it is gone, or until it has been silent for too long and is ended."""
        watching = asyncio.create_task(self._watch())
        try:
            while self._channel is not None and (message := await self._channel.receive()) is not None:
                self._silent_looks = 0
                self._take(message)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        """End the process once it is stuck: its callers are told, and the supervisor starts another.

        Counts looks, not seconds: time in which this process did not run itself is nobody's silence.
        """
        look_s, self._silent_looks = self._settings.silence_s / LOOKS_IN_SILENCE, 0
        most_looks = self._settings.startup_timeout_s / look_s
        while self._silent_looks < most_looks:
            await asyncio.sleep(look_s)
            self._silent_looks += 1
            if self.ready.is_set():
                most_looks = LOOKS_IN_SILENCE
        _log.error("the engine is stuck and is ended", silent_s=round(self._silent_looks * look_s, 1))
        if self._process is not None:
            self._process.kill()

    def _take(self, message: FromEngine) -> None:
        match message:
            case Heartbeat():
                pass  # being heard is all it is for
            case Loaded(models, threads):
                changed = [model for model in models if self._held.get(model.reply.name, model.digest) != model.digest]
                if changed:
                    self._refuse(changed[0])
                    return
                self._held.update({model.reply.name: model.digest for model in models})
                self.models = models
                for model in models:
                    name, dtype, why = model.reply.name, model.dtype, model.why_dtype
                    graphs = model.graphs
                    _log.info("the engine computes", model=name, threads=threads, dtype=dtype, why=why, graphs=graphs)
            case LoadFailed(reason) if self._was_ready:  # it could before: a package that is away may come back
                _log.error("the engine cannot load its models, and will try again", why=reason)
                self.away = ServiceError(
                    Reason.NOT_READY, f"the models cannot be loaded now: {reason}", retry_after_s=1.0
                )
            case LoadFailed(reason):
                _log.error("the engine cannot load its models", why=reason)
                self.failure = ServiceError(Reason.NOT_READY, f"the models cannot be loaded: {reason}")
                self._failed.set()
            case Ready(paces):
                self._learn(paces)
                self.away = self.away_since = None
                self._was_ready = True
                self.ready.set()
            case Done(number, result, paces):
                answer = self._calls.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(result)
                if paces is not None:
                    self._learn(paces)
            case Failed(number, reason, text, field, rule, value):
                answer = self._calls.get(number)
                if answer is not None and not answer.done():
                    answer.set_exception(ServiceError(reason, text, field=field, rule=rule, value=value))

    def _refuse(self, changed: ServedModel) -> None:
        """End a process that loaded another package than the one this service was started with."""
        name, before = changed.reply.name, self._held[changed.reply.name]
        why = f"the package of model {name} changed since the service started (digest {before[:16]}, now "
        why += f"{changed.digest[:16]}): restart the service to serve it, or put back what there was"
        _log.error("the engine cannot load its models, and will try again", why=why)
        self.away = ServiceError(Reason.NOT_READY, why, retry_after_s=1.0)
        if self._process is not None:
            self._process.kill()

    @property
    def state(self) -> EngineState:
        """What it is at, in a word."""
        if self.ready.is_set():
            return "ready"
        if self.failure is not None or self.away is not None:
            return "cannot load its models"
        return "loading" if self.away_since is None else "restarting"

    async def _end(self) -> None:
        """Answer everyone who waits, and let go of the process."""
        self.ready.clear()
        for answer in self._calls.values():
            if not answer.done():
                message = "the engine stopped and is being restarted"
                answer.set_exception(ServiceError(Reason.ENGINE_LOST, message, retry_after_s=1.0))
        channel, process = self._channel, self._process
        self._channel = self._process = None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.join)
            atexit.unregister(process.kill)
            process.close()


def _run(end: socket.socket, settings: EngineSettings) -> None:
    # GNU OpenMP's threads wait for each other by spinning, for milliseconds unless told otherwise. Where something else
    # wants the cores as well, they spin while the one they wait for is not running: plans with `arm` on two threads
    # beside a training took 21 s so, 3.3 s with this. It has to be said before torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    from server.worker.process import run

    run(end, settings)


def _give_up(answer: asyncio.Future[Result]) -> None:
    if not answer.done():
        answer.set_exception(_TimeIsUpError())
