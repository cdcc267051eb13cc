"""Who may call: default deny on every route and call there is, keys that never show, and TLS both ways."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from presage.v1 import models_pb2, models_pb2_grpc

from server.config import Settings, SettingsError, load
from server.errors import Reason, ServiceError
from server.service.application import Application
from server.transport.callers.auth import Keys, load_keys
from server.transport.grpc.interceptor import PUBLIC_SERVICES
from server.transport.grpc.service import SERVICES
from server.transport.listeners import bind, create_gateway, listening
from server.transport.rest.middleware import PUBLIC_PATHS
from server.transport.rest.routes import create_app
from tests.support.paths import ROOT
from tests.support.server.transports import Service, grpc_refusal, open_service, read_status, rest_refusal

KEY = "correct-horse"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
on_the_shared_loop = pytest.mark.asyncio(loop_scope="session")


def headers(**given: str) -> Callable[[str], str | None]:
    return {name.replace("_", "-"): value for name, value in given.items()}.get


# Keys


def test_a_key_is_accepted_in_either_header_and_no_other_way() -> None:
    keys = load_keys(load(flags={"api_keys": ["one-of-two", KEY]}))
    for let_in in (
        headers(authorization=f"Bearer {KEY}"),
        headers(authorization="bearer one-of-two"),
        headers(x_api_key=KEY),
    ):
        keys.check(let_in)
    for kept_out in (
        headers(),
        headers(x_api_key=""),
        headers(x_api_key=KEY + " "),
        headers(x_api_key=KEY.upper()),
        headers(authorization=KEY),
        headers(authorization=f"Basic {KEY}"),
        headers(authorization="Bearer "),
        headers(x_api_key="\udcff"),
        headers(x_api_key="ключ"),
    ):
        with pytest.raises(ServiceError) as caught:
            keys.check(kept_out)
        assert caught.value.reason is Reason.UNAUTHENTICATED
        assert KEY not in caught.value.message


def test_without_keys_everyone_is_let_in() -> None:
    Keys().check(headers())


def test_a_key_file_holds_keys_plain_or_hashed(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# robots\nwritten-plainly\n\n sha256:{hashlib.sha256(KEY.encode()).hexdigest()} \n")
    keys = load_keys(load(flags={"api_keys_file": file}))
    assert len(keys.keys) == 2
    keys.check(headers(x_api_key="written-plainly"))
    keys.check(headers(x_api_key=KEY))
    assert KEY not in repr(keys)


def test_a_key_file_that_holds_none_is_refused_rather_than_serving_everyone(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nobody\n")
    for file in (empty, tmp_path / "absent"):
        with pytest.raises(SettingsError, match=file.name):
            load_keys(load(flags={"api_keys_file": file}))


# Default deny


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(application: Application) -> AsyncIterator[Service]:
    async with open_service(application, api_keys=[KEY]) as opened:
        yield opened


def every_call() -> list[str]:
    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(name) for name in (*SERVICES, REFLECTION)]
    known = [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
    return [*known, "/presage.v1.Planning/Reboot", "/nobody/Nothing"]


@pytest.mark.parametrize("metadata", [(), (("x-api-key", "wrong"),)], ids=["without key", "wrong key"])
@on_the_shared_loop
async def test_every_grpc_call_but_health_is_denied(guarded: Service, metadata: Any) -> None:
    calls = every_call()
    assert len(calls) >= 16
    for method in calls:  # whatever kind of call it is: the refusal comes before any message is looked at
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await guarded.channel.unary_unary(method)(b"", metadata=metadata, timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, method
        assert read_status(caught.value).reason == "UNAUTHENTICATED"
    reply = await health_pb2_grpc.HealthStub(guarded.channel).Check(health_pb2.HealthCheckRequest(), metadata=metadata)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@on_the_shared_loop
async def test_every_grpc_call_is_open_with_a_key(guarded: Service) -> None:
    for method in every_call():
        call = guarded.channel.unary_unary(method)(b"", metadata=(("authorization", f"Bearer {KEY}"),), timeout=10)
        assert await call.code() != grpc.StatusCode.UNAUTHENTICATED, method


def every_route(service: Service) -> list[tuple[str, str]]:
    app = create_app(service.gateway)
    documented = [(method, path) for path, methods in app.openapi()["paths"].items() for method in methods]
    declared = {route.path for route in _routes(app.routes) if isinstance(route, APIRoute)}
    assert declared <= {path for _, path in documented}, "a route is missing from the document"
    return [
        *documented,
        ("get", "/openapi.json"),
        ("get", "/docs"),
        ("get", "/v1/nothing"),
        ("post", "/"),
        ("get", "//"),
    ]


def _routes(routes: list[Any]) -> list[Any]:
    """Every route, those of included routers too."""
    found = []
    for route in routes:
        inner = getattr(route, "routes", None)
        found += _routes(inner) if inner else [route]
    return found


@pytest.mark.parametrize("shown", [{}, {"authorization": "Bearer wrong"}], ids=["without key", "wrong key"])
@on_the_shared_loop
async def test_every_route_but_the_probes_is_denied(guarded: Service, shown: dict[str, str]) -> None:
    routes = every_route(guarded)
    assert len(routes) >= 20
    for method, path in routes:
        reply = await guarded.rest.request(method, path, headers=shown)
        if path in PUBLIC_PATHS:
            assert reply.status_code == 200, path
        else:
            assert reply.status_code == 401, path
            assert reply.json()["code"] == "UNAUTHENTICATED"
            assert reply.headers["www-authenticate"] == "Bearer"


@on_the_shared_loop
async def test_every_route_is_open_with_a_key(guarded: Service) -> None:
    for method, path in every_route(guarded):
        reply = await guarded.rest.request(method, path, headers={"x-api-key": KEY})
        assert reply.status_code != 401, path


def test_what_is_public_is_a_short_list() -> None:
    assert {"grpc.health.v1.Health"} == PUBLIC_SERVICES
    assert {"/livez", "/readyz"} == PUBLIC_PATHS


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a server's and a client's certificate signed by it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            "x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-extfile", "names", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder


def tls_settings(folder: Path, asks_clients: bool) -> Settings:
    flags = {"tls_cert": folder / "server.pem", "tls_key": folder / "server.key", "grpc_port": 0, "http_port": 0}
    return load(flags={**flags, "shutdown_grace_s": 1.0, "tls_client_ca": folder / "ca.pem" if asks_clients else None})


async def asked_over_tls(application: Application, folder: Path, asks_clients: bool, shows: bool) -> tuple[bool, bool]:
    """Whether gRPC and REST answered a client that trusts the authority and, if `shows`, has a certificate of it."""
    settings = tls_settings(folder, asks_clients)
    authority = (folder / "ca.pem").read_bytes()
    pair = [(folder / "client.key").read_bytes(), (folder / "client.pem").read_bytes()] if shows else [None, None]
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if shows:
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
    with closing(bind(settings.host, 0, "http_port")) as rest_socket:
        async with (
            listening(create_gateway(application, settings), settings, rest_socket) as addresses,
            grpc.aio.secure_channel(addresses.grpc, grpc.ssl_channel_credentials(authority, *pair)) as channel,
            httpx.AsyncClient(base_url=addresses.rest, verify=context, trust_env=False) as rest,
        ):
            assert addresses.rest.startswith("https://")
            try:
                await models_pb2_grpc.ModelsStub(channel).List(models_pb2.ModelsListRequest(), timeout=20)  # type: ignore[misc]
                by_grpc = True
            except grpc.aio.AioRpcError:
                by_grpc = False
            try:
                by_rest = (await rest.get("/v1/models")).status_code == 200
            except httpx.TransportError:
                by_rest = False
            return by_grpc, by_rest


@on_the_shared_loop
async def test_tls_serves_those_who_trust_it(application: Application, certificates: Path) -> None:
    assert await asked_over_tls(application, certificates, asks_clients=False, shows=False) == (True, True)


@on_the_shared_loop
async def test_mutual_tls_serves_only_those_with_a_certificate(application: Application, certificates: Path) -> None:
    assert await asked_over_tls(application, certificates, asks_clients=True, shows=True) == (True, True)
    assert await asked_over_tls(application, certificates, asks_clients=True, shows=False) == (False, False)


@on_the_shared_loop
async def test_tls_files_that_cannot_be_used_are_refused_by_name(application: Application, tmp_path: Path) -> None:
    (tmp_path / "server.pem").write_text("nonsense")
    (tmp_path / "server.key").write_text("nonsense")
    absent = tmp_path / "absent"
    for folder, said in (
        (tmp_path, "TLS files cannot be used"),
        (absent, f"TLS file {absent}/server.key cannot be read"),
    ):
        settings = tls_settings(folder, asks_clients=False)
        with (
            closing(bind(settings.host, 0, "http_port")) as rest_socket,
            pytest.raises(SettingsError, match=said),
        ):
            async with listening(create_gateway(application, settings), settings, rest_socket):
                raise AssertionError("it opened")


@on_the_shared_loop
async def test_a_plain_caller_learns_nothing_it_could_not_guess(guarded: Service) -> None:
    by_grpc = guarded.models.List(models_pb2.ModelsListRequest(), metadata=(("authorization", "Bearer wrong"),))
    by_rest = guarded.rest.get("/v1/models", headers={"authorization": "Bearer wrong"})
    for refused in (await grpc_refusal(by_grpc), await rest_refusal(by_rest)):
        assert "wrong" not in refused.whole
        assert KEY not in refused.whole


# Logs


def test_no_key_and_no_picture_shows_in_the_log(compact_folder: Path, tmp_path: Path) -> None:
    """The whole service at its most talkative, called with good keys and bad ones."""
    picture = base64.b64encode(np.random.default_rng(0).integers(0, 256, 32 * 32 * 3, np.uint8).tobytes()).decode()
    keys = tmp_path / "keys"
    keys.write_text("key-in-a-file\n")
    given = {"models": str(compact_folder), "devices": "cpu", "grpc_port": "0", "http_port": "0", "log_format": "json"}
    given |= {"api_keys": KEY, "api_keys_file": str(keys), "log_level": "debug", "engine_threads": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")}
    variables = {**kept, **{f"PRESAGE_{name.upper()}": value for name, value in given.items()}}
    command = [sys.executable, "-m", "server"]
    with subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            log = []
            for line in process.stderr:
                log.append(line)
                if json.loads(line)["event"] == "ready":
                    break
            told = json.loads(log[-1])
            with httpx.Client(base_url=told["rest"], timeout=60, trust_env=False) as rest:
                body = {"image": {"raw": {"height": 32, "width": 32, "format": "rgb8", "data": picture}}}
                for shown, status in (
                    ({"authorization": f"Bearer {KEY}"}, 201),
                    ({"x-api-key": "key-in-a-file"}, 201),
                    ({"x-api-key": "not-a-key-at-all"}, 401),
                ):
                    assert rest.post("/v1/goals", json=body, headers=shown).status_code == status
                headers = {"x-api-key": KEY, "x-request-id": f"Bearer {KEY}"}
                assert rest.post("/v1/goals", content=b"{" + KEY.encode(), headers=headers).status_code == 400
                shown_metrics = rest.get("/metrics", headers={"x-api-key": KEY}).text
        finally:
            process.terminate()
        log += process.stderr.readlines()
        assert process.wait(60) == 0
    whole = "".join(log)
    assert sum(json.loads(line)["event"] == "call" for line in log) >= 5
    for secret in (KEY, "key-in-a-file", "not-a-key-at-all", picture[:200]):
        assert secret not in whole
        assert secret not in shown_metrics
