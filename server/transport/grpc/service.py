"""The gRPC service: each call of presage.v1 translated to the application and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from presage.v1 import (
    embeddings_pb2,
    embeddings_pb2_grpc,
    goals_pb2,
    goals_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    planning_pb2,
    planning_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)

from server.errors import Reason, invalid
from server.transport.gateway import Gateway
from server.transport.grpc import codec
from server.transport.grpc.control_stream import control
from server.transport.grpc.interceptor import Context, GatewayInterceptor, deadline, request_id_of
from server.transport.health import Health
from server.transport.uploads import CHUNK_BYTES
from server.values import calls, images

ClipPart = embeddings_pb2.EmbedClipRequest | embeddings_pb2.ClassifyClipRequest
TOP_K = calls.ClassifyClipRequest.top_k  # where a request does not say

SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in (
        (models_pb2, "Models"),
        (embeddings_pb2, "Embeddings"),
        (goals_pb2, "Goals"),
        (sessions_pb2, "Sessions"),
        (planning_pb2, "Planning"),
    )
)


def create_server(gateway: Gateway, reflects: bool) -> grpc.aio.Server:
    """A server with every service on it, not yet listening anywhere."""
    limits = gateway.limits
    server = grpc.aio.server(
        interceptors=(GatewayInterceptor(gateway),),
        options=(
            # Up to twice the limit is refused by name, with field and rule; more by the transport, before it is read.
            ("grpc.max_receive_message_length", max(2 * limits.message_bytes, 2 * CHUNK_BYTES)),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server on the port fails loudly
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # robots may ping every 10 s
            ("grpc.keepalive_time_ms", 30_000),  # a robot that vanished without a word is noticed, its plan cancelled
            ("grpc.keepalive_timeout_ms", 10_000),
        ),
        # The limit that is told by name is Limits.concurrent_calls; probes must pass above it.
        maximum_concurrent_rpcs=2 * limits.concurrent_calls + 16,
    )
    add_services(gateway, server)
    if reflects:
        names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def add_services(gateway: Gateway, server: Any) -> None:
    """Every service of presage.v1, and health, added to a gRPC server or to whatever takes their handlers."""
    models_pb2_grpc.add_ModelsServicer_to_server(_Models(gateway), server)
    embeddings_pb2_grpc.add_EmbeddingsServicer_to_server(_Embeddings(gateway), server)
    goals_pb2_grpc.add_GoalsServicer_to_server(_Goals(gateway), server)
    sessions_pb2_grpc.add_SessionsServicer_to_server(_Sessions(gateway), server)
    planning_pb2_grpc.add_PlanningServicer_to_server(_Planning(gateway), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(gateway.lifecycle, SERVICES), server)


@dataclass(frozen=True)
class _Models(models_pb2_grpc.ModelsServicer):
    gateway: Gateway

    async def List(self, request: models_pb2.ModelsListRequest, context: Context) -> models_pb2.ModelsListResponse:
        models = self.gateway.application.models()
        return models_pb2.ModelsListResponse(models=[self._encode(model) for model in models])

    async def Get(self, request: models_pb2.ModelsGetRequest, context: Context) -> models_pb2.ModelsGetResponse:
        return models_pb2.ModelsGetResponse(model=self._encode(self.gateway.application.model(request.name)))

    def _encode(self, model: calls.ModelReply) -> models_pb2.Model:
        return codec.encode_model(model, self.gateway.limits, self.gateway.server_version)


@dataclass(frozen=True)
class _Goals(goals_pb2_grpc.GoalsServicer):
    gateway: Gateway

    async def Create(self, request: goals_pb2.GoalsCreateRequest, context: Context) -> goals_pb2.GoalsCreateResponse:
        source = request.WhichOneof("source")
        if source is None:
            raise invalid("source", "must have image or latent set", "neither")
        image, latent = None, None
        if source == "image":
            sources = [("image", codec.image_source(request.image, "image"))]
            (image,) = await images.decode(sources, self.gateway.limits.image_pixels)
        else:
            latent = codec.decode_tensor(request.latent, "latent")
        measured = np.array(request.proprioception, np.float32) if request.proprioception else None
        goal = await self.gateway.application.create_goal(
            calls.GoalRequest(request.model, image, latent, measured), deadline(context)
        )
        return goals_pb2.GoalsCreateResponse(goal=codec.encode_goal(goal))

    async def Get(self, request: goals_pb2.GoalsGetRequest, context: Context) -> goals_pb2.GoalsGetResponse:
        return goals_pb2.GoalsGetResponse(
            goal=codec.encode_goal(await self.gateway.application.get_goal(request.goal_id))
        )

    async def Delete(self, request: goals_pb2.GoalsDeleteRequest, context: Context) -> goals_pb2.GoalsDeleteResponse:
        await self.gateway.application.delete_goal(request.goal_id)
        return goals_pb2.GoalsDeleteResponse()


@dataclass(frozen=True)
class _Sessions(sessions_pb2_grpc.SessionsServicer):
    gateway: Gateway

    async def Create(
        self, request: sessions_pb2.SessionsCreateRequest, context: Context
    ) -> sessions_pb2.SessionsCreateResponse:
        session = await self.gateway.application.create_session(codec.decode_session_request(request))
        return sessions_pb2.SessionsCreateResponse(session=codec.encode_session(session))

    async def Get(self, request: sessions_pb2.SessionsGetRequest, context: Context) -> sessions_pb2.SessionsGetResponse:
        session = await self.gateway.application.get_session(request.session_id)
        return sessions_pb2.SessionsGetResponse(session=codec.encode_session(session))

    async def Reset(
        self, request: sessions_pb2.SessionsResetRequest, context: Context
    ) -> sessions_pb2.SessionsResetResponse:
        session = await self.gateway.application.reset_session(request.session_id)
        return sessions_pb2.SessionsResetResponse(session=codec.encode_session(session))

    async def Delete(
        self, request: sessions_pb2.SessionsDeleteRequest, context: Context
    ) -> sessions_pb2.SessionsDeleteResponse:
        await self.gateway.application.delete_session(request.session_id)
        return sessions_pb2.SessionsDeleteResponse()

    async def Calibrate(
        self, request: sessions_pb2.SessionsCalibrateRequest, context: Context
    ) -> sessions_pb2.SessionsCalibrateResponse:
        for index, move in enumerate(request.moves):
            for part in ("before", "action", "after"):
                codec.require(move.HasField(part), f"moves[{index}].{part}")
        seen = [
            (f"moves[{index}].{part}", getattr(move, part))
            for index, move in enumerate(request.moves)
            for part in ("before", "after")
        ]
        observations = await _seen(seen, self.gateway)
        actions = [codec.decode_tensor(move.action, f"moves[{at}].action") for at, move in enumerate(request.moves)]
        moves = map(calls.CalibrationMove, observations[::2], actions, observations[1::2])
        asked = calls.CalibrateRequest(request.session_id, tuple(moves))
        session = await self.gateway.application.calibrate(asked, deadline(context))
        return sessions_pb2.SessionsCalibrateResponse(session=codec.encode_session(session))


@dataclass(frozen=True)
class _Embeddings(embeddings_pb2_grpc.EmbeddingsServicer):
    gateway: Gateway

    async def EmbedImages(
        self, request: embeddings_pb2.EmbedImagesRequest, context: Context
    ) -> embeddings_pb2.EmbedImagesResponse:
        codec.require(len(request.images) > 0, "images")
        kind = codec.decode_kind(request.kind, default="per_frame")
        sources = codec.image_sources(request.images, "images")
        frames = await images.decode(sources, self.gateway.limits.image_pixels)
        embed = calls.EmbedImagesRequest(frames, request.model, kind, request.goal_id)
        return codec.encode_images_embedding(await self.gateway.application.embed_images(embed, deadline(context)))

    async def EmbedClip(
        self, requests: AsyncIterator[embeddings_pb2.EmbedClipRequest], context: Context
    ) -> embeddings_pb2.EmbedClipResponse:
        header = await self._announced(requests)
        kind = codec.decode_kind(header.kind, default="pooled")
        if header.top_k:
            raise invalid("header.top_k", "must not be set where nothing is classified", header.top_k)
        async with self._received(requests, header) as path:
            sampling = codec.decode_sampling(header.sampling)
            embed = calls.EmbedClipRequest(path, header.model, kind, sampling, header.goal_id)
            return codec.encode_clip_embedding(await self.gateway.application.embed_clip(embed, deadline(context)))

    async def ClassifyClip(
        self, requests: AsyncIterator[embeddings_pb2.ClassifyClipRequest], context: Context
    ) -> embeddings_pb2.ClassifyClipResponse:
        header = await self._announced(requests)
        for field, value in (("kind", header.kind), ("goal_id", header.goal_id)):
            if value:
                raise invalid(f"header.{field}", "must not be set to classify", value)
        async with self._received(requests, header) as path:
            sampling = codec.decode_sampling(header.sampling)
            asked = calls.ClassifyClipRequest(path, header.model, sampling, header.top_k or TOP_K)
            return codec.encode_classes(await self.gateway.application.classify_clip(asked, deadline(context)))

    async def _announced(self, requests: AsyncIterator[ClipPart]) -> embeddings_pb2.ClipHeader:
        """The header that a clip's stream begins with. Raises ServiceError for one that announces nothing possible."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise invalid("part", "must be header at first", "another", Reason.INVALID_REQUEST)
        header, limit = first.header, self.gateway.limits.clip_bytes
        if not header.total_bytes >= 1:
            raise invalid("header.total_bytes", "must be at least 1", header.total_bytes)
        if header.total_bytes > limit:
            raise invalid("header.total_bytes", f"must be at most {limit}", header.total_bytes, Reason.TOO_LARGE)
        if len(header.sha256) != 32:
            raise invalid("header.sha256", "must have 32 bytes", len(header.sha256))
        return header

    @asynccontextmanager
    async def _received(
        self, requests: AsyncIterator[ClipPart], header: embeddings_pb2.ClipHeader
    ) -> AsyncIterator[Path]:
        """The file that the rest of a clip's stream brings, whole and checked, for as long as it is needed."""
        async with self.gateway.uploads.spool("chunk") as spool:
            async for message in self.gateway.uploads.steady(requests, "chunk"):
                size = len(message.chunk) if message.WhichOneof("part") == "chunk" else 0
                if not 1 <= size <= CHUNK_BYTES:
                    raise invalid("chunk", f"must have 1 to {CHUNK_BYTES} bytes", size)
                await spool.write(message.chunk)
                if spool.received > header.total_bytes:
                    rule = f"must add up to the {header.total_bytes} bytes of the header"
                    raise invalid("chunk", rule, spool.received, Reason.CLIP_MISMATCH)
            path = await spool.seal(header.total_bytes, header.sha256)
            self.gateway.telemetry.uploaded_bytes.inc(spool.received)
            yield path


