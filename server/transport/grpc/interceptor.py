"""The gRPC interceptor that every call goes through.

Parses requests itself, so that bytes that are not protobuf are refused by name. What a call does lives in grpc_service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from server.errors import Reason, ServiceError, invalid, let_go
from server.observability import tracing
from server.transport.arrivals import Patience, conversation
from server.transport.callers.auth import party_of
from server.transport.callers.connections import held
from server.transport.error_replies import to_status
from server.transport.gateway import Call, Gateway, admitted, checked_request_id, in_time, instrumented_call
from server.transport.grpc.replies import Replies
from server.transport.grpc.structure import check_structure
from server.values.caller import Caller, calling

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

PUBLIC_SERVICES = frozenset({"grpc.health.v1.Health"})
"""Served to everyone, ready or not. Every other service asks for a key."""

INFRASTRUCTURE = frozenset({"grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"})
"""Asks for a key, but not for readiness."""

REQUEST_ID = "x-request-id"
PROBE_S, PROBE_BYTES = 2.0, 4096  # to send a request of health in, and its size


@dataclass(frozen=True)
class GatewayInterceptor(grpc.aio.ServerInterceptor):
    """Request id, keys, readiness, limits, metrics and errors of every call."""

    gateway: Gateway

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        details = handler_call_details
        service, _, method = details.method.lstrip("/").partition("/")
        headers = {name: value for name, value in details.invocation_metadata if isinstance(value, str)}
        rpc, trace = f"{service.rpartition('.')[2]}.{method}", tracing.begun(headers.get(tracing.HEADER))
        call = Call(checked_request_id(headers.get(REQUEST_ID)), rpc, trace=trace)
        handler = await continuation(details)
        if service in PUBLIC_SERVICES and handler is not None:
            return _probed(self.gateway, call, handler)
        try:
            self.gateway.sites.check_origin(headers.get)
            caller = self.gateway.keys.check(headers.get)
        except ServiceError as error:
            return _refusing(self.gateway, call if handler is not None else replace(call, rpc="unknown"), error)
        if handler is None:
            unknown = invalid("method", "must be one that reflection lists", details.method, Reason.UNKNOWN_ROUTE)
            return _refusing(self.gateway, replace(call, rpc="unknown"), unknown)
        if service in INFRASTRUCTURE:
            return _reflected(self.gateway, call, handler, caller if caller.name else None)
        return _served(self.gateway, call, handler, caller if caller.name else None)


def deadline(context: Context) -> float | None:
    """The call's deadline as an instant of time.monotonic(), if it has one."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def request_id_of(context: Context) -> str:
    """The id of a call that came through the interceptor."""
    return str(dict(context.trailing_metadata())[REQUEST_ID])


def _served(gateway: Gateway, call: Call, handler: Handler, known: Caller | None) -> Handler:
    """`handler` with everything around it; requests reach it parsed. A caller not known by a key is by its address."""
    parse, serialize = _parser(handler), _serializer(handler)
    behavior: Any = handler.unary_unary or handler.stream_unary or handler.stream_stream

    # Also a call of one message is begun before the message is here: whoever never sends it holds a place of his own.
    async def one(requests: AsyncIterator[bytes], context: Context) -> None:
        replies = Replies(gateway, context, serialize)
        try:
            with instrumented_call(gateway, "grpc", call, is_public=False), _prepared(gateway, call, context, known):
                with gateway.places.arriving.one(calling().name):
                    request = await _only(requests, gateway.limits.message_s, gateway.limits.message_bytes)
                call.arrived = time.monotonic()
                with gateway.shares.holding("bytes", calling().name, len(request)):
                    message = parse(request)
                    del request  # nothing needs it any more, while the engine works
                    working = behavior(message, context)
                    del message
                    content = replies.serialize(await working)
                in_time(call.deadline)
                await replies.send(content)
        except ServiceError as error:
            await _abort(error, call, context)

    async def collected(requests: AsyncIterator[bytes], context: Context) -> None:
        replies = Replies(gateway, context, serialize)
        try:
            with instrumented_call(gateway, "grpc", call, is_public=False), _prepared(gateway, call, context, known):
                content = replies.serialize(await behavior(_parsed(requests, parse), context))
                in_time(call.deadline)
                await replies.send(content)
        except ServiceError as error:
            await _abort(error, call, context)

    async def conversed(requests: AsyncIterator[bytes], context: Context) -> None:
        try:
            with instrumented_call(gateway, "grpc", call, is_public=False), _prepared(gateway, call, context, known):
                await behavior(_parsed(requests, parse), context)
        except ServiceError as error:
            await _abort(error, call, context)

    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(conversed, None, None)
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(collected, None, None)
    assert not handler.response_streaming, "no service of ours answers one request with a stream"
    return grpc.stream_stream_rpc_method_handler(one, None, None)


