"""The REST middleware that every request goes through.

Counts bodies as they arrive and renders every failure as problem details. What a route does lives in rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.video.file_kinds import HEAD_BYTES, kind_of
from server.errors import Reason, ServiceError, invalid
from server.observability import tracing
from server.transport.error_replies import PROBLEM_JSON, to_problem
from server.transport.gateway import Call, Gateway, checked_request_id, instrumented_call
from server.transport.rest.json_codec import example_of
from server.transport.rest.tensors import UNION_TAGS

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
        has_started = False

        async def reply(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                told = MutableHeaders(scope=message)
                told["X-Request-Id"], told[tracing.HEADER] = call.request_id, trace.header
                if "close" not in (headers.get("connection"), told.get("connection")):
                    told["Keep-Alive"] = f"timeout={KEEP_ALIVE_S}"
            await send(message)

        try:
            with instrumented_call(self.gateway, "rest", call, is_public=scope["path"] in PUBLIC_PATHS):
                try:
                    self._admit(scope["path"], headers)
                    limited = _limited(receive, self._max_body(scope["path"]), headers, call)
                    await self.app(scope, limited, reply)
                finally:
                    route = scope.get("route")
                    call.rpc = route.name if route is not None else call.rpc
        except ServiceError as error:
            if has_started:
                raise  # half an answer is out: the server closes the connection
            await problem(error, call)(scope, receive, reply)

    def _admit(self, path: str, headers: Headers) -> None:
        if path not in PUBLIC_PATHS:
            self.gateway.keys.check(headers.get)
        if path.startswith(WORK):
            self.gateway.lifecycle.check()

    def _max_body(self, path: str) -> int:
        limits = self.gateway.limits
        return limits.clip_bytes + FORM_BYTES if path in (CLIPS, CLASSIFICATIONS) else limits.message_bytes


def _limited(receive: Receive, max_bytes: int, headers: Headers, call: Call) -> Receive:
    """`receive`, refusing a body as soon as it is announced or found to be too long, and noting when it is whole."""
    length = headers.get("content-length", "")
    announced = int(length) if length.isdecimal() and len(length) < 20 else 0
    received = 0

    async def limited() -> Message:
        nonlocal received
        if announced > max_bytes:
            raise _refused(max_bytes, announced)
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise _refused(max_bytes, received)
        if message["type"] == "http.request" and not message.get("more_body", False):
            call.arrived = time.monotonic()
        return message

    return limited


def _refused(max_bytes: int, found: int) -> HTTPException:
    """Body readers let an HTTPException through, and turn everything else into one of their own."""
    refused = HTTPException(413)
    refused.__cause__ = invalid("body", f"must have at most {max_bytes} bytes", f"{found} bytes", Reason.TOO_LARGE)
    return refused


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
        answer = problem(told, call)
        if allowed:
            answer.headers["Allow"] = allowed
        return answer

    async def invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        body = _body_of(request)
        call, faults = call_of(request), [_field_fault(fault, body, request) for fault in error.errors()]
        call.code = faults[0].reason.name
        return problem(faults[0], call, faults[1:])

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_request)


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of the path, all of them: the framework knows only those of the first route that matches."""
    operations = app.openapi()["paths"].get(request.scope["route"].path, {})
    return ", ".join(sorted(method.upper() for method in operations))


async def _http_fault(error: HTTPException, request: Request, allowed: str) -> ServiceError:
    if isinstance(error.__cause__, ServiceError):
        return error.__cause__
    if error.status_code == 404:
        return invalid("path", "must be one of those in /openapi.json", request.url.path, Reason.UNKNOWN_ROUTE)
    if error.status_code == 405:
        return invalid("method", f"must be {allowed or 'another'} here", request.method, Reason.METHOD_NOT_ALLOWED)
    if isinstance(error.__cause__, UnicodeDecodeError):  # a file in place of JSON
        kind = kind_of((await request.body())[:HEAD_BYTES]) or "bytes that are no text"
        rule = f"must be a JSON object{_example(_body_of(request), ' such as')}"
        return invalid("body", rule, kind, Reason.INVALID_REQUEST)
    return invalid("body", "must be readable", error.detail, Reason.INVALID_REQUEST)


def _body_of(request: Request) -> type[BaseModel] | None:
    """What the body of this request's route is read as."""
    parameters = request.scope["route"].dependant.body_params
    found = parameters[0].field_info.annotation if len(parameters) == 1 else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _field_fault(fault: Any, body: type[BaseModel] | None, request: Request) -> ServiceError:
    """What pydantic says of one field, in the service's words."""
    place, *path = fault["loc"]
    if fault["type"] == "json_invalid":
        return invalid("body", "must be JSON", f"{fault['ctx']['error']} at {path[0]}", Reason.INVALID_REQUEST)
    if place == "body" and not path:
        rule = f"must be a JSON object{_example(body, ' such as')} with Content-Type application/json"
        return invalid("body", rule, _shown_body(fault, request), Reason.INVALID_REQUEST)
    names = [part for part in path if part not in UNION_TAGS]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in names]
    holder = _holder(body, names) if place == "body" else None
    reason = Reason.INVALID_IMAGE if fault["type"] == "image" else Reason.INVALID_FIELD
    return invalid("".join(parts).lstrip("."), _rule(fault, holder), _shown(fault), reason)


def _example(body: type[BaseModel] | None, words: str) -> str:
    """How such an object is written, behind these words; nothing where it is plain."""
    example = example_of(body)
    return f"{words} {example}" if example else ""


def _holder(body: type[BaseModel] | None, names: list[Any]) -> type[BaseModel] | None:
    """The object that holds the field at the end of this path."""
    for name in names[:-1]:
        if isinstance(name, str):
            field = body.model_fields.get(name) if body is not None else None
            body = _model_in(field.annotation) if field is not None else None
    return body


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one kind of object that an annotation allows, alone, optional or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [model for each in get_args(annotation) if (model := _model_in(each)) is not None]
    return found[0] if len(found) == 1 else None


def _shown_body(fault: Any, request: Request) -> str:
    """What came in place of a JSON object."""
    value, media_type = fault.get("input"), request.headers.get("content-type", "")
    if isinstance(value, bytes):
        kind = kind_of(value[:HEAD_BYTES])
        return f"{kind or 'bytes'} as {media_type or 'no Content-Type'}"
    return _shown(fault)


def _rule(fault: Any, holder: type[BaseModel] | None) -> str:
    if fault["type"] == "missing":
        return f"must be set{_example(holder, ', as in')}"
    if fault["type"] == "image":
        return str(fault["ctx"]["rule"])
    if fault["type"] == "extra_forbidden":
        known = f"; there are {', '.join(holder.model_fields)}" if holder is not None else ""
        return f"must be left out: there is no such field{known}{_example(holder, ', as in')}"
    message = str(fault["msg"])
    return message.replace("Input should", "must", 1) if message.startswith("Input should") else f"must fit: {message}"


def _shown(fault: Any) -> str:
    if fault["type"] == "image":
        return str(fault["ctx"]["shown"])
    value = fault.get("input")
    if fault["type"] == "missing" or value is None:
        return "nothing"
    return str(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
