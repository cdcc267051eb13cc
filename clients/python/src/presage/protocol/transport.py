"""Where the server is and how to speak to it: channel options, credentials, metadata, and gRPC's errors as ours.

Everything the blocking and the asyncio client share about gRPC; neither channel is opened here but by `open_channel`
and `open_async_channel`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import warnings
from dataclasses import dataclass, field
from typing import Any, Tuple, Union

import grpc
import grpc.aio

from presage.errors import PresageError, from_status, invalid
from presage.protocol import arguments
from presage.version import __version__

RECEIVE_BYTES = 256 << 20  # a long clip's token grid; gRPC's own limit of 4 MiB holds three ViT-g tubelets
Path = Union[str, "os.PathLike[str]"]
Metadata = Tuple[Tuple[str, str], ...]

_AFFINITY = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.primary_user_agent", f"presage-python/{__version__}"),
    ("grpc.max_receive_message_length", RECEIVE_BYTES),
    # gRPC waits a second, then up to two minutes, before it dials again: too long for a robot whose server restarts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A robot that changes its access point leaves a connection that looks alive for a quarter of an hour. Calls that
    # hear nothing ping it; idle connections do not, which servers and proxies take for an attack.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Channels of one process share connections by default: a fresh channel would be the dead connection again.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True)
class TLS:
    """Transport security, in PEM. Without `roots` the system's are trusted; a key and certificate make it mutual.

    `server_name` is checked instead of the address's host where it is set.
    """

    roots: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.key is None) != (self.certificate is None):
            raise invalid("tls.key", "must be given together with tls.certificate", "one of the two")

    @classmethod
    def from_files(
        cls,
        roots: Path | None = None,
        key: Path | None = None,
        certificate: Path | None = None,
        server_name: str = "",
    ) -> TLS:
        """Reads PEM files. Raises OSError for one that cannot be read."""
        return cls(_read(roots), _read(key), _read(certificate), server_name)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


@dataclass(frozen=True)
class Endpoint:
    """A server and the right to use it. The key is never shown."""

    address: str
    api_key: str | None = field(default=None, repr=False)
    tls: TLS | None = None
    affinity: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.address, str):
            raise invalid("address", "must be host:port", arguments.shown(self.address))
        if not self.address:
            raise invalid("address", "must be host:port", "nothing")
        if "://" in self.address.replace("dns://", "", 1):
            raise invalid("address", "must be host:port without a scheme in front", self.address)
        if self.tls is not None and not isinstance(self.tls, TLS):
            raise invalid("tls", "must be TLS(...) or None", arguments.shown(self.tls))
        if self.affinity is not None and not isinstance(self.affinity, str):
            raise invalid("affinity", "must be text", arguments.shown(self.affinity))
        if self.api_key is not None and not isinstance(self.api_key, str):
            raise invalid("api_key", "must be text", f"a {type(self.api_key).__name__} (not shown)")
        if self.affinity is not None and not _AFFINITY.fullmatch(self.affinity):
            raise invalid("affinity", "must be 1 to 128 of A-Z a-z 0-9 . _ : -", self.affinity)
        if self.api_key is None:
            return
        if not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key.strip() == self.api_key != ""):
            raise invalid("api_key", "must be printable ASCII without spaces around it", "one that is not (not shown)")
        if self.tls is None and not self.is_local():
            warnings.warn(f"the API key travels unencrypted to {self.address}: pass tls=TLS(...)", stacklevel=4)

    def is_local(self) -> bool:
        """Whether nothing leaves this machine."""
        if self.address.startswith(("unix:", "unix-abstract:", "vsock:")):
            return True
        host = _host(self.address)
        if host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost"):
            return True
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            return False
        mapped = getattr(found, "ipv4_mapped", None)
        return (mapped or found).is_loopback or (mapped or found).is_unspecified

    def proxy(self) -> str | None:
        """The proxy that gRPC goes through, without its password, and who names it; None where it goes directly."""
        if self.is_local():
            return None
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):  # as gRPC looks for it
            address = os.environ.get(name, "")
            if address:
                is_used = address.startswith("http://") and not _is_excepted(_host(self.address))
                return f"{_without_password(address)} ({name})" if is_used else None
        return None

    def metadata(self, request_id: str, timeout_s: float | None = None) -> Metadata:
        """What goes with a call that may take so long."""
        entries: Metadata = (("x-request-id", request_id),)
        if self.api_key is not None:
            entries = (*entries, ("authorization", f"Bearer {self.api_key}"))
        if self.affinity is not None:  # the second spelling is Ray Serve's
            entries = (*entries, ("x-session-id", self.affinity), ("session_id", self.affinity))
            if timeout_s is not None:  # gRPC's own ends at a proxy that answers for the server
                entries = (*entries, ("x-timeout-ms", f"{timeout_s * 1e3:.3f}"))
        return entries

    def open_channel(self) -> grpc.Channel:
        """A connection of its own, dialled at the first call."""
        credentials = self._credentials()
        if credentials is None:
            return grpc.insecure_channel(self.address, self._options())
        return grpc.secure_channel(self.address, credentials, self._options())

    def open_async_channel(self) -> grpc.aio.Channel:
        """The same for the running event loop."""
        credentials = self._credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.address, self._options())
        return grpc.aio.secure_channel(self.address, credentials, self._options())

    def error(self, failed: grpc.RpcError, request_id: str) -> PresageError:
        """Our error for gRPC's."""
        status: Any = failed  # every RpcError of a call tells these, which its type does not say
        code = status.code()
        proxy = self.proxy()
        return from_status(
            # grpc.aio 1.70 mixes up the parts of an error of its own making.
            code.name if isinstance(code, grpc.StatusCode) else "INTERNAL",
            str(status.details() or ""),
            [(entry[0], entry[1]) for entry in status.trailing_metadata() or ()],
            request_id=request_id,
            address=self.address if proxy is None else f"{self.address} through the proxy {proxy}",
        )

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if self.tls is None:
            return None
        return grpc.ssl_channel_credentials(self.tls.roots, self.tls.key, self.tls.certificate)

    def _options(self) -> list[tuple[str, str | int]]:
        override = self.tls.server_name if self.tls is not None else ""
        options = [*_OPTIONS, *([("grpc.ssl_target_name_override", override)] if override else [])]
        return [*options, ("grpc.enable_http_proxy", 0)] if self.is_local() else options


def _host(address: str) -> str:
    """The host of a gRPC address, however that is written."""
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        if address.startswith(scheme):
            address = address[len(scheme) :]
            break
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def _is_excepted(host: str) -> bool:
    """Whether the environment excepts this host from its proxy, by gRPC's rule: a name ends with one that is listed."""
    listed = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy") or ""  # noqa: SIM112 (gRPC's spelling)
    return any(host.endswith(entry.strip()) for entry in listed.split(",") if entry.strip())


def _without_password(address: str) -> str:
    scheme, found, rest = address.rpartition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
