"""Shared by all transports: the application, and what every call goes through before, around and after it.

Request id, key check, readiness, limits, metrics, log line, and the error a caller is told. No transport lives here.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

import structlog

from server.config import Limits
from server.errors import Reason, ServiceError
from server.observability import tracing
from server.observability.metrics import Telemetry
from server.observability.tracing import SpanSink, TraceContext
from server.service.application import Application
from server.transport import parsers
from server.transport.callers.auth import KeyRing
from server.transport.callers.connections import Connections
from server.transport.callers.places import Strangers
from server.transport.callers.shares import Kind, Shares
from server.transport.callers.sites import Sites
from server.transport.grpc.relay import Relay
from server.transport.health import Lifecycle
from server.transport.parsers import Parsers
from server.transport.uploads import Uploads
from server.values import images
from server.values.caller import Caller, calling, working_for

Request = TypeVar("Request")
Transport = Literal["grpc", "rest", "openpi"]

LARGE_REPLY_BYTES = 2**18  # from which on a reply counts among what its caller holds, and is sent part by part

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_log = structlog.get_logger()


@dataclass(frozen=True)
class Gateway:
    """Everything a transport needs to serve the application."""

    application: Application
    limits: Limits
    keys: KeyRing
    shares: Shares
    telemetry: Telemetry
    lifecycle: Lifecycle
    uploads: Uploads
    server_version: str
    engines_away_s: float = 600.0  # without any engine, after which the service is no more alive
    relay: Relay | None = None  # in front of gRPC
    connections: Connections = field(default_factory=lambda: Connections(512, 512))  # of REST
    sites: Sites = field(default_factory=Sites)
    places: Strangers = field(default_factory=Strangers)
    parsers: Parsers | None = None  # read what takes long; without, all is read where it arrived
    spans: SpanSink | None = None  # told of every call but probes

    async def decoded(self, asked: Request, deadline: float | None) -> Request:
        """A request with its images decoded, judged first by what its model takes. Raises ServiceError."""
        if next(images.sources_of(asked), None) is None:
            return asked
        judge = self.application.judge_images(asked)
        return await images.decoded(asked, self.limits.image_pixels, self.decoder(deadline), judge)

    def decoder(self, deadline: float | None) -> images.Elsewhere | None:
        """What decodes pictures that take long, until then."""
        return None if self.parsers is None else partial(parsers.pictures, self.parsers, deadline)


@dataclass
class Call:
    """One call in progress. What is not known at first is filled in while it runs."""

    request_id: str
    rpc: str
    received: float = field(default_factory=time.monotonic)  # an instant of time.monotonic(), as are all of these
    arrived: float = field(default_factory=time.monotonic)  # when the request was here as a whole: budgets begin then
    deadline: float | None = None
    code: str = "OK"
    peer: str = ""  # the caller's address, as its transport writes it; told in the log where a call is refused
    is_revoked: bool = False  # its key was revoked while it was in progress
    trace: TraceContext = field(default_factory=lambda: tracing.begun(None))


_in_progress: ContextVar[Call] = ContextVar("presage_call")


def call_in_progress() -> Call:
    """The call that this task works for, inside of `instrumented_call`."""
    return _in_progress.get()


def checked_request_id(presented: str | None) -> str:
    """The caller's id if it is a plain one, else a new one."""
    return presented if presented and _REQUEST_ID.fullmatch(presented) else secrets.token_hex(8)


@contextmanager
def instrumented_call(gateway: Gateway, via: Transport, call: Call, is_public: bool) -> Iterator[None]:
    """Count, time and log a call; public ones (probes) are neither limited nor logged.

    Whatever fails inside leaves as a ServiceError that may be shown to the caller; only cancellation leaves as it is.
    """
    in_flight = gateway.telemetry.in_flight.labels(via)
    in_flight.inc()
    began_ns = time.time_ns()
    token = _in_progress.set(call)
    try:
        with tracing.working_for(call.trace), nullcontext() if is_public else gateway.lifecycle.call():
            yield
    except asyncio.CancelledError:
        is_late = call.deadline is not None and time.monotonic() >= call.deadline
        call.code = (Reason.DEADLINE if is_late else Reason.CANCELLED).name
        raise
    except Exception as error:
        with tracing.working_for(call.trace):
            told = explain(error, call.request_id)
        call.code = told.reason.name
        if told is error:
            raise
        raise told from error
    finally:
        seconds = time.monotonic() - call.received
        _in_progress.reset(token)
        in_flight.dec()
        gateway.telemetry.requests.labels(via, call.rpc, call.code).inc()
        gateway.telemetry.request_seconds.labels(via, call.rpc).observe(seconds)
        if not is_public:
            log = _log.debug if call.code == "OK" else _log.info
            with tracing.working_for(call.trace):
                log(
                    "call", transport=via, rpc=call.rpc, code=call.code, ms=round(seconds * 1e3, 2),
                    request_id=call.request_id, **({} if call.code == "OK" or not call.peer else {"peer": call.peer}),
                )  # fmt: skip
            if gateway.spans is not None:
                about = {"presage.code": call.code, "presage.transport": via, "presage.request_id": call.request_id}
                gateway.spans.ended(call.trace, call.rpc, about, began_ns, time.time_ns())


@contextmanager
def admitted(gateway: Gateway, call: Call, caller: Caller) -> Iterator[None]:
    """What is done inside is the caller's call, within its share, and ends where its key is revoked.

    Raises OVERLOADED, and UNAUTHENTICATED once the key is revoked.
    """
    task = asyncio.current_task()

    def end() -> None:
        call.is_revoked = True
        if task is not None:
            task.cancel()

    with gateway.shares.holding("calls", caller.name), working_for(caller), gateway.keys.ending(caller, end):
        try:
            yield
        except asyncio.CancelledError:
            if not call.is_revoked:
                raise
            rule = "must be an accepted one for as long as the call lasts"
            raise ServiceError(
                Reason.UNAUTHENTICATED, f"the API key {rule}: it was revoked", field="authorization", rule=rule
            ) from None


@contextmanager
def share_of_caller(gateway: Gateway, kind: Kind, count: int = 1) -> Iterator[None]:
    """So many more of this kind for the caller of the call in progress, while this lasts. Raises OVERLOADED."""
    with gateway.shares.holding(kind, calling().name, count):
        yield


def in_time(deadline: float | None) -> None:
    """The last look at the clock, before a reply leaves. Raises DEADLINE."""
    if deadline is not None and time.monotonic() >= deadline:
        raise ServiceError(Reason.DEADLINE, "the answer was not ready by the deadline")


def explain(error: Exception, request_id: str) -> ServiceError:
    """The error as the caller may see it. What was not foreseen is logged whole and told as an id alone."""
    if isinstance(error, ServiceError):
        return error
    _log.error("unexpected", request_id=request_id, exc_info=error)
    return ServiceError(Reason.INTERNAL, f"something failed inside; the log knows it as request {request_id}")
