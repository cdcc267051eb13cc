"""Service lifecycle (starting, serving, draining), as told to callers, probes and balancers.

Whether the engines are well is the application's to know; it is asked through one function.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.errors import Reason, ServiceError

Request: TypeAlias = health_pb2.HealthCheckRequest
Reply: TypeAlias = health_pb2.HealthCheckResponse

WATCH_S = 0.1  # how often a instrumented_call status is looked at


class Lifecycle:
    """Counts the calls in progress and refuses those that come too early, too late or on top of too many."""

    def __init__(self, engines_ready: Callable[[], bool], max_calls: int) -> None:
        self.draining = asyncio.Event()
        self.in_flight = 0
        self._engines_ready = engines_ready
        self._max_calls = max_calls
        self._was_ready = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def ready(self) -> bool:
        """Whether new work is welcome right now."""
        return not self.draining.is_set() and self._engines_ready()

    def check(self) -> None:
        """Refuse work before the first readiness and after the last. In between, a lost engine speaks for itself.

        Raises ServiceError NOT_READY.
        """
        if self.draining.is_set():
            raise ServiceError(Reason.NOT_READY, "the service is shutting down", retry_after_s=1.0)
        self._was_ready = self._was_ready or self._engines_ready()
        if not self._was_ready:
            raise ServiceError(Reason.NOT_READY, "the models are still loading", retry_after_s=1.0)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Count one call while it lasts. Raises ServiceError OVERLOADED when there are too many."""
        if self.in_flight >= self._max_calls:
            message = f"calls in progress must number at most {self._max_calls}, got one more"
            raise ServiceError(Reason.OVERLOADED, message, retry_after_s=0.1)
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no call is in progress; False when `timeout_s` passed first."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1 for the server ("") and each of its services, which all say what `lifecycle` says."""

    def __init__(self, lifecycle: Lifecycle, services: Iterable[str]) -> None:
        self._lifecycle, self._names = lifecycle, frozenset(("", *services))

    async def Check(self, request: Request, context: grpc.aio.ServicerContext[Request, Reply]) -> Reply:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service must be empty or one that reflection lists")
        return Reply(status=self._status(request.service))

    async def List(self, request: object, context: object) -> health_pb2.HealthListResponse:
        statuses = {name: Reply(status=self._status(name)) for name in self._names}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Request, context: object) -> AsyncIterator[Reply]:
        told: int | None = None
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                yield Reply(status=status)
            await asyncio.sleep(WATCH_S)

    def _status(self, service: str) -> int:
        if service not in self._names:
            return int(Reply.SERVICE_UNKNOWN)
        return int(Reply.SERVING if self._lifecycle.ready else Reply.NOT_SERVING)
