"""Options of commands that call a running service, and the client made from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from presage import Client

DEFAULT_ADDRESS = "127.0.0.1:50051"

AddressOption = Annotated[str, typer.Option("--address", help="host:port of the service's gRPC transport.")]
ServedModelOption = Annotated[
    str, typer.Option("--model", help="The service's name for a model; its default if empty.")
]
ImageOption = Annotated[Path, typer.Option("--image", help="What the robot sees: a JPEG, PNG or WebP file.")]
GoalOption = Annotated[Path, typer.Option("--goal", help="What it should see: a JPEG, PNG or WebP file.")]
ProprioceptionOption = Annotated[
    str, typer.Option("--proprioception", help="What the robot measures, by commas, where a model uses it.")
]
ApiKeyOption = Annotated[
    str, typer.Option("--api-key", envvar="PRESAGE_API_KEY", show_envvar=True, help="Where the service wants one.")
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Encrypt, trusting the system's certificate authorities.")]
TlsRootsOption = Annotated[
    Path | None, typer.Option("--tls-roots", help="Encrypt, trusting the authorities in this PEM file.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout-s", min=0.001, help="Deadline of each call, in seconds.")]


def connect(address: str, api_key: str, tls: bool, tls_roots: Path | None, timeout_s: float) -> Client:
    """A client for the service at `address`; nothing is dialled yet. PresageError or OSError for bad arguments."""
    from presage import TLS, Client

    security = TLS.from_files(roots=tls_roots) if tls or tls_roots is not None else None
    return Client(address, api_key=api_key or None, tls=security, timeout_s=timeout_s)


def read_image(path: Path) -> bytes:
    """A file's bytes, which the service decodes. OSError where it cannot be read."""
    return path.read_bytes()


def numbers(text: str, option: str) -> list[float]:
    """Numbers separated by commas; typer.BadParameter naming the option for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        rule = "must be numbers separated by commas"
        raise typer.BadParameter(f"{rule}, got {text!r}", param_hint=option) from None


def timings_value(timings: Any) -> dict[str, float]:
    """A plan's durations on the server, in milliseconds."""
    names = ("queue_ms", "decode_ms", "encode_ms", "plan_ms", "total_ms")
    return {name: round(getattr(timings, name), 3) for name in names}
