"""The REST transport: every call of the table of methods as a route of /v1, and the probes beside them."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass
from presage import values
from presage.v1 import embeddings_pb2
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field, ValidationError, WithJsonSchema
from pydantic_core import to_json

from server.errors import Reason, ServiceError
from server.transport.gateway import Gateway, call_in_progress
from server.transport.grpc.codec import READER, WRITER
from server.transport.methods import METHODS, Arrival, Method
from server.transport.rest import faults, json_codec
from server.transport.rest.bodies import Body, is_small
from server.transport.rest.formats import ALSO, answer
from server.transport.rest.json_codec import CONTRACT
from server.transport.rest.middleware import (
    CLASSIFICATIONS,
    CLIPS,
    GatewayMiddleware,
    call_of,
    cancel_on_disconnect,
    render_framework_errors,
)
from server.transport.rest.openapi import ClassifyForm, ClipForm, UploadForm, document
from server.transport.rest.replies import json_parts
from server.transport.rest.tensors import TensorStyle
from server.transport.uploads import receive_form
from server.values import calls
from server.values.caller import require_robot

Form = TypeVar("Form", bound=UploadForm)


def create_app(gateway: Gateway, serves_openpi: bool = True) -> FastAPI:
    """The ASGI application, with every failure rendered as problem details."""
    app = FastAPI(
        title="Presage",
        version=gateway.server_version,
        description="A video world-model service for robot planning.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.gateway = gateway
    app.include_router(_probes)
    app.include_router(_routes)
    if serves_openpi:
        from server.transport.openpi.endpoint import PATHS, openpi

        for path in PATHS:
            app.router.add_websocket_route(path, openpi)
    app.add_middleware(GatewayMiddleware, gateway=gateway)
    if gateway.sites.origins:
        origins = sorted(gateway.sites.origins)
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    render_framework_errors(app)
    made = document(app, _BODIES)  # now: it takes a moment in which no health check would be answered
    app.openapi = lambda: made  # type: ignore[method-assign]
    return app


# Dependencies are coroutines even where nothing is awaited: plain functions take a detour over a thread,
# 0.6 ms each on two busy cores (a bare plan took 2.0 ms with two of them, 0.7 ms without).


async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


async def _deadline(
    request: Request,
    x_timeout_ms: Annotated[
        float | None,
        Header(ge=0.001, le=86_400_000, allow_inf_nan=False, description="Hard deadline from receipt on"),
        WithJsonSchema({"type": "number", "minimum": 0.001, "maximum": 86_400_000}),
    ] = None,
) -> float | None:
    """An instant of time.monotonic()."""
    call = call_of(request)
    call.deadline = None if x_timeout_ms is None else call.received + x_timeout_ms / 1e3
    return call.deadline


TheGateway = Annotated[Gateway, Depends(_gateway)]
Deadline = Annotated[float | None, Depends(_deadline)]
Tensors = Annotated[TensorStyle, Query(description="How tensors in the answer are written")]

_BODIES: dict[str, type[BaseModel]] = {}  # what POST takes, by path
_probes = APIRouter()
_routes = APIRouter(prefix="/v1")


def _json(reply: Any, status: int = 200) -> Response:
    return Response(to_json(reply, inf_nan_mode="null"), status, media_type="application/json")


# Probes


class Probe(BaseModel):
    status: str
    engines: list[str] | None = Field(None, description="What each is at, where not all are ready")


@_probes.get("/livez", name="Live", response_model=Probe)
async def live(gateway: TheGateway) -> Response:
    """The process answers, and has an engine or may still get one back. Says what each engine is at."""
    away_s = gateway.application.engines_away_s
    if away_s > gateway.engines_away_s:
        engines = ", ".join(gateway.application.engine_states)
        raise ServiceError(Reason.ENGINE_LOST, f"no engine came back for {away_s:.0f} s: {engines}")
    states = gateway.application.engine_states
    return _json({"status": "live"} | ({"engines": states} if set(states) != {"ready"} else {}))


@_probes.get("/readyz", name="Ready", response_model=Probe)
async def ready(gateway: TheGateway) -> Response:
    """New work is welcome."""
    gateway.lifecycle.check()
    if not gateway.lifecycle.ready:
        engines = ", ".join(gateway.application.engine_states)
        raise ServiceError(Reason.ENGINE_LOST, f"not all engines are ready: {engines}", retry_after_s=1.0)
    return _json({"status": "ready"})


@_probes.get("/metrics", name="Metrics", response_class=Response)
async def metrics(gateway: TheGateway) -> Response:
    """Prometheus metrics."""
    return Response(gateway.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


# The table of methods


def _route(method: Method) -> None:
    """Add a method's route: its body checked and read, its images decoded, its reply written as the caller likes it."""
    verb, _, path = method.route.partition(" ")
    placed = tuple(part.strip("{}") for part in re.findall(r"{\w+}", path))
    asked_as, message = method.described.input_type, method.reply_message
    body = Body(method.request, asked_as, placed) if verb == "POST" else None
    has_body = body is not None and bool(body.model.model_fields)
    if body is not None and has_body:
        _BODIES[f"/v1{path}"] = body.model
    body = body if has_body else None
    answers = json_codec.reply_model(method.reply, message) if method.reply is not None else None
    has_tensors = answers is not None and "TensorReply" in str(answers.model_json_schema())

    async def endpoint(
        request: Request,
        gateway: Gateway,
        deadline: float | None = None,
        tensors: TensorStyle = "base64",
        **named: str,
    ) -> Response:
        method.require_role()
        content = await _json_body(request, body.model) if body is not None else b""

        async def work() -> Any:
            nonlocal content
            arrived = call_in_progress().arrived
            if body is None:
                asked = method.request(**named)
            else:
                asked = await _read(gateway, body, content, deadline, dict(named))
                content = b""  # not needed while the engine works
                asked = await gateway.decoded(asked, deadline)
            return await method.work(gateway, asked, Arrival(arrived, deadline, (time.monotonic() - arrived) * 1e3))

        reply = await (work() if body is None else cancel_on_disconnect(request, work()))
        if reply is None:
            return Response(status_code=method.status)
        if method.array:
            return _negotiated(request, reply, message, method.array, tensors)
        return _json(json_codec.plain(reply, message, tensors), method.status)

    parameters: dict[str, Any] = {"request": Request, "gateway": TheGateway, **dict.fromkeys(placed, str)}
    if has_body:
        parameters["deadline"] = Deadline
    if has_tensors:
        parameters["tensors"] = Tensors
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, annotation=kind,
                default="base64" if name == "tensors" else inspect.Parameter.empty,
            )
            for name, kind in parameters.items()
        ]
    )  # fmt: skip
    endpoint.__doc__ = CONTRACT[method.described.full_name]
    _routes.add_api_route(
        path, endpoint, methods=[verb], name=method.rpc, status_code=method.status, response_model=answers,
        responses=ALSO if method.array else None,
    )  # fmt: skip


