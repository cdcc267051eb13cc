"""compose.yaml is what it says: locked down, and its two containers' commands reach the goals as plain processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.built_in import built_in
from server.config import Settings
from tests.support.deploy import compose_file
from tests.support.paths import ROOT

COMPOSE = compose_file.read(ROOT / "compose.yaml")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES = ("presage-cpu", "presage-gpu")


@pytest.mark.parametrize("name", list(COMPOSE.services))
def test_every_container_is_locked_down(name: str) -> None:
    service = COMPOSE.services[name]
    assert service.read_only
    assert not service.user.startswith("0:")
    assert service.cap_drop == ["ALL"]
    assert service.security_opt == ["no-new-privileges:true"]
    assert set(service.secrets) <= set(COMPOSE.secrets)
    assert all(port.startswith("127.0.0.1:") for port in service.ports)


@pytest.mark.parametrize("name", list(COMPOSE.services))
def test_every_container_is_built_from_a_stage_that_is_there_as_the_user_it_has_there(name: str) -> None:
    service = COMPOSE.services[name]
    stages = dict(re.findall(r"^FROM (?:\S+) AS (\S+)\n((?:(?!FROM ).*\n)*)", DOCKERFILE, re.MULTILINE))
    assert service.build.target in stages
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert set(service.build.args) <= arguments
    own = re.findall(r"^USER (\d+)", stages[service.build.target], re.MULTILINE)
    inherited = re.findall(r"^USER (\d+)", stages["client"], re.MULTILINE)
    assert service.user.split(":")[0] == (own or inherited)[0]


@pytest.mark.parametrize("name", SERVICES)
def test_every_variable_is_a_setting(name: str) -> None:
    variables = {key.removeprefix("PRESAGE_").lower() for key in COMPOSE.services[name].environment}
    assert variables <= set(Settings.model_fields)
    assert {"api_keys_file", "tls_cert", "tls_key"} <= variables  # whoever calls from elsewhere is asked who it is


def test_only_the_service_of_the_gpu_profile_asks_for_a_gpu() -> None:
    asking = {name for name, service in COMPOSE.services.items() if service.deploy.resources.reservations is not None}
    assert asking == {"presage-gpu"}
    assert COMPOSE.services["presage-gpu"].profiles == ["gpu"]
    assert COMPOSE.services["presage-cpu"].profiles == ["cpu"]
    assert COMPOSE.services["robot"].profiles == ["cpu", "gpu"]
    assert set(COMPOSE.services["robot"].depends_on) == set(SERVICES)


def test_torch_is_the_one_that_everything_is_tested_with() -> None:
    (pinned,) = re.findall(r"^ARG TORCH=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"torch=={pinned}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    subprocess.run([ROOT / "deploy/compose/make-secrets", folder], check=True, timeout=60)
    assert {path.name for path in folder.iterdir()} == set(COMPOSE.secrets)
    return folder


def placed(words: list[str], secrets: Path) -> list[str]:
    """With secrets where they are on this machine."""
    return [word.replace("/run/secrets", str(secrets)) for word in words]


@pytest.fixture(scope="module")
def service(secrets: Path) -> Iterator[str]:
    """The service of the CPU profile, on loopback and a free port; the port."""
    container = COMPOSE.services["presage-cpu"]
    names = list(container.environment)
    values = placed(list(container.environment.values()), secrets)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")}
    environment |= dict(zip(names, values, strict=True))
    environment |= {"PRESAGE_MODELS": "arm", "PRESAGE_ENGINE_THREADS": "1"}
    command = [word.replace("0.0.0.0", "127.0.0.1") for word in container.command]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *command, "--grpc-port", "0", "--http-port", "0", "--json"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["grpc"].rsplit(":", 1)[1]
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here")
def test_the_health_check_speaks_tls_to_the_service(service: str, secrets: Path) -> None:
    check = COMPOSE.services["presage-cpu"].healthcheck
    assert check is not None
    assert check.test[:2] == ["CMD", "presage"]
    command = [sys.executable, "-m", "cli", *placed(check.test[2:], secrets)]
    for port, expected in ((service, 0), ("1", 1)):
        done = subprocess.run(
            command, env={**os.environ, "PRESAGE_GRPC_PORT": port}, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == expected, done.stderr


@pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here")
def test_the_robot_closes_the_loop_with_the_client_and_the_simulation_alone(
    service: str, secrets: Path, tmp_path: Path
) -> None:
    for package in ("torch", "model", "server", "planner"):
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('the robot has no {package}')\n")
    (tmp_path / "simulation").symlink_to(ROOT / "simulation")
    shutil.copy(ROOT / "deploy/robot/simulated_robot.py", tmp_path)
    command = placed(COMPOSE.services["robot"].command, secrets)
    command = [word.replace("presage:50051", f"127.0.0.1:{service}") for word in command]
    assert f"127.0.0.1:{service}" in command
    done = subprocess.run(
        [sys.executable, tmp_path / "simulated_robot.py", *command, "--episodes", "2", "--ticks", "300"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'clients/python/src'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("2 of 2 goals reached\n")
    assert done.stderr == ""


def test_a_robot_without_its_key_or_its_service_says_so_in_one_line(tmp_path: Path) -> None:
    for flags, code, said in (
        (("--api-key-file", str(tmp_path / "absent")), 2, f"robot: {tmp_path}/absent cannot be read: No such file"),
        (("--address", "127.0.0.1:1", "--wait-s", "0.5"), 1, "robot: "),
    ):
        done = subprocess.run(
            [sys.executable, ROOT / "deploy/robot/simulated_robot.py", *flags],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python/src'}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith(said)
