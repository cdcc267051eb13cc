"""`presage health`: whether a service is ready, as an exit code. What container health checks run."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cli.client_options import ApiKeyOption, TimeoutOption, TlsOption, TlsRootsOption, connect
from cli.exit_codes import CommandError
from cli.output import JsonFlag, open_output


def health(
    address: Annotated[
        str,
        typer.Option("--address", help="host:port of the gRPC transport; by default loopback and PRESAGE_GRPC_PORT."),
    ] = "",
    api_key: ApiKeyOption = "",
    tls: TlsOption = False,
    tls_roots: TlsRootsOption = None,
    timeout_s: TimeoutOption = 3.0,
    json_: JsonFlag = False,
) -> None:
    """Ask a running service whether it serves: exit code 0 if it does, 1 if it does not or cannot be reached."""
    where = address or f"127.0.0.1:{os.environ.get('PRESAGE_GRPC_PORT', '50051')}"
    with connect(where, api_key, tls, tls_roots, timeout_s) as client:
        found = client.health()
    open_output(json_).result({"address": where, "status": found.status}, found.status)
    if not found.ready:
        raise CommandError(f"{where} answers, but it is {found.status.replace('_', ' ')}")
