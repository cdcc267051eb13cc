"""Opens both transports on one event loop in front of an application, and closes them gracefully.

Starting and stopping the application, and signals, are the composition root's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import grpc
import structlog
import uvicorn
from presage.user_error import UserError

from model import extras
from server.config import Settings, SettingsError, server_version
from server.observability.metrics import Telemetry
from server.observability.tracing import SpanSink
from server.recording.recorder import Recorder
from server.service.application import Application
from server.transport import tls
from server.transport.callers import auth
from server.transport.callers.connections import AT_ONCE, Connections, GatedSocket, fitting_connections
from server.transport.callers.shares import Shares
from server.transport.callers.sites import sites_of
from server.transport.gateway import Gateway
from server.transport.grpc.relay import Relay
from server.transport.grpc.service import create_server
from server.transport.health import Lifecycle
from server.transport.parsers import Parsers
from server.transport.rest.middleware import KEEP_ALIVE_S
from server.transport.rest.protocol import http_protocol
from server.transport.rest.routes import create_app
from server.transport.uploads import Uploads

_log = structlog.get_logger()
_EXTRA_PACKAGES = {"openpi": ("websockets", "msgpack"), "reflection": ("grpc_reflection",)}  # of the extra `service`


class StartError(UserError, RuntimeError):
    """The service cannot start; the message is one line."""


@dataclass(frozen=True)
class Addresses:
    """Where the transports are, with the ports that were given."""

    grpc: str  # host:port
    rest: str  # http://host:port or https://host:port
    models: tuple[tuple[str, str], ...] = ()  # once they are loaded: each one's name, and what it computes on


def create_gateway(
    application: Application, settings: Settings, recorder: Recorder | None = None, spans: SpanSink | None = None
) -> Gateway:
    """What both transports share. Raises SettingsError for keys that cannot be read."""
    most = fitting_connections(settings.limits.connections)
    limits, telemetry = settings.limits, Telemetry.create()
    lifecycle = Lifecycle(lambda: application.ready, limits.concurrent_calls)
    telemetry.build.info({"version": server_version()})
    telemetry.sessions.set_function(lambda: application.sessions_open)
    telemetry.engine_calls.set_function(lambda: application.calls_in_hand)
    telemetry.goal_bytes.set_function(lambda: application.goal_bytes)
    for number in range(len(settings.devices)):
        telemetry.engine_memory.labels(str(number)).set_function(partial(_engine_memory, application, number))
    telemetry.totals.read("presage_engine_restarts", lambda: application.engine_restarts)
    if recorder is not None:
        telemetry.totals.read("presage_records", lambda: recorder.written)
        telemetry.totals.read("presage_records_dropped", lambda: recorder.dropped)
    telemetry.ready.set_function(lambda: lifecycle.ready)
    keys = auth.KeyRing(auth.load_keys(settings), lambda: auth.load_keys(settings), application.forget)
    for line in auth.key_warnings(settings, keys.current):
        _log.warning("keys", why=line)
    shares = Shares(limits, lambda: keys.parties)
    rest = Connections(most, limits.connections_per_address)
    relay = Relay(Connections(most, limits.connections_per_address), limits.stalled_s)
    telemetry.connections.labels("rest").set_function(lambda: len(rest))
    telemetry.connections.labels("grpc").set_function(lambda: len(relay.connections))
    telemetry.totals.read("presage_connections_ended", lambda: rest.refused + relay.connections.refused)
    return Gateway(
        application=application,
        limits=limits,
        keys=keys,
        shares=shares,
        telemetry=telemetry,
        lifecycle=lifecycle,
        uploads=Uploads(settings.spool_dir, limits, shares),
        server_version=server_version(),
        engines_away_s=settings.engines_away_s,
        sites=sites_of(settings),
        connections=rest,
        relay=relay,
        parsers=Parsers(),
        spans=spans,
    )


def _engine_memory(application: Application, number: int) -> float:
    """Resident bytes of the engine's process; 0 while there is none, and where /proc is not there to say."""
    pids = application.engine_pids
    try:
        pages = int(Path(f"/proc/{pids[number]}/statm").read_text().split()[1])
    except (IndexError, OSError, ValueError):
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


