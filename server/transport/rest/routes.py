"""The REST routes: each route of /v1 translated to the application and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError, WithJsonSchema

from server.errors import Reason, ServiceError, invalid
from server.transport.gateway import Gateway
from server.transport.grpc import codec
from server.transport.openpi.endpoint import PATHS, openpi
from server.transport.rest import replies, schemas
from server.transport.rest import tensors as rest_tensors
from server.transport.rest.formats import ALSO, answer
from server.transport.rest.middleware import (
    CLASSIFICATIONS,
    CLIPS,
    GatewayMiddleware,
    call_of,
    cancel_on_disconnect,
    render_framework_errors,
)
from server.transport.rest.openapi import document
from server.transport.rest.tensors import TensorStyle
from server.transport.uploads import receive_form
from server.values import calls, images

Form = TypeVar("Form", bound=schemas.UploadForm)


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
    for path in PATHS if serves_openpi else ():
        app.router.add_websocket_route(path, openpi)
    app.add_middleware(GatewayMiddleware, gateway=gateway)
    render_framework_errors(app)
    made = document(app)  # now: it takes a moment in which no health check would be answered
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
    return None if x_timeout_ms is None else call_of(request).received + x_timeout_ms / 1e3


TheDoor = Annotated[Gateway, Depends(_gateway)]
Deadline = Annotated[float | None, Depends(_deadline)]
Tensors = Annotated[TensorStyle, Query(description="How tensors in the answer are written")]

_probes = APIRouter()
_routes = APIRouter(prefix="/v1")


def _json(reply: BaseModel, status: int = 200) -> Response:
    return Response(reply.model_dump_json(), status, media_type="application/json")


# Probes


class Probe(BaseModel):
    status: str


@_probes.get("/livez", name="Live", response_model=Probe)
async def live() -> Response:
    """The process answers."""
    return _json(Probe(status="live"))


@_probes.get("/readyz", name="Ready", response_model=Probe)
async def ready(gateway: TheDoor) -> Response:
    """New work is welcome."""
    gateway.lifecycle.check()
    if not gateway.lifecycle.ready:
        raise ServiceError(Reason.ENGINE_LOST, "an engine is being restarted", retry_after_s=1.0)
    return _json(Probe(status="ready"))


@_probes.get("/metrics", name="Metrics", response_class=Response)
async def metrics(gateway: TheDoor) -> Response:
    """Prometheus metrics."""
    return Response(gateway.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


# Models


@_routes.get("/models", name="Models.List", response_model=replies.ModelsReply)
async def list_models(gateway: TheDoor) -> Response:
    """Every model, the default first."""
    models = [
        replies.encode_model(model, gateway.limits, gateway.server_version) for model in gateway.application.models()
    ]
    return _json(replies.ModelsReply(models=models))


@_routes.get("/models/{name}", name="Models.Get", response_model=replies.ModelReply)
async def get_model(name: str, gateway: TheDoor) -> Response:
    """One model: what to send it, what it answers in, how it was made and what it scored."""
    return _json(replies.encode_model(gateway.application.model(name), gateway.limits, gateway.server_version))


# Goals


@_routes.post("/goals", name="Goals.Create", status_code=201, response_model=replies.GoalReply)
async def create_goal(body: schemas.GoalBody, request: Request, gateway: TheDoor, deadline: Deadline) -> Response:
    """Embeds a goal and returns its id. The same goal again costs a hash."""
    if (body.image is None) == (body.latent is None):
        raise invalid("source", "must have image or latent set", "neither" if body.image is None else "both")
    image, latent = None, None
    if body.image is not None:
        source = schemas.image_source(body.image, "image")
        (image,) = await images.decode([("image", source)], gateway.limits.image_pixels)
    else:
        latent = rest_tensors.decode_tensor(body.latent or [], "latent")
    measured = None
    if body.proprioception is not None:
        measured = rest_tensors.decode_tensor(body.proprioception, "proprioception")
    work = gateway.application.create_goal(calls.GoalRequest(body.model, image, latent, measured), deadline)
    return _json(replies.encode_goal(await cancel_on_disconnect(request, work)), 201)


@_routes.get("/goals/{goal_id}", name="Goals.Get", response_model=replies.GoalReply)
async def get_goal(goal_id: str, gateway: TheDoor) -> Response:
    """Describes a goal, if it is still cached."""
    return _json(replies.encode_goal(await gateway.application.get_goal(goal_id)))


@_routes.delete("/goals/{goal_id}", name="Goals.Delete", status_code=204)
async def delete_goal(goal_id: str, gateway: TheDoor) -> Response:
    """Forgets a goal."""
    await gateway.application.delete_goal(goal_id)
    return Response(status_code=204)


# Sessions


@_routes.post("/sessions", name="Sessions.Create", status_code=201, response_model=replies.SessionReply)
async def create_session(body: schemas.SessionBody, gateway: TheDoor) -> Response:
    """Opens a session."""
    return _json(replies.encode_session(await gateway.application.create_session(body.decoded())), 201)


@_routes.post("/sessions/{session_id}:reset", name="Sessions.Reset", response_model=replies.SessionReply)
async def reset_session(session_id: str, gateway: TheDoor) -> Response:
    """Forgets history and warm start, keeps model and goal."""
    return _json(replies.encode_session(await gateway.application.reset_session(session_id)))


@_routes.get("/sessions/{session_id}", name="Sessions.Get", response_model=replies.SessionReply)
async def get_session(session_id: str, gateway: TheDoor) -> Response:
    """Describes a session."""
    return _json(replies.encode_session(await gateway.application.get_session(session_id)))


@_routes.delete("/sessions/{session_id}", name="Sessions.Delete", status_code=204)
async def delete_session(session_id: str, gateway: TheDoor) -> Response:
    """Closes a session."""
    await gateway.application.delete_session(session_id)
    return Response(status_code=204)


@_routes.post("/sessions/{session_id}:calibrate", name="Sessions.Calibrate", response_model=replies.SessionReply)
async def calibrate(
    session_id: str, body: schemas.CalibrateBody, request: Request, gateway: TheDoor, deadline: Deadline
) -> Response:
    """Learns from a few exploratory moves how the camera is turned against the robot."""
    seen = [
        (f"moves[{index}].{part}", each)
        for index, move in enumerate(body.moves)
        for part, each in (("before", move.before), ("after", move.after))
    ]
    observations = await _seen(seen, gateway)
    actions = [rest_tensors.decode_tensor(move.action, f"moves[{at}].action") for at, move in enumerate(body.moves)]
    moves = map(calls.CalibrationMove, observations[::2], actions, observations[1::2])
    asked = calls.CalibrateRequest(session_id, tuple(moves))
    return _json(
        replies.encode_session(await cancel_on_disconnect(request, gateway.application.calibrate(asked, deadline)))
    )


# Planning


@_routes.post("/plans", name="Planning.Plan", response_model=replies.PlanReply)
async def plan(
    body: schemas.PlanBody, request: Request, gateway: TheDoor, deadline: Deadline, tensors: Tensors = "base64"
) -> Response:
    """Plans once from an observation toward a goal, by the deadline."""
    started = time.monotonic()
    asked = body.decoded(await _observation(body.observation, gateway))
    decode_ms = (time.monotonic() - started) * 1e3
    made = await cancel_on_disconnect(
        request, gateway.application.plan(asked, deadline, call_of(request).received, decode_ms)
    )
    gateway.telemetry.observe_plan(made)
    return _json(replies.encode_plan(made, tensors))


@_routes.post("/rollouts", name="Planning.Rollout", response_model=replies.RolloutReply, responses=ALSO)
async def rollout(
    body: schemas.RolloutBody, request: Request, gateway: TheDoor, deadline: Deadline, tensors: Tensors = "base64"
) -> Response:
    """Predicts the latents that given actions lead to."""
    asked = calls.RolloutRequest(
        await _observation(body.observation, gateway),
        rest_tensors.decode_tensor(body.actions, "actions"),
        session_id=body.session_id,
        model=body.model,
        goal_id=body.goal_id,
    )
    reply = await cancel_on_disconnect(request, gateway.application.rollout(asked, deadline))
    told = replies.encode_rollout(reply, tensors)
    return answer(request, told, codec.encode_rollout(reply), reply.latents)


@_routes.post("/scores", name="Planning.Score", response_model=replies.ScoreReply)
async def score(
    body: schemas.ScoreBody, request: Request, gateway: TheDoor, deadline: Deadline, tensors: Tensors = "base64"
) -> Response:
    """Costs given candidates without searching."""
    asked = calls.ScoreRequest(
        await _observation(body.observation, gateway),
        rest_tensors.decode_tensor(body.candidates, "candidates"),
        session_id=body.session_id,
        model=body.model,
        goal_id=body.goal_id,
    )
    reply = await cancel_on_disconnect(request, gateway.application.score(asked, deadline))
    return _json(replies.encode_score(reply, tensors))


@_routes.post("/distances", name="Planning.Distance", response_model=replies.DistanceReply)
async def distance(body: schemas.DistanceBody, request: Request, gateway: TheDoor, deadline: Deadline) -> Response:
    """Measures how far images are from a goal."""
    frames = await images.decode(schemas.image_sources(body.images, "images"), gateway.limits.image_pixels)
    asked = calls.DistanceRequest(frames, body.session_id, body.model, body.goal_id)
    reply = await cancel_on_disconnect(request, gateway.application.distance(asked, deadline))
    return _json(replies.DistanceReply(distances=list(reply.distances)))


@_routes.post("/surprises", name="Planning.Surprise", response_model=replies.SurpriseReply)
async def surprise(body: schemas.SurpriseBody, request: Request, gateway: TheDoor, deadline: Deadline) -> Response:
    """Measures how far what happened is from what the model predicted."""
    observations = await _seen([(f"observations[{at}]", each) for at, each in enumerate(body.observations)], gateway)
    actions = rest_tensors.decode_tensor(body.actions, "actions")
    asked = calls.SurpriseRequest(tuple(observations), actions, body.session_id, body.model)
    return _json(
        replies.encode_surprise(await cancel_on_disconnect(request, gateway.application.surprise(asked, deadline)))
    )


@_routes.post("/landscapes", name="Planning.Landscape", response_model=replies.LandscapeReply)
async def landscape(
    body: schemas.LandscapeBody, request: Request, gateway: TheDoor, deadline: Deadline, tensors: Tensors = "base64"
) -> Response:
    """Costs a grid of actions around rest: what the search sees from where the robot stands."""
    asked = body.decoded(await _observation(body.observation, gateway))
    reply = await cancel_on_disconnect(request, gateway.application.landscape(asked, deadline))
    return _json(replies.encode_landscape(reply, tensors))


async def _observation(body: schemas.ObservationBody, gateway: Gateway) -> calls.Observation:
    (observation,) = await _seen([("observation", body)], gateway)
    return observation


async def _seen(named: Sequence[tuple[str, schemas.ObservationBody]], gateway: Gateway) -> list[calls.Observation]:
    """Observations by the name of their field, with their images decoded; one pixel limit holds for all of them."""
    sources = [schemas.observation_sources(each, name) for name, each in named]
    decoded = await images.decode_groups(sources, gateway.limits.image_pixels)
    return [schemas.decode_observation(each, frames, name) for (name, each), frames in zip(named, decoded, strict=True)]


# Embeddings


@_routes.post(
    "/embeddings/images",
    name="Embeddings.EmbedImages",
    response_model=replies.EmbeddingReply,
    responses=ALSO,
)
async def embed_images(
    body: schemas.EmbedImagesBody, request: Request, gateway: TheDoor, deadline: Deadline, tensors: Tensors = "base64"
) -> Response:
    """Embeds images one by one."""
    sources = schemas.image_sources(body.images, "images")
    frames = await images.decode(sources, gateway.limits.image_pixels)
    asked = calls.EmbedImagesRequest(frames, body.model, body.kind, body.goal_id)
    reply = await cancel_on_disconnect(request, gateway.application.embed_images(asked, deadline))
    told = replies.encode_images_embedding(reply, tensors)
    return answer(request, told, codec.encode_images_embedding(reply), reply.embedding)


@_routes.post(
    CLIPS.removeprefix("/v1"),
    name="Embeddings.EmbedClip",
    response_model=replies.ClipEmbeddingReply,
    responses=ALSO,
)
async def embed_clip(request: Request, gateway: TheDoor, deadline: Deadline, tensors: Tensors = "base64") -> Response:
    """Embeds a video file."""
    async with _uploaded(request, gateway, schemas.ClipForm) as (form, path, sampling):
        asked = calls.EmbedClipRequest(path, form.model, form.kind, sampling, form.goal_id)
        reply = await cancel_on_disconnect(request, gateway.application.embed_clip(asked, deadline))
        told = replies.encode_clip_embedding(reply, tensors)
        return answer(request, told, codec.encode_clip_embedding(reply), reply.embedding)


@_routes.post(
    CLASSIFICATIONS.removeprefix("/v1"),
    name="Embeddings.ClassifyClip",
    response_model=replies.ClassificationReply,
)
async def classify_clip(request: Request, gateway: TheDoor, deadline: Deadline) -> replies.ClassificationReply:
    """Names what a video file shows."""
    async with _uploaded(request, gateway, schemas.ClassifyForm) as (form, path, sampling):
        asked = calls.ClassifyClipRequest(path, form.model, sampling, form.top_k)
        reply = await cancel_on_disconnect(request, gateway.application.classify_clip(asked, deadline))
        return replies.encode_classes(reply)


@asynccontextmanager
async def _uploaded(
    request: Request, gateway: Gateway, kind: type[Form]
) -> AsyncIterator[tuple[Form, Path, calls.FrameSampling]]:
    """A clip's form and its file, whole and checked, for as long as it is needed."""
    async with gateway.uploads.spool("clip") as spool:
        content_type = request.headers.get("content-type", "")
        body = gateway.uploads.steady(request.stream(), "body")
        texts = await receive_form(body, content_type, "clip", spool)
        form = _clip_form(texts, kind)
        path = await spool.seal(None, bytes.fromhex(form.sha256) if form.sha256 else None)
        gateway.telemetry.uploaded_bytes.inc(spool.received)
        yield form, path, calls.FrameSampling(form.fps, form.frames)


def _clip_form(texts: dict[str, str], kind: type[Form]) -> Form:
    try:
        form = kind.model_validate(texts)
    except ValidationError as error:
        faults = [{**fault, "loc": ("form", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(faults) from None
    if form.fps is not None and form.frames is not None:
        raise invalid("frames", "must be left out where fps is set", form.frames)
    return form
