"""The tables of the documentation, made from the code: calls, errors, settings, metrics. `scripts/docs` writes them.

A table stands between `<!-- NAME -->` and `<!-- end NAME -->`; what stands around it is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "clients/python/src")]

from fastapi.routing import APIRoute  # noqa: E402
from google.protobuf import descriptor_pool  # noqa: E402
from grpc_health.v1 import health_pb2  # noqa: E402
from prometheus_client.metrics import MetricWrapperBase  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from server.config import Limits, Recording, Settings  # noqa: E402
from server.errors import Reason  # noqa: E402
from server.observability.metrics import Telemetry  # noqa: E402
from server.transport.grpc.service import SERVICES  # noqa: E402
from server.transport.openpi import request  # noqa: E402
from server.transport.rest import middleware  # noqa: E402
from server.transport.rest import routes as rest  # noqa: E402

PAGES = ("docs/protocol.md", "docs/operations.md")


def main() -> None:
    for page in PAGES:
        (ROOT / page).write_text(renewed((ROOT / page).read_text()))


def renewed(text: str) -> str:
    """A page with every table as the code has it now. Raises ValueError for a table nobody makes."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise ValueError(f"tables must be among {', '.join(TABLES)}, got {name}")
        return f"<!-- {name} -->\n{TABLES[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- ([\w ]+) -->\n.*?<!-- end \1 -->", table, text, flags=re.DOTALL)


def calls() -> str:
    """Every RPC and every route, those that are the same call in one row."""
    rows = {f"{service}.{name}": (told, "") for service, name, told in _rpcs()}
    for route in _routes(rest._routes.routes):
        for method in sorted(route.methods):
            told, _ = rows.get(route.name, ((route.endpoint.__doc__ or "").split("\n")[0], ""))
            rows[route.name] = (told, f"`{method} {route.path}`")
    lines = [f"| `{name}` | {path or 'gRPC alone'} | {told} |" for name, (told, path) in rows.items()]
    return _table("| gRPC `presage.v1` | REST | what it does |", lines)


def probes() -> str:
    """What is beside the calls."""
    lines = []
    for route in _routes(rest._probes.routes):
        told = (route.endpoint.__doc__ or "").split("\n")[0]
        key = "no" if route.path in middleware.PUBLIC_PATHS else "yes"
        lines.append(f"| `GET {route.path}` | {key} | {told} |")
    lines.append("| `GET /openapi.json` | yes | The REST gateway as an OpenAPI document. |")
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    methods = ", ".join(method.name for method in health.methods)
    lines.append(f"| `{health.full_name}` ({methods}) | no | Readiness, for the server and each service. |")
    lines.append("| gRPC reflection | yes | Lists the services; `reflection` turns it off. |")
    return _table("| | key | what it does |", lines)


def errors() -> str:
    lines = []
    for reason in Reason:
        fault = reason.fault
        lines.append(f"| `{reason.name}` | {fault.grpc_code.name} | {fault.http_status} | {fault.title} |")
    return _table("| reason | gRPC | HTTP | |", lines)


def settings() -> str:
    return _table("| setting | default | |", [*_fields(Settings, ""), *_fields(Recording, "record.")])


def limits() -> str:
    return _table("| limit | default | |", _fields(Limits, "limits."))


def metrics() -> str:
    telemetry = Telemetry.create()
    labels = {
        metric._name: metric._labelnames for metric in vars(telemetry).values() if isinstance(metric, MetricWrapperBase)
    }
    endings = {"counter": "_total", "info": "_info"}
    rows = []
    for family in telemetry.registry.collect():
        name = family.name + endings.get(family.type, "")
        rows.append(f"| `{name}` | {family.type} | {', '.join(labels.get(family.name, ()))} | {family.documentation} |")
    return _table("| metric | kind | labels | |", rows)


def openpi() -> str:
    rows = [f"| `{name}` | {told} |" for name, told in request.PARAMETERS.items()]
    return _table("| parameter | |", rows)


def _fields(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name in ("limits", "record"):
            continue
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(default)
        shown = (
            ""
            if default is None or default == ""
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        variable = f"PRESAGE_{prefix.replace('.', '__')}{name}".upper()
        yield f"| `{prefix}{name}` <br> `{variable}` | {shown} | {field.description} |"


def _rpcs() -> Iterator[tuple[str, str, str]]:
    """Service, name and comment of every RPC."""
    for full_name in SERVICES:
        service = descriptor_pool.Default().FindServiceByName(full_name)
        source = (ROOT / "proto" / service.file.name).read_text()
        body = source.split(f"service {service.name} {{")[1].split("\n}")[0]
        for method in service.methods:
            comment = re.search(rf"((?:  //[^\n]*\n)+)  rpc {method.name}\(", body)
            assert comment is not None, f"{method.full_name} has no comment"
            yield service.name, method.name, " ".join(line.strip()[3:] for line in comment[1].splitlines())


def _routes(routes: list[object]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route


def _table(head: str, lines: Iterator[str] | list[str]) -> str:
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *lines])


TABLES: dict[str, Callable[[], str]] = {
    "calls": calls,
    "probes": probes,
    "errors": errors,
    "settings": settings,
    "limits": limits,
    "metrics": metrics,
    "openpi": openpi,
}

if __name__ == "__main__":
    main()
