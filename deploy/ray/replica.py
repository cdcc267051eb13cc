"""One replica: the application with its engines, and both transports' code, called by Ray Serve instead of by sockets.

Keys, limits, metrics, logs and errors are those of `server`: every call passes the same interceptor and middleware.
What Ray needs to know of it is in application.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from deploy.ray.context import Aborted, ReplicaContext
from deploy.ray.wire import Called, Kind, methods
from server.config import Settings
from server.observability.logging import configure_logging
from server.service.application import Application
from server.transport.grpc.interceptor import GatewayInterceptor
from server.transport.grpc.service import add_services
from server.transport.listeners import create_gateway
from server.transport.rest.routes import create_app


class _Details(NamedTuple):
    """What an interceptor is told of a call."""

    method: str
    invocation_metadata: Any


@dataclass(frozen=True)
class Encoded:
    """An answer that is bytes already."""

    data: bytes

    def SerializeToString(self) -> bytes:  # what Ray calls
        return self.data


NOTHING = Encoded(b"")


class _Handlers:
    """Takes the place of a gRPC server where services are added: keeps their handlers by path."""

    def __init__(self) -> None:
        self.by_path: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers come the other way too."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.by_path.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


class Replica:
    """Made by Ray. Has one method for each name in `wire.methods()`, added below."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        configure_logging(settings.log_format, settings.log_level)
        self._drain_s = settings.shutdown_grace_s
        self._application = await Application.start(settings)
        try:
            await self._application.wait_ready(settings.startup_timeout_s)
            self._gateway = create_gateway(self._application, settings)
        except BaseException:
            await self._application.stop(0.0)
            raise
        handlers = _Handlers()
        add_services(self._gateway, handlers)
        self._handlers = handlers.by_path
        self._interceptor = GatewayInterceptor(self._gateway)

    def __serve_build_asgi_app__(self) -> Any:
        """The REST gateway, where Ray looks for it."""
        return create_app(self._gateway)

    async def stop(self) -> None:
        """Refuse what is new, let calls in progress end, and end the engines."""
        self._gateway.lifecycle.draining.set()
        await self._gateway.lifecycle.idle(self._drain_s)
        await self._application.stop(0.0)

    async def handler(self, path: str, context: ReplicaContext) -> Any:
        """What serves a call, behind the checks that every call passes."""

        async def find(details: Any) -> Any:
            return self._handlers.get(details.method)

        details: Any = _Details(path, context.invocation_metadata())
        return await self._interceptor.intercept_service(find, details)


async def _answered(replica: Replica, path: str, requests: AsyncIterator[bytes], context: ReplicaContext) -> None:
    """Serve a call; its answer is written to the context. Raises Aborted.

    The interceptor hands all requests on as a stream, and writes all answers as bytes.
    """
    handler = await replica.handler(path, context)
    await handler.stream_stream(requests, context)


async def _single(replica: Replica, path: str, requests: AsyncIterator[bytes], grpc_context: Any) -> Encoded:
    """The one answer of a call."""
    written: list[Encoded] = []

    async def write(reply: bytes) -> None:
        written.append(Encoded(reply))

    try:
        await _answered(replica, path, requests, ReplicaContext(grpc_context, write))
    except Aborted:
        return NOTHING
    (answer,) = written
    return answer


async def _stream(
    replica: Replica, path: str, requests: AsyncIterator[bytes], grpc_context: Any
) -> AsyncIterator[Encoded]:
    """The answers of a call. It writes whenever it likes; Ray wants a generator."""
    written: asyncio.Queue[Encoded | None] = asyncio.Queue(1)

    async def write(reply: bytes) -> None:
        await written.put(Encoded(reply))

    async def converse() -> None:
        try:
            await _answered(replica, path, requests, ReplicaContext(grpc_context, write))
        except Aborted:
            await written.put(NOTHING)  # Ray carries an error of a stream beside a message only: an empty one
        finally:
            await written.put(None)

    conversation = asyncio.create_task(converse())
    try:
        while (reply := await written.get()) is not None:
            yield reply
        await conversation
    finally:
        conversation.cancel()
        while not conversation.done():
            if not written.empty():
                written.get_nowait()
            await asyncio.wait((conversation,), timeout=0.01)


async def _data(requests: AsyncIterator[Called]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.data


async def _only(request: Called) -> AsyncIterator[bytes]:
    yield request.data


def _method(path: str, kind: Kind) -> Callable[..., Any]:
    """A method of Replica, with the two arguments that Ray passes."""

    async def unary(self: Replica, request: Called, grpc_context: Any) -> Encoded:
        return await _single(self, request.path, _only(request), grpc_context)

    async def collected(self: Replica, request: AsyncIterator[Called], grpc_context: Any) -> Encoded:
        return await _single(self, path, _data(request), grpc_context)

    async def streamed(self: Replica, request: Called, grpc_context: Any) -> AsyncIterator[Encoded]:
        async for reply in _stream(self, request.path, _only(request), grpc_context):
            yield reply

    async def conversed(self: Replica, request: AsyncIterator[Called], grpc_context: Any) -> AsyncIterator[Encoded]:
        async for reply in _stream(self, path, _data(request), grpc_context):
            yield reply

    made: dict[Kind, Callable[..., Awaitable[Encoded] | AsyncIterator[Encoded]]] = {
        "unary": unary,
        "collected": collected,
        "streamed": streamed,
        "conversed": conversed,
    }
    return made[kind]


for _path, _kind in methods().items():  # where two services share a name, both are unary: the message says which
    setattr(Replica, _path.rpartition("/")[2], _method(_path, _kind))