@asynccontextmanager
async def listening(gateway: Gateway, settings: Settings, rest_socket: socket.socket) -> AsyncIterator[Addresses]:
    """Open both transports; leaving says NOT_SERVING, lets calls end within `shutdown_grace_s`, and closes them.

    Raises SettingsError for TLS files that cannot be used, StartError for a port that is taken or a missing extra.
    """
    await asyncio.to_thread(gateway.uploads.sweep)
    rest_port = rest_socket.getsockname()[1]
    scheme, host = "https" if settings.tls_cert is not None else "http", _bracketed(settings.host)
    async with contextlib.AsyncExitStack() as opened:
        assert gateway.relay is not None
        opened.push_async_callback(gateway.relay.close)
        credentials = tls.grpc_credentials(settings)  # before the REST gateway: it names the file at fault
        grpc_server = create_server(gateway, _is_offered(settings, "reflection"))
        gate = opened.enter_context(contextlib.closing(GatedSocket.of(rest_socket, gateway.connections)))
        rest_server = _rest_server(gateway, settings, gate)
        grpc_port = await _open_grpc(gateway.relay, grpc_server, settings, credentials)
        serving = asyncio.create_task(rest_server.serve([gate]))
        watching = asyncio.create_task(gateway.keys.watch(settings.api_keys_file))
        if gateway.parsers is not None:
            opened.push_async_callback(gateway.parsers.close)
        try:
            yield Addresses(f"{host}:{grpc_port}", f"{scheme}://{host}:{rest_port}")
        finally:
            watching.cancel()
            await _drain(gateway, grpc_server, rest_server, settings.shutdown_grace_s)
            await asyncio.gather(serving, watching, return_exceptions=True)
            gateway.uploads.close()


def _is_offered(settings: Settings, name: Literal["openpi", "reflection"]) -> bool:
    """Whether this is on and what it needs is installed. Raises StartError where it was asked for and is not."""
    if not getattr(settings, name):
        return False
    lacking = extras.missing(_EXTRA_PACKAGES[name], "service", name)
    if lacking and name in settings.model_fields_set:
        raise StartError(lacking)
    if lacking:
        _log.info(f"{name} is off", why=lacking)
    return not lacking


async def _drain(
    gateway: Gateway, grpc_server: grpc.aio.Server, rest_server: uvicorn.Server, shutdown_grace_s: float
) -> None:
    """Say NOT_SERVING, refuse what is new, let what is in progress end, then close."""
    until = time.monotonic() + shutdown_grace_s
    gateway.lifecycle.draining.set()
    if not await gateway.lifecycle.idle(shutdown_grace_s):
        _log.warning("calls are cut off", calls=gateway.lifecycle.in_flight, shutdown_grace_s=shutdown_grace_s)
    rest_server.should_exit = True
    await grpc_server.stop(min(0.5, max(0.0, until - time.monotonic())))  # what is left are watchers of health


def bind(host: str, port: int, name: str) -> socket.socket:
    """A listening socket on the host's first address; `name` is the setting at fault. Raises StartError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"host {host} cannot be listened on: {error.strerror or error}") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise StartError(f"{name} {port} on {host} cannot be listened on: {os.strerror(error.errno or 0)}") from None
    return bound


async def _open_grpc(
    relay: Relay, server: grpc.aio.Server, settings: Settings, credentials: grpc.ServerCredentials | None
) -> int:
    """Start the server and the relay in front of it; the port that was given."""
    with contextlib.closing(bind(settings.host, settings.grpc_port, "grpc_port")) as outer:
        port = int(outer.getsockname()[1])
        inner = f"unix:{relay.inner_path}"
        try:
            if credentials is not None:
                server.add_secure_port(inner, credentials)
            else:
                server.add_insecure_port(inner)
        except RuntimeError:
            raise StartError("gRPC cannot listen with these TLS files") from None
        await server.start()
        await relay.listen(outer)
    return port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Uvicorn(uvicorn.Server):
    """Leaves the signals to the composition root, which has another gateway to close too."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _websocket_protocol(gateway: Gateway) -> type[asyncio.Protocol]:
    from server.transport.openpi.protocol import bounded

    return bounded(gateway.limits)


def _rest_server(gateway: Gateway, settings: Settings, gate: GatedSocket) -> uvicorn.Server:
    serves_openpi = _is_offered(settings, "openpi")
    config = uvicorn.Config(
        create_app(gateway, serves_openpi),
        lifespan="off",
        backlog=AT_ONCE,
        http=http_protocol(gateway.limits, gate),
        h11_max_incomplete_event_size=gateway.limits.header_bytes,
        ws=_websocket_protocol(gateway) if serves_openpi else "none",
        ws_max_size=settings.limits.message_bytes,
        ws_max_queue=1,
        ws_per_message_deflate=False,  # images do not compress, and what compresses well is a bomb
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S + 5,  # what a client sends at the last moment it was told of still arrives
        timeout_graceful_shutdown=1,  # calls in progress were waited for before
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=str(settings.tls_key) if settings.tls_key is not None else None,
        ssl_ca_certs=str(settings.tls_client_ca) if settings.tls_client_ca is not None else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca is not None else ssl.CERT_NONE,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"TLS files cannot be used: {error}") from None
    return _Uvicorn(config)