def _probed(gateway: Gateway, call: Call, handler: Handler) -> Handler:
    """A call of health, which needs no key and so is never counted with those that do."""
    parse, serialize, places = _parser(handler), _serializer(handler), gateway.places
    answer_one: Any = handler.unary_unary  # grpc's types know of blocking handlers alone
    answer_many: Any = handler.unary_stream

    async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
        call.peer = _peer(gateway, context)
        replies = Replies(gateway, context, serialize, PROBE_S)
        try:
            with places.probes.one(party_of(call.peer)):
                asked = parse(await _only(requests, PROBE_S, PROBE_BYTES))
                if answer_one is not None:
                    await replies.write(await answer_one(asked, context))
                    return
            with places.watchers.one(party_of(call.peer)):
                async for status in answer_many(asked, context):
                    await replies.write(status)
        except ServiceError as error:
            await _abort(error, call, context)

    return grpc.stream_stream_rpc_method_handler(answer, None, None)


def _reflected(gateway: Gateway, call: Call, handler: Handler, known: Caller | None) -> Handler:
    """A stream of reflection's, for callers with a key, ready or not."""
    parse, serialize = _parser(handler), _serializer(handler)
    converse: Any = handler.stream_stream

    async def answer(requests: AsyncIterator[bytes], context: Context) -> None:
        call.peer = _peer(gateway, context)
        asked = conversation(_parsed(requests, parse), PROBE_S, gateway.limits.message_s)
        try:
            with admitted(gateway, call, known or Caller(name=party_of(call.peer))):
                async for reply in converse(asked, context):
                    await Replies(gateway, context, serialize).write(reply)
        except ServiceError as error:
            await _abort(error, call, context)

    return grpc.stream_stream_rpc_method_handler(answer, None, None)


def _refusing(gateway: Gateway, call: Call, error: ServiceError) -> Handler:
    """Answers any call with `error`, without reading its request."""

    async def refuse(requests: AsyncIterator[bytes], context: Context) -> None:
        call.peer = _peer(gateway, context)
        try:
            with instrumented_call(gateway, "grpc", call, is_public=False):
                raise error
        except ServiceError as told:
            with gateway.places.refusals.one(party_of(call.peer)):
                await _abort(told, call, context)

    return grpc.stream_stream_rpc_method_handler(refuse, None, None)


@contextmanager
def _prepared(gateway: Gateway, call: Call, context: Context, known: Caller | None) -> Iterator[None]:
    context.set_trailing_metadata(_told(call))
    call.deadline, call.peer = deadline(context), _peer(gateway, context)
    gateway.lifecycle.check()
    place = None if gateway.relay is None else gateway.relay.recognize(context.peer())
    with admitted(gateway, call, known or Caller(name=party_of(call.peer))), held(place):
        yield


def _peer(gateway: Gateway, context: Context) -> str:
    """The caller's address, which the server sees through the relay alone."""
    seen = str(context.peer())
    return seen if gateway.relay is None else gateway.relay.peer(seen)


def _told(call: Call) -> tuple[tuple[str, str], ...]:
    """What every caller is told, whatever the answer."""
    return (REQUEST_ID, call.request_id), (tracing.HEADER, call.trace.header)


async def _only(requests: AsyncIterator[bytes], within_s: float, limit: int) -> bytes:
    """The one message of a call. Raises ServiceError where none comes.

    Refuses by name what is little over the limit; the transport itself refuses what is far beyond.
    """
    patience = Patience("message", within_s, within_s)
    try:
        request = await patience.wait(requests.__anext__())
    except StopAsyncIteration:
        raise invalid("message", "must be sent", "the end of the call", Reason.INVALID_REQUEST) from None
    if len(request) > limit:
        raise invalid("message", f"must have at most {limit} bytes", f"{len(request)} bytes", Reason.TOO_LARGE)
    return request


def _parser(handler: Handler) -> Callable[[bytes], Any]:
    deserialize: Any = handler.request_deserializer
    assert deserialize is not None, "generated handlers have a deserializer"
    described = deserialize.__self__.DESCRIPTOR  # FromString of a message's class

    def parse(request: bytes) -> Any:
        try:
            check_structure(described, request)
            return deserialize(request)
        except DecodeError:
            shown = f"{len(request)} bytes that are not"
            raise invalid("message", "must be protobuf of this call's request", shown, Reason.INVALID_REQUEST) from None

    return parse


def _serializer(handler: Handler) -> Callable[[Any], bytes]:
    serialize: Any = handler.response_serializer
    assert serialize is not None, "generated handlers have a serializer"
    found: Callable[[Any], bytes] = serialize
    return found


async def _parsed(requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield parse(request)


async def _abort(error: ServiceError, call: Call, context: Context) -> NoReturn:
    status = rpc_status.to_status(to_status(error, call.request_id))
    let_go(error)
    trailing = (*status.trailing_metadata, *_told(call))
    try:
        await context.abort(status.code, status.details, trailing)
    except grpc.aio.InternalError:  # the call ended before, by its deadline or its caller: there is nobody to tell
        raise asyncio.CancelledError from None
    raise AssertionError("abort raises")