async def _json_body(request: Request, model: type[BaseModel]) -> bytes | bytearray:
    """The bytes of a body that says it is JSON, held here alone: the request itself would keep them. Raises Faults."""
    content = bytearray()
    async for piece in request.stream():
        content += piece
    media_type = request.headers.get("content-type", "")
    main, _, subtype = media_type.partition(";")[0].strip().lower().partition("/")
    if main != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise faults.not_json_media_type(model, content, media_type)
    return content


async def _read(
    gateway: Gateway, body: Body, content: bytes | bytearray, deadline: float | None, named: dict[str, Any]
) -> Any:
    """What a body asks for; read here where it is small. Raises Faults or ServiceError."""
    if is_small(content) or gateway.parsers is None:
        return body.value(content, named)
    about = {"kind": body.kind.__name__, "message": body.message.full_name, "without": body.without, "known": named}
    _, (written,) = await gateway.parsers.ask("json", about, (content,), deadline)
    return READER.value(body.kind, GetMessageClass(body.message).FromString(written))


def _negotiated(request: Request, reply: object, message: Descriptor, array: str, tensors: TensorStyle) -> Response:
    """The reply in the format that the Accept header asks for; only that one is made."""
    return answer(
        request,
        as_json=lambda: json_parts(reply, message, tensors),
        as_protobuf=lambda: WRITER.message(GetMessageClass(message), reply).SerializeToString(),
        array=getattr(reply, array),
    )


for _method in METHODS:
    _route(_method)


# Clips


@_routes.post(
    CLIPS.removeprefix("/v1"),
    name="Embeddings.EmbedClip",
    response_model=json_codec.reply_model(values.ClipEmbedding, embeddings_pb2.EmbedClipResponse.DESCRIPTOR),
    responses=ALSO,
)
async def embed_clip(
    request: Request, gateway: TheGateway, deadline: Deadline, tensors: Tensors = "base64"
) -> Response:
    """Embeds a video file."""
    async with _uploaded(request, gateway, ClipForm) as (form, path, sampling):
        asked = calls.EmbedClipRequest(path, form.model, form.kind, sampling, form.goal_id, form.step_distances)
        reply = await cancel_on_disconnect(request, gateway.application.embed_clip(asked, deadline))
        described = embeddings_pb2.EmbedClipResponse.DESCRIPTOR
        return _negotiated(request, reply, described, "embedding", tensors)


@_routes.post(
    CLASSIFICATIONS.removeprefix("/v1"),
    name="Embeddings.ClassifyClip",
    response_model=json_codec.reply_model(values.ClipClasses, embeddings_pb2.ClassifyClipResponse.DESCRIPTOR),
)
async def classify_clip(request: Request, gateway: TheGateway, deadline: Deadline) -> Response:
    """Names what a video file shows."""
    async with _uploaded(request, gateway, ClassifyForm) as (form, path, sampling):
        asked = calls.ClassifyClipRequest(path, form.model, sampling, form.top_k)
        reply = await cancel_on_disconnect(request, gateway.application.classify_clip(asked, deadline))
        return _json(json_codec.plain(reply, embeddings_pb2.ClassifyClipResponse.DESCRIPTOR, "base64"))


@asynccontextmanager
async def _uploaded(
    request: Request, gateway: Gateway, kind: type[Form]
) -> AsyncIterator[tuple[Form, Path, calls.FrameSampling]]:
    """A clip's form and its file, whole and checked, for as long as it is needed."""
    require_robot()
    async with gateway.uploads.spool("clip") as spool:
        form = _clip_form(await receive_form(request.stream(), request.headers, "clip", spool), kind)
        path = await spool.seal(None, bytes.fromhex(form.sha256) if form.sha256 else None)
        gateway.telemetry.uploaded_bytes.inc(spool.received)
        yield form, path, calls.FrameSampling(form.fps, form.frames)


def _clip_form(texts: dict[str, str], kind: type[Form]) -> Form:
    try:
        return kind.model_validate(texts)
    except ValidationError as error:
        faults = [{**fault, "loc": ("form", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(faults) from None
