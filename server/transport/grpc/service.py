"""The gRPC service: each call of presage.v1 translated to the application and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from presage.v1 import embeddings_pb2, planning_pb2

from server.errors import Reason, invalid
from server.transport import methods
from server.transport.arrivals import conversation, timely
from server.transport.gateway import Gateway, call_in_progress, share_of_caller
from server.transport.grpc.codec import READER, WRITER
from server.transport.grpc.control_stream import control
from server.transport.grpc.interceptor import Context, GatewayInterceptor, Handler, deadline, request_id_of
from server.transport.grpc.replies import Replies
from server.transport.health import Health
from server.transport.methods import METHODS, Arrival, Method
from server.transport.uploads import CHUNK_BYTES
from server.values import calls
from server.values.caller import require_robot

SERVICES = tuple(str(service.full_name) for service in methods.SERVICES.values())

ClipPart = embeddings_pb2.EmbedClipRequest | embeddings_pb2.ClassifyClipRequest


def create_server(gateway: Gateway, reflects: bool) -> grpc.aio.Server:
    """A server with every service on it, not yet listening anywhere."""
    limits = gateway.limits
    server = grpc.aio.server(
        interceptors=(GatewayInterceptor(gateway),),
        options=(
            # What is a little over the limit is refused by name; more by the transport, before it is read.
            ("grpc.max_receive_message_length", max(limits.message_bytes, CHUNK_BYTES) + CHUNK_BYTES),
            ("grpc.max_metadata_size", limits.header_bytes),
            ("grpc.absolute_max_metadata_size", limits.header_bytes),
            ("grpc.max_concurrent_streams", limits.concurrent_calls + 64),  # so that the limit is told by name
            ("grpc.server_handshake_timeout_ms", round(1e3 * limits.header_s)),
            ("grpc.max_connection_idle_ms", round(1e3 * limits.connection_idle_s)),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server on the port fails loudly
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # robots may ping every 10 s
            ("grpc.keepalive_time_ms", 30_000),  # a robot that vanished without a word is noticed, its plan cancelled
            ("grpc.keepalive_timeout_ms", 10_000),
        ),
    )  # calls are counted by the interceptor, which knows who is calling: strangers fill no robot's place
    add_services(gateway, server)
    if reflects:
        from grpc_reflection.v1alpha import reflection

        names = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def add_services(gateway: Gateway, server: Any) -> None:
    """Every service of presage.v1, and health, added to a gRPC server or to whatever takes their handlers."""
    handlers: dict[str, dict[str, Handler]] = {name: {} for name in SERVICES}
    for method in METHODS:
        described = method.described
        handlers[described.containing_service.full_name][described.name] = _unary(gateway, method)
    handlers[_name("Embeddings")]["EmbedClip"] = grpc.stream_unary_rpc_method_handler(
        partial(_embed_clip, gateway),
        embeddings_pb2.EmbedClipRequest.FromString,
        embeddings_pb2.EmbedClipResponse.SerializeToString,
    )
    handlers[_name("Embeddings")]["ClassifyClip"] = grpc.stream_unary_rpc_method_handler(
        partial(_classify_clip, gateway),
        embeddings_pb2.ClassifyClipRequest.FromString,
        embeddings_pb2.ClassifyClipResponse.SerializeToString,
    )
    handlers[_name("Planning")]["Control"] = grpc.stream_stream_rpc_method_handler(
        partial(_control, gateway),
        planning_pb2.ControlRequest.FromString,
        planning_pb2.ControlResponse.SerializeToString,
    )
    for service, by_name in handlers.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, by_name),))
        server.add_registered_method_handlers(service, by_name)
    health_pb2_grpc.add_HealthServicer_to_server(Health(gateway.lifecycle, SERVICES), server)


def _name(service: str) -> str:
    return str(methods.SERVICES[service].full_name)


def _unary(gateway: Gateway, method: Method) -> Handler:
    """A call of the table: its request read, its images decoded, its reply written."""
    request, response = GetMessageClass(method.described.input_type), GetMessageClass(method.described.output_type)

    async def serve(message: Message, context: Context) -> Message:
        method.require_role()
        call = call_in_progress()
        asked = READER.value(method.request, message)
        del message  # what it holds is copied: twice as much would wait for the engine
        asked = await gateway.decoded(asked, call.deadline)
        at = Arrival(call.arrived, call.deadline, (time.monotonic() - call.arrived) * 1e3)
        reply, answer = await method.work(gateway, asked, at), response()
        del asked
        if reply is not None:
            WRITER.fill(getattr(answer, method.reply_field) if method.reply_field else answer, reply)
        return answer

    return grpc.unary_unary_rpc_method_handler(serve, request.FromString, response.SerializeToString)


async def _control(gateway: Gateway, requests: AsyncIterator[planning_pb2.ControlRequest], context: Any) -> None:
    require_robot()
    with share_of_caller(gateway, "streams"):
        heard = conversation(requests, gateway.limits.message_s, gateway.limits.stream_idle_s)
        write = Replies(gateway, context, planning_pb2.ControlResponse.SerializeToString).write
        await control(gateway, heard, write, deadline(context), request_id_of(context))


async def _embed_clip(
    gateway: Gateway, requests: AsyncIterator[embeddings_pb2.EmbedClipRequest], context: Context
) -> embeddings_pb2.EmbedClipResponse:
    require_robot()
    requests = timely(requests, gateway.uploads.patience("chunk"), lambda message: len(message.chunk))
    header = await _announced(gateway, requests)
    if header.HasField("top_k"):
        raise invalid("header.top_k", "must not be set where nothing is classified", header.top_k)
    asked = READER.value(calls.EmbedClipRequest, header, known={"path": Path()})
    async with _received(gateway, requests, header) as path:
        reply = await gateway.application.embed_clip(replace(asked, path=path), deadline(context))
        response: embeddings_pb2.EmbedClipResponse = WRITER.message(embeddings_pb2.EmbedClipResponse, reply)
        return response


async def _classify_clip(
    gateway: Gateway, requests: AsyncIterator[embeddings_pb2.ClassifyClipRequest], context: Context
) -> embeddings_pb2.ClassifyClipResponse:
    require_robot()
    requests = timely(requests, gateway.uploads.patience("chunk"), lambda message: len(message.chunk))
    header = await _announced(gateway, requests)
    of_embeddings = ("kind", "goal_id", "step_distances")
    for field, value in ((name, getattr(header, name)) for name in of_embeddings):
        if value:
            raise invalid(f"header.{field}", "must not be set to classify", value)
    asked = READER.value(calls.ClassifyClipRequest, header, known={"path": Path()})
    async with _received(gateway, requests, header) as path:
        reply = await gateway.application.classify_clip(replace(asked, path=path), deadline(context))
        response: embeddings_pb2.ClassifyClipResponse = WRITER.message(embeddings_pb2.ClassifyClipResponse, reply)
        return response


async def _announced(gateway: Gateway, requests: AsyncIterator[ClipPart]) -> embeddings_pb2.ClipHeader:
    """The header that a clip's stream begins with. Raises ServiceError for one that announces nothing possible."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "header":
        raise invalid("part", "must be header at first", "another", Reason.INVALID_REQUEST)
    header, limit = first.header, gateway.limits.clip_bytes
    if not header.total_bytes >= 1:
        raise invalid("header.total_bytes", "must be at least 1", header.total_bytes)
    if header.total_bytes > limit:
        raise invalid("header.total_bytes", f"must be at most {limit}", header.total_bytes, Reason.TOO_LARGE)
    if len(header.sha256) != 32:
        raise invalid("header.sha256", "must have 32 bytes", len(header.sha256))
    return header


@asynccontextmanager
async def _received(
    gateway: Gateway, requests: AsyncIterator[ClipPart], header: embeddings_pb2.ClipHeader
) -> AsyncIterator[Path]:
    """The file that the rest of a clip's stream brings, whole and checked, for as long as it is needed."""
    async with gateway.uploads.spool("chunk") as spool:
        async for message in requests:
            size = len(message.chunk) if message.WhichOneof("part") == "chunk" else 0
            if not 1 <= size <= CHUNK_BYTES:
                raise invalid("chunk", f"must have 1 to {CHUNK_BYTES} bytes", size)
            await spool.write(message.chunk)
            if spool.received > header.total_bytes:
                rule = f"must add up to the {header.total_bytes} bytes of the header"
                raise invalid("chunk", rule, spool.received, Reason.CLIP_MISMATCH)
        path = await spool.seal(header.total_bytes, header.sha256)
        gateway.telemetry.uploaded_bytes.inc(spool.received)
        yield path
