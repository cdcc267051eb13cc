"""`presage serve`: the service in the foreground; flags override environment, file and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import JsonFlag, open_output

if TYPE_CHECKING:
    from server.config import Settings
    from server.transport.listeners import Addresses

# Files are `readable=False` for typer: it would tell of one that may not be read in a box, not in a line like the rest.
_OTHERS = (
    "Any setting, repeatedly: batches, engine_nice, engine_heartbeat_timeout_s, engines_away_s, allowed_hosts, "
    "allowed_origins, session_ttl_s, startup_timeout_s, shutdown_grace_s, spool_dir, reflection, openpi, "
    "otlp_endpoint; limits.message_bytes, limits.image_pixels, limits.clip_bytes, limits.clip_frames, "
    "limits.clip_duration_s, limits.clip_decode_timeout_s, limits.max_concurrent_uploads, limits.upload_idle_s, "
    "limits.upload_s, limits.upload_bytes_per_s, limits.message_s, limits.stream_idle_s, limits.concurrent_calls, "
    "limits.header_bytes, limits.headers, limits.path_bytes, limits.header_s, limits.connection_idle_s, "
    "limits.stalled_s, limits.reply_bytes_per_s, limits.connections, limits.connections_per_address, "
    "limits.session_ttl_s, limits.session_age_s, limits.sessions, limits.max_queue, limits.calls_per_key, "
    "limits.streams_per_key, limits.sessions_per_key, limits.uploads_per_key, limits.bytes_per_key, "
    "limits.rollout_steps, limits.iterations, limits.iteration_s, limits.work_s, limits.reply_bytes, limits.images, "
    "limits.bytes_in_progress, limits.goal_cache_bytes, limits.goal_cache_total_bytes. docs/operations.md explains "
    "each. Keys come by file or by PRESAGE_API_KEYS."
)

RecordFolder = Annotated[
    Path | None, typer.Option("--record", help="Folder for the flight recorder: every plan, to be made again.")
]
RecordBytes = Annotated[
    int | None, typer.Option("--record-bytes", help="Of all its files; the oldest go.  [default: 1 GiB]")
]
RecordImages = Annotated[
    bool | None, typer.Option("--record-images/--no-record-images", help="Keep what cameras saw.  [default: keep]")
]


def serve(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A package's name or folder; repeat it for more, the default first."),
    ] = None,
    devices: Annotated[
        list[str] | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto; one engine process for each.")
    ] = None,
    engine_threads: Annotated[
        int | None, typer.Option("--threads", min=0, help="CPU threads of an engine; 0 measures which are fastest.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="float32, bfloat16, float8, int8; auto: the fastest that plans alike."),
    ] = None,
    graphs: Annotated[
        str | None, typer.Option("--graphs", help="on, off, or auto: rollouts as graphs on CUDA devices.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address both transports listen on. By default 127.0.0.1.")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option("--grpc-port", min=0, max=65535, help="0 takes a free one. By default 50051.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option("--http-port", min=0, max=65535, help="0 takes a free one. By default 8080.")
    ] = None,
    api_keys_file: Annotated[
        Path | None,
        typer.Option("--api-keys-file", readable=False, help="Accepted keys, one per line, plain or as sha256:<hex>."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", readable=False, help="PEM certificate chain; turns TLS on.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", readable=False, help="PEM private key.")] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option("--tls-client-ca", readable=False, help="PEM authority that signs clients' certificates."),
    ] = None,
    insecure_public: Annotated[
        bool, typer.Option("--insecure-public", help="Serve callers from elsewhere without any authentication.")
    ] = False,
    record: RecordFolder = None,
    record_bytes: RecordBytes = None,
    record_images: RecordImages = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", readable=False, help="YAML or TOML file with any of the settings, limits among them."),
    ] = None,
    others: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=_OTHERS)] = None,
    log_format: Annotated[str | None, typer.Option("--log-format", help="console or json.")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Serve world models over gRPC and REST until SIGTERM or Ctrl-C. Every setting is also a PRESAGE_* variable."""
    from server.config import load

    flags = {
        **_named(others or []),
        "models": tuple(models) if models else None,
        "devices": tuple(devices) if devices else None,
        "engine_threads": engine_threads,
        "precision": precision,
        "graphs": graphs,
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "api_keys_file": api_keys_file,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "insecure_public": insecure_public or None,
        "log_format": log_format,
        "log_level": log_level,
    }
    recording = {"folder": record, "max_bytes": record_bytes, "images": record_images}
    flags["record"] = {name: value for name, value in recording.items() if value is not None}
    _run(load(config, flags), json_)


def _run(settings: Settings, json_: bool) -> None:
    """Serve until stopped, and say where once the transports are open."""
    import asyncio

    from server.observability.logging import configure_logging, wrap_plain_lines
    from server.serving import serve as serve_until_stopped

    configure_logging(settings.log_format, settings.log_level)
    if settings.log_format == "json":
        wrap_plain_lines()
    output = open_output(json_)

    def announce(addresses: Addresses) -> None:
        computes = dict(addresses.models)
        value = {"grpc": addresses.grpc, "rest": addresses.rest, "models": list(settings.models), "computes": computes}
        models = "".join(f"\n  {name}: {how}" for name, how in computes.items())
        output.result(value, f"ready: gRPC on {addresses.grpc}, REST on {addresses.rest}{models}")

    asyncio.run(serve_until_stopped(settings, announce))


def _named(pairs: list[str]) -> dict[str, object]:
    """NAME=VALUE pairs as settings, those of limits in a folder of their own. Raises SettingsError."""
    from server.config import SettingsError

    settings: dict[str, object] = {}
    limits: dict[str, str] = {}
    for pair in pairs:
        name, is_pair, value = pair.partition("=")
        if not is_pair or not name:
            raise SettingsError(f"--set must be NAME=VALUE, got {pair}")
        if name == "api_keys":
            raise SettingsError("api_keys must not come as a flag, which every user of the machine can read")
        if name.startswith("limits."):
            limits[name.removeprefix("limits.")] = value
        else:
            settings[name] = value
    return {**settings, "limits": limits} if limits else settings
