"""Where the service is in its life: starting, serving, draining. Says so to callers, probes and balancers.

Whether the engines are well is the application's to know; it is asked through one function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from server.errors import Reason, ServiceError

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


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


async def mirror(
    lifecycle: Lifecycle, servicer: HealthServicer, services: Iterable[str], period_s: float = 0.1
) -> None:
    """Keep grpc.health.v1 saying what `lifecycle` says, for the server ("") and every service, until cancelled."""
    names, told = ("", *services), None
    while True:
        if lifecycle.ready != told:
            told = lifecycle.ready
            for name in names:
                await servicer.set(name, _SERVING if told else _NOT_SERVING)
        await asyncio.sleep(period_s)
