"""TLS files for the gRPC transport."""

from __future__ import annotations

import grpc

from server.config import Settings, SettingsError


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
