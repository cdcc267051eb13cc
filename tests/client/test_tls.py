"""Encryption, and clients that show a certificate, over real TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import presage
import pytest

from tests.support.client.blocking import Connect
from tests.support.client.protocol_server import running

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.pem and server.key for the name robot.example, signed by themselves; the same for a client."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client"):
        subject = f"/CN={name}.example"
        extension = f"subjectAltName=DNS:{name}.example"
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command = ["openssl", "req", "-x509", *curve, *files, "-days", "2", "-subj", subject, "-addext", extension]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def credentials(folder: Path, mutual: bool) -> Any:
    pair = [((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())]
    roots = (folder / "client.pem").read_bytes() if mutual else None
    return grpc.ssl_server_credentials(pair, roots, require_client_auth=mutual)


def test_a_trusted_server_is_spoken_to_and_another_is_not(
    certificates: Path, connect: Connect, image: np.ndarray
) -> None:
    trusted = presage.TLS.from_files(roots=certificates / "server.pem", server_name="server.example")
    with running(credentials=credentials(certificates, mutual=False)) as server:
        with connect(server.address, tls=trusted, api_key="k", timeout_s=30.0) as client:
            assert client.model().name == "echo"
            with client.session(goal=client.goal(image)) as session, session.control() as loop:
                loop.send(image)
                assert loop.wait(20.0) is not None
        for wrong in (None, presage.TLS(), presage.TLS.from_files(roots=certificates / "server.pem")):
            with connect(server.address, tls=wrong, timeout_s=2.0) as client, pytest.raises(presage.PresageError):
                client.model()


def test_a_client_shows_its_certificate_where_it_must(certificates: Path, connect: Connect) -> None:
    files = {name: certificates / f"client.{name}" for name in ("key", "pem")}
    known = presage.TLS.from_files(certificates / "server.pem", files["key"], files["pem"], "server.example")
    with running(credentials=credentials(certificates, mutual=True)) as server:
        with connect(server.address, tls=known, timeout_s=30.0) as client:
            assert client.model().name == "echo"
        unknown = presage.TLS.from_files(roots=certificates / "server.pem", server_name="server.example")
        with connect(server.address, tls=unknown, timeout_s=2.0) as client, pytest.raises(presage.PresageError):
            client.model()


def test_a_key_needs_its_certificate_and_is_never_shown() -> None:
    with pytest.raises(presage.InvalidRequest, match=r"tls\.key must be given together"):
        presage.TLS(key=b"SECRET")
    assert "SECRET" not in repr(presage.TLS(key=b"SECRET", certificate=b"PUBLIC"))
    with pytest.raises(FileNotFoundError):
        presage.TLS.from_files(roots="/nowhere/ca.pem")
