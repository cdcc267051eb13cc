"""Authentication: API keys (kept as digests, compared in constant time) and TLS files for both transports."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from server.config import Settings, SettingsError
from server.errors import Reason, ServiceError

_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(frozen=True)
class Keys:
    """The accepted keys as sha256 digests. Without any, every caller is let in."""

    digests: tuple[bytes, ...] = ()

    def check(self, header: Callable[[str], str | None]) -> None:
        """Refuse a call that shows no accepted key in `authorization: Bearer KEY` or `x-api-key: KEY`.

        openpi clients write the first with the scheme Api-Key.

        `header` finds a header by its lower-case name. Raises UNAUTHENTICATED, which never repeats the key.
        """
        if not self.digests:
            return
        scheme, _, token = (header("authorization") or "").partition(" ")
        shown = token.strip() if scheme.lower() in ("bearer", "api-key") else header("x-api-key") or ""
        digest = hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest()
        accepted = [hmac.compare_digest(digest, known) for known in self.digests]  # all of them, whichever matches
        if not shown:
            rule = "must come in 'authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise ServiceError(Reason.UNAUTHENTICATED, f"an API key {rule}", field="authorization", rule=rule)
        if not any(accepted):
            raise ServiceError(Reason.UNAUTHENTICATED, "the API key is not accepted", field="authorization")


def load_keys(settings: Settings) -> Keys:
    """Gather the keys of settings and key file. Raises SettingsError."""
    lines = [key.get_secret_value() for key in settings.api_keys]
    file = settings.api_keys_file
    if file is not None:
        try:
            content = file.read_text(encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"api_keys_file {file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(f"api_keys_file {file} must be UTF-8 text") from None
        found = [line.strip() for line in content.splitlines()]
        found = [line for line in found if line and not line.startswith("#")]
        if not found:
            raise SettingsError(f"api_keys_file {file} must hold at least one key, got none")
        lines += found
    return Keys(tuple(_digest(line) for line in lines))


def _digest(key: str) -> bytes:
    hashed = _DIGEST.fullmatch(key)
    return bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(key.encode()).digest()


def grpc_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS for the gRPC gateway, asking clients for a certificate where an authority is set. Raises SettingsError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        authority = settings.tls_client_ca.read_bytes() if settings.tls_client_ca is not None else None
    except OSError as error:
        raise SettingsError(f"TLS file {error.filename} cannot be read: {error.strerror}") from None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
