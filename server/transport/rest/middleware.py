"""The REST middleware that every request goes through.

Counts bodies as they arrive and renders every failure as problem details. What a route does lives in rest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import Faults, Reason, ServiceError, invalid, let_go
from server.observability import tracing
from server.transport.arrivals import Patience, TimeIsUpError, within
from server.transport.error_replies import PROBLEM_JSON, to_problem
from server.transport.gateway import Call, Gateway, admitted, checked_request_id, in_time, instrumented_call
from server.transport.rest.faults import found
from server.values.caller import calling

PUBLIC_PATHS = frozenset({"/livez", "/readyz"})
"""Served to everyone. Every other path asks for a key."""

WORK = "/v1/"
"""Paths below it ask for readiness too."""

CLIPS = "/v1/embeddings/clips"
CLASSIFICATIONS = "/v1/classifications/clips"
FORM_BYTES = 64 * 1024  # room for the form around a clip

KEEP_ALIVE_S = 75
"""How long an idle connection stays open. Longer than clients and proxies keep theirs for the next request, which would
otherwise meet a connection that is just being closed; every answer says it."""

_CALL = "presage.call"
_T = TypeVar("_T")


def call_of(request: Request) -> Call:
    call: Call = request.scope[_CALL]
    return call


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` while the caller is there; when it goes away, cancel. The body must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ServiceError(Reason.CANCELLED, "the caller went away")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def peer_of(scope: Scope) -> str:
    """The caller's address and port, as the log tells them."""
    client = scope.get("client")
    return "" if client is None else f"{client[0]}:{client[1]}"


class GatewayMiddleware:
    """Request id, keys, readiness, limits, metrics and errors of every request."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self.app, self.gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = tracing.begun(headers.get(tracing.HEADER))
        call = Call(checked_request_id(headers.get("x-request-id")), "unknown", trace=trace, peer=peer_of(scope))
        scope[_CALL] = call
        has_started, taken_until = False, math.inf

        async def reply(message: Message) -> None:
            nonlocal has_started, taken_until
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    in_time(call.deadline)
                has_started = True
                told = MutableHeaders(scope=message)
                size, limits = int(told.get("content-length", "0")), self.gateway.limits
                taken_until = time.monotonic() + limits.stalled_s + size / limits.reply_bytes_per_s
                told["X-Request-Id"], told[tracing.HEADER] = call.request_id, trace.header
                if "close" not in (headers.get("connection"), told.get("connection")):
                    told["Keep-Alive"] = f"timeout={KEEP_ALIVE_S}"
            try:
                await within(taken_until - time.monotonic(), send(message))
            except TimeIsUpError:
                self.gateway.connections.end(call.peer)
                raise ServiceError(Reason.CANCELLED, "the caller did not take the reply") from None

        try:
            with instrumented_call(self.gateway, "rest", call, is_public=scope["path"] in PUBLIC_PATHS):
                self.gateway.sites.check(headers.get)
                try:
                    with (
                        self._admitted(scope["path"], headers, call),
                        self._limited(receive, scope["path"], headers, call) as limited,
                    ):
                        await self.app(scope, limited, reply)
                except ClientDisconnect:
                    raise ServiceError(Reason.CANCELLED, "the caller went away") from None
                finally:
                    route = scope.get("route")
                    call.rpc = route.name if route is not None else call.rpc
        except ServiceError as error:
            if has_started:
                raise  # half an answer is out: the server closes the connection
            let_go(error)
            await problem(error, call)(scope, receive, reply)

    @contextmanager
    def _admitted(self, path: str, headers: Headers, call: Call) -> Iterator[None]:
        if path in PUBLIC_PATHS:
            yield
            return
        caller = self.gateway.keys.check(headers.get, call.peer)
        self.gateway.connections.recognize(call.peer)
        if path.startswith(WORK):
            self.gateway.lifecycle.check()
        with admitted(self.gateway, call, caller):
            yield

    @contextmanager
    def _limited(self, receive: Receive, path: str, headers: Headers, call: Call) -> Iterator[Receive]:
        """`receive`, refusing a body that is announced or found to be too long, too slow, or beyond the caller's share.

        Notes when the body is whole.
        """
        limits, shares, name = self.gateway.limits, self.gateway.shares, calling().name
        is_upload = path in (CLIPS, CLASSIFICATIONS)
        max_bytes = limits.clip_bytes + FORM_BYTES if is_upload else limits.message_bytes
        patience = self.gateway.uploads.patience("body")
        if not is_upload:
            patience = Patience("body", limits.message_s, limits.message_s)
        length = headers.get("content-length", "")
        announced = int(length) if length.isdecimal() and len(length) < 20 else 0
        received = held = 0
        is_whole = False

        async def limited() -> Message:
            nonlocal received, held, is_whole
            if announced > max_bytes:
                raise _too_large(max_bytes, announced)
            if is_whole:
                return await receive()
            message = await patience.wait(receive())
            size = len(message.get("body", b""))
            received += size
            if received > max_bytes:
                raise _too_large(max_bytes, received)
            patience.took(size)
            if not is_upload and size:  # those go to the disk
                shares.take("bytes", name, size)
                held += size
            if message["type"] != "http.request" or not message.get("more_body", False):
                is_whole = True
                call.arrived = time.monotonic()
            return message

        async def told() -> Message:
            try:
                return await limited()
            except ServiceError as error:
                raise _refused(error) from error

        try:
            yield told
        finally:
            shares.give_back("bytes", name, held)


def _too_large(max_bytes: int, found: int) -> ServiceError:
    return invalid("body", f"must have at most {max_bytes} bytes", f"{found} bytes", Reason.TOO_LARGE)


def _refused(error: ServiceError) -> HTTPException:
    """Body readers let an HTTPException through, and turn everything else into one of their own."""
    return HTTPException(error.reason.fault.http_status)


# Rendering


def problem(error: ServiceError, call: Call, others: Sequence[ServiceError] = ()) -> Response:
    """The answer for an error; `others` are further faults of the same request."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.reason is Reason.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    content = to_problem(error, call.request_id, others)
    return JSONResponse(content, error.reason.fault.http_status, headers, PROBLEM_JSON)