@dataclass(frozen=True)
class _Planning(planning_pb2_grpc.PlanningServicer):
    gateway: Gateway

    async def Plan(self, request: planning_pb2.PlanRequest, context: Context) -> planning_pb2.PlanResponse:
        received = time.monotonic()
        by = deadline(context)
        codec.require(request.HasField("observation"), "observation")
        observation = await self._observation(request.observation)
        plan = await self.gateway.application.plan(
            codec.decode_plan_request(request, observation), by, received, (time.monotonic() - received) * 1e3
        )
        self.gateway.telemetry.observe_plan(plan)
        return planning_pb2.PlanResponse(plan=codec.encode_plan(plan))

    async def Control(  # type: ignore[override]  # writes from two tasks, so it is not an iterator
        self, requests: AsyncIterator[planning_pb2.ControlRequest], context: Any
    ) -> None:
        await control(self.gateway, requests, context.write, deadline(context), request_id_of(context))

    async def Rollout(self, request: planning_pb2.RolloutRequest, context: Context) -> planning_pb2.RolloutResponse:
        codec.require(request.HasField("observation"), "observation")
        codec.require(request.HasField("actions"), "actions")
        rollout = calls.RolloutRequest(
            await self._observation(request.observation),
            codec.decode_tensor(request.actions, "actions"),
            session_id=request.session_id,
            model=request.model,
            goal_id=request.goal_id,
        )
        return codec.encode_rollout(await self.gateway.application.rollout(rollout, deadline(context)))

    async def Score(self, request: planning_pb2.ScoreRequest, context: Context) -> planning_pb2.ScoreResponse:
        codec.require(request.HasField("observation"), "observation")
        codec.require(request.HasField("candidates"), "candidates")
        score = calls.ScoreRequest(
            await self._observation(request.observation),
            codec.decode_tensor(request.candidates, "candidates"),
            session_id=request.session_id,
            model=request.model,
            goal_id=request.goal_id,
        )
        return codec.encode_score(await self.gateway.application.score(score, deadline(context)))

    async def Distance(self, request: planning_pb2.DistanceRequest, context: Context) -> planning_pb2.DistanceResponse:
        codec.require(len(request.images) > 0, "images")
        sources = codec.image_sources(request.images, "images")
        frames = await images.decode(sources, self.gateway.limits.image_pixels)
        asked = calls.DistanceRequest(frames, request.session_id, request.model, request.goal_id)
        reply = await self.gateway.application.distance(asked, deadline(context))
        return planning_pb2.DistanceResponse(distances=reply.distances)

    async def Surprise(self, request: planning_pb2.SurpriseRequest, context: Context) -> planning_pb2.SurpriseResponse:
        codec.require(len(request.observations) > 0, "observations")
        codec.require(request.HasField("actions"), "actions")
        named = [(f"observations[{index}]", each) for index, each in enumerate(request.observations)]
        observations = await _seen(named, self.gateway)
        actions = codec.decode_tensor(request.actions, "actions")
        asked = calls.SurpriseRequest(tuple(observations), actions, request.session_id, request.model)
        return codec.encode_surprise(await self.gateway.application.surprise(asked, deadline(context)))

    async def Landscape(
        self, request: planning_pb2.LandscapeRequest, context: Context
    ) -> planning_pb2.LandscapeResponse:
        codec.require(request.HasField("observation"), "observation")
        asked = codec.decode_landscape_request(request, await self._observation(request.observation))
        return codec.encode_landscape(await self.gateway.application.landscape(asked, deadline(context)))

    async def _observation(self, message: Any) -> calls.Observation:
        (observation,) = await _seen([("observation", message)], self.gateway)
        return observation


async def _seen(named: Sequence[tuple[str, Any]], gateway: Gateway) -> list[calls.Observation]:
    """Observations by the name of their field, with their images decoded; one pixel limit holds for all of them."""
    sources = [codec.observation_sources(each, name) for name, each in named]
    decoded = await images.decode_groups(sources, gateway.limits.image_pixels)
    return [codec.decode_observation(each, frames, name) for (name, each), frames in zip(named, decoded, strict=True)]
