"""What Ray's gRPC proxy is told of our services: their methods, and to hand messages on as they are.

Ray calls a replica by the last word of a method's path alone, and Goals, Sessions and Models all have a `Get`. So each
message carries the path it came by. It is parsed once, in the replica, by the same code as without Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import grpc
from grpc_health.v1 import health_pb2
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, planning_pb2, sessions_pb2

Kind: TypeAlias = Literal["unary", "collected", "streamed", "conversed"]

_HANDLERS: dict[Kind, Callable[..., Any]] = {
    "unary": grpc.unary_unary_rpc_method_handler,
    "collected": grpc.stream_unary_rpc_method_handler,
    "streamed": grpc.unary_stream_rpc_method_handler,
    "conversed": grpc.stream_stream_rpc_method_handler,
}


@dataclass(frozen=True)
class Called:
    """One message on its way to a replica."""

    path: str  # /presage.v1.Goals/Create
    data: bytes


def methods() -> dict[str, Kind]:
    """Every method by its path: presage.v1 and health."""
    found: dict[str, Kind] = {}
    for file in (models_pb2, embeddings_pb2, goals_pb2, sessions_pb2, planning_pb2, health_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                kinds: tuple[Kind, Kind] = (
                    ("collected", "conversed") if method.client_streaming else ("unary", "streamed")
                )
                found[f"/{service.full_name}/{method.name}"] = kinds[method.server_streaming]
    return found


def add_services(servicer: object, server: Any) -> None:
    """One of Serve's `grpc_servicer_functions`. Ray puts its own behavior in place of `servicer`."""
    services: dict[str, dict[str, Any]] = {}
    for path, kind in methods().items():
        _, service, method = path.split("/")
        handler = _HANDLERS[kind](servicer, request_deserializer=partial(Called, path))
        services.setdefault(service, {})[method] = handler
    for service, handlers in services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
