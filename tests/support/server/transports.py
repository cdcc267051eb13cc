"""Both transports open on loopback in front of an application, and ways to ask them the same thing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_status.rpc_status import GRPC_DETAILS_METADATA_KEY
from presage.v1 import (
    embeddings_pb2,
    embeddings_pb2_grpc,
    goals_pb2_grpc,
    models_pb2_grpc,
    observation_pb2,
    planning_pb2_grpc,
    sessions_pb2_grpc,
    tensor_pb2,
)

from server.config import load
from server.observability.tracing import SpanSink
from server.service.application import Application
from server.transport.gateway import Gateway
from server.transport.listeners import Addresses, bind, create_gateway, listening
from server.values.calls import Array, Frame


@dataclass(frozen=True)
class Service:
    """An open service and a client for each gateway."""

    gateway: Gateway
    addresses: Addresses
    channel: grpc.aio.Channel
    rest: httpx.AsyncClient

    @property
    def models(self) -> Any:
        return models_pb2_grpc.ModelsStub(self.channel)

    @property
    def goals(self) -> Any:
        return goals_pb2_grpc.GoalsStub(self.channel)

    @property
    def sessions(self) -> Any:
        return sessions_pb2_grpc.SessionsStub(self.channel)

    @property
    def planning(self) -> Any:
        return planning_pb2_grpc.PlanningStub(self.channel)

    @property
    def embeddings(self) -> Any:
        return embeddings_pb2_grpc.EmbeddingsStub(self.channel)


@asynccontextmanager
async def open_service(
    application: Application, *, spans: SpanSink | None = None, **flags: Any
) -> AsyncIterator[Service]:
    """Serve on free ports with these settings beside the defaults."""
    settings = load(flags={"grpc_port": 0, "http_port": 0, "shutdown_grace_s": 5.0, **flags})
    gateway = create_gateway(application, settings, spans=spans)
    with closing(bind(settings.host, 0, "http_port")) as rest_socket:
        async with (
            listening(gateway, settings, rest_socket) as addresses,
            grpc.aio.insecure_channel(addresses.grpc) as channel,
            httpx.AsyncClient(base_url=addresses.rest, timeout=60.0, trust_env=False) as rest,
        ):
            yield Service(gateway, addresses, channel, rest)


# Refusals, told alike


@dataclass(frozen=True)
class Refusal:
    """What a caller is told, whichever gateway it came through. `status` is the code of the gateway it came through."""

    status: Any
    reason: str
    message: str
    field: str
    rule: str
    value: str
    request_id: str
    retry_after_s: float | None
    whole: str  # everything that crossed the wire


async def grpc_refusal(call: Awaitable[Any]) -> Refusal:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return read_status(error)
    raise AssertionError("the call succeeded")


def read_status(error: grpc.aio.AioRpcError) -> Refusal:
    trailing = dict(error.trailing_metadata() or ())
    content = trailing[GRPC_DETAILS_METADATA_KEY]
    status = status_pb2.Status.FromString(content)
    found: dict[str, Any] = {}
    for kind in ("ErrorInfo", "RequestInfo", "BadRequest", "RetryInfo"):
        message = getattr(error_details_pb2, kind)()
        found[kind] = message if any(detail.Unpack(message) for detail in status.details) else None
    told, retry = found["ErrorInfo"], found["RetryInfo"]
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    assert told.domain == "presage"
    assert found["RequestInfo"].request_id == trailing["x-request-id"]
    if told.metadata.get("field"):
        (violation,) = found["BadRequest"].field_violations
        assert (violation.field, violation.description) == (told.metadata["field"], status.message)
    return Refusal(
        error.code(),
        told.reason,
        status.message,
        told.metadata.get("field", ""),
        told.metadata.get("rule", ""),
        told.metadata.get("value", ""),
        str(trailing["x-request-id"]),
        None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9,
        f"{error.details()} {content!r}",
    )


async def rest_refusal(call: Awaitable[httpx.Response]) -> Refusal:
    reply = await call
    assert reply.headers["content-type"] == "application/problem+json", reply.text
    problem = reply.json()
    assert problem["status"] == reply.status_code
    assert problem["request_id"] == reply.headers["x-request-id"]
    fault = problem["errors"][0] if problem["errors"] else {}
    return Refusal(
        reply.status_code,
        problem["code"],
        problem["detail"],
        fault.get("field", ""),
        fault.get("rule", ""),
        fault.get("value", ""),
        problem["request_id"],
        problem.get("retry_after_s"),
        reply.text,
    )


# Values for either wire


def proto_tensor(values: Array) -> tensor_pb2.Tensor:
    kinds = {"float32": tensor_pb2.ELEMENT_TYPE_FLOAT32, "int32": tensor_pb2.ELEMENT_TYPE_INT32}
    return tensor_pb2.Tensor(dtype=kinds[values.dtype.name], shape=values.shape, data=values.tobytes())  # type: ignore[arg-type]


def json_tensor(values: Array) -> dict[str, Any]:
    data = base64.b64encode(values.tobytes()).decode()
    return {"dtype": values.dtype.name, "shape": list(values.shape), "data": data}


def array_of(tensor: Any) -> Array:
    """The float32 array of a tensor from either wire."""
    shape, data = (tensor["shape"], base64.b64decode(tensor["data"])) if isinstance(tensor, dict) else (
        tuple(tensor.shape), tensor.data
    )  # fmt: skip
    return np.frombuffer(data, "<f4").reshape(shape)


def proto_image(frame: Frame) -> observation_pb2.Image:
    height, width = frame.shape[:2]
    raw = observation_pb2.RawImage(
        height=height, width=width, format=observation_pb2.PIXEL_FORMAT_RGB8, data=frame.tobytes()
    )
    return observation_pb2.Image(raw=raw)


def json_image(frame: Frame) -> dict[str, Any]:
    height, width = frame.shape[:2]
    data = base64.b64encode(frame.tobytes()).decode()
    return {"raw": {"height": height, "width": width, "format": "rgb8", "data": data}}


def proto_observation(frame: Frame, sequence: int = 0) -> observation_pb2.Observation:
    return observation_pb2.Observation(images=[proto_image(frame)], sequence=sequence)


def json_observation(frame: Frame, sequence: int = 0) -> dict[str, Any]:
    return {"images": [json_image(frame)], "sequence": sequence}


def clip_messages(content: bytes, chunk: int = 1 << 16, **header: Any) -> Iterator[embeddings_pb2.EmbedClipRequest]:
    announced = {"total_bytes": len(content), "sha256": hashlib.sha256(content).digest(), **header}
    yield embeddings_pb2.EmbedClipRequest(header=embeddings_pb2.ClipHeader(**announced))
    for start in range(0, len(content), chunk):
        yield embeddings_pb2.EmbedClipRequest(chunk=content[start : start + chunk])


async def eventually(holds: Callable[[], bool], patience_s: float = 20.0) -> None:
    """Wait for something that another task brings about."""
    import asyncio

    async def poll() -> None:
        while not holds():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), patience_s)
