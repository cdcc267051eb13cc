"""Runs the service: settings in, one application behind both transports on one event loop, until a signal.

`python -m server` serves what PRESAGE_* variables say; the `presage serve` command adds flags and a file.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from model.extras import MissingExtra
from server import config as reading
from server.config import Settings, SettingsError, server_version, unknown_variables
from server.engine.messages import Loader
from server.errors import ServiceError
from server.observability import ntp
from server.observability.logging import configure_logging, wrap_plain_lines
from server.recording.recorder import Recorder, RecorderSettings
from server.service.application import Application
from server.transport.listeners import Addresses, StartError, bind, create_gateway, listening

if TYPE_CHECKING:
    from server.observability.opentelemetry import OtelSpans

_log = structlog.get_logger()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of <malloc.h>


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code: 0, 1 where it could not start, 2 for bad settings."""
    configure_logging(settings.log_format, settings.log_level)
    if settings.log_format == "json":
        wrap_plain_lines()
    try:
        asyncio.run(serve(settings))
    except SettingsError as error:
        _log.error("bad settings", why=str(error))
        return 2
    except StartError as error:
        _log.error("cannot start", why=str(error))
        return 1
    return 0


async def serve(
    settings: Settings, on_ready: Callable[[Addresses], None] | None = None, loader: Loader | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. `on_ready` is told the addresses once work is welcome.

    `loader` is another way to load a model than model.registry's.

    Raises SettingsError for files that cannot be used, StartError for a port that is taken or a model that does not
    load.
    """
    for line in unknown_variables(os.environ):
        _log.warning("environment", why=line)
    give_memory_back()
    stop = asyncio.Event()
    with _signals(stop), closing(bind(settings.host, settings.http_port, "http_port")) as rest_socket:
        if settings.grpc_port != 0:
            bind(settings.host, settings.grpc_port, "grpc_port").close()  # gRPC says less of a taken port, and twice
        recorder, spans = _recorder(settings), spans_of(settings)
        application = await Application.start(settings, recorder, loader)
        stopped = time.monotonic()
        try:
            gateway = create_gateway(application, settings, recorder, spans)
            async with listening(gateway, settings, rest_socket) as addresses:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, gateway.keys.reload)
                if gateway.parsers is not None:
                    await gateway.parsers.start()
                _log.info("listening", grpc=addresses.grpc, rest=addresses.rest)
                if (fault := ntp.fault(time.time(), ntp.is_synchronized())) is not None:
                    _log.warning("the clock cannot be trusted", why=fault)
                if not settings.is_loopback and settings.tls_cert is None:
                    _log.warning("callers from elsewhere are served without TLS", host=settings.host)
                if await _ready_before(stop, application, settings.startup_timeout_s):
                    _log.info("ready", grpc=addresses.grpc, rest=addresses.rest, models=list(settings.models))
                    if on_ready is not None:
                        models = tuple((model.name, model.computes) for model in application.models())
                        on_ready(replace(addresses, models=models))
                    await stop.wait()
                stopped = time.monotonic()
                _log.info("stopping", shutdown_grace_s=settings.shutdown_grace_s)
        finally:
            await application.stop(max(0.0, stopped + settings.shutdown_grace_s - time.monotonic()))
            if recorder is not None:
                await asyncio.to_thread(recorder.close)
            if spans is not None:
                await asyncio.to_thread(spans.close)
    _log.info("stopped")


def give_memory_back() -> None:
    """Have the C library give freed blocks of more than 512 KiB back to the system at once.

    By itself it keeps more the larger the blocks are that were freed: eight requests of 10 MiB left 209 MiB behind.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, 512 << 10)
    mallopt(M_TRIM_THRESHOLD, 4 << 20)


def _recorder(settings: Settings) -> Recorder | None:
    """The flight recorder, if one is wanted. Raises StartError for a folder that cannot be used, or a missing extra."""
    record = settings.record
    if record.folder is None:
        return None
    models = tuple(str(Path(name).resolve()) if Path(name).is_dir() else name for name in settings.models)
    try:
        return Recorder(
            RecorderSettings(record.folder, record.max_bytes, record.max_bytes // 16, record.images, models)
        )
    except OSError as error:
        raise StartError(f"record.folder {record.folder} cannot be used: {error.strerror or error}") from None
    except MissingExtra as error:
        raise StartError(f"record.folder: {error}") from None


def spans_of(settings: Settings) -> OtelSpans | None:
    """Where spans go, if anywhere. Raises StartError where the extra is not installed."""
    if not settings.otlp_endpoint:
        return None
    try:
        from server.observability.opentelemetry import OtelSpans

        return OtelSpans.to(settings.otlp_endpoint, server_version())
    except ImportError as error:
        raise StartError(f"otlp_endpoint needs the extra otel, which is not installed: {error}") from None


async def _ready_before(stop: asyncio.Event, application: Application, startup_timeout_s: float) -> bool:
    """Wait for the engines; False when asked to stop first. Raises StartError."""
    stopping, ready = asyncio.create_task(stop.wait()), asyncio.create_task(application.wait_ready(startup_timeout_s))
    try:
        await asyncio.wait((stopping, ready), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
        return ready.done()
    except ServiceError as error:
        raise StartError(error.message) from None
    finally:
        stopping.cancel()
        ready.cancel()
        await asyncio.gather(stopping, ready, return_exceptions=True)


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def main() -> int:
    configure_logging("console", "info")
    try:
        settings = reading.load()
    except SettingsError as error:
        _log.error("bad settings", why=str(error))
        return 2
    return run(settings)