def render_framework_errors(app: FastAPI) -> None:
    """Replace the framework's own answers for unknown routes, wrong methods and bodies that do not validate."""

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        call, allowed = call_of(request), _allowed(app, request) if error.status_code == 405 else ""
        told = await _http_fault(error, request, allowed)
        call.code = told.reason.name
        let_go(error)
        answer = problem(told, call)
        if allowed:
            answer.headers["Allow"] = allowed
        return answer

    async def invalid_request(request: Request, error: Exception) -> Response:
        told = error if isinstance(error, Faults) else found(error.errors(), None)  # type: ignore[attr-defined]
        call = call_of(request)
        call.code = told.faults[0].reason.name
        let_go(error)
        return problem(told.faults[0], call, told.faults[1:])

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(Faults, invalid_request)


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of the path, all of them: the framework knows only those of the first route that matches."""
    route = request.scope.get("route")
    operations = app.openapi()["paths"].get(route.path, {}) if route is not None else {}
    if operations:
        return ", ".join(sorted(method.upper() for method in operations))
    own = (each for each in app.routes if isinstance(each, Route) and each.matches(request.scope)[0] is not Match.NONE)
    return ", ".join(sorted({method for each in own for method in each.methods or ()}))


async def _http_fault(error: HTTPException, request: Request, allowed: str) -> ServiceError:
    if isinstance(error.__cause__, ServiceError):
        return error.__cause__
    if error.status_code == 404:
        return invalid("path", "must be one of those in /openapi.json", request.url.path, Reason.UNKNOWN_ROUTE)
    if error.status_code == 405:
        return invalid("method", f"must be {allowed or 'another'} here", request.method, Reason.METHOD_NOT_ALLOWED)
    return invalid("body", "must be readable", error.detail, Reason.INVALID_REQUEST)
