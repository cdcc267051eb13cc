"""What goes wrong where Presage is deployed is told in one line, with the exit code that a supervisor can act on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.private_service import private_service
from model.package import PackageError
from server.__main__ import clock_fault
from server.engine_process import load_all
from server.jobs import EngineSettings
from tests.server.conftest import tiny_compact

FAILED, BAD_SETTINGS = 1, 2
# Root reads everything; without this capability it is held to permissions like everyone else.
HELD_TO_PERMISSIONS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")


def serve(*flags: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit code of `presage serve` and the one line it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")}
    ports = () if "--grpc-port" in flags else ("--grpc-port", "0", "--http-port", "0")
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "cli", "serve", "--threads", "1", *ports, *flags, "--log-level", "error"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if line.startswith("presage: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, said[0]


def load(package: Path, device: str = "cpu") -> None:
    """As an engine process does at its start."""
    settings = EngineSettings(
        models=(str(package),),
        device=device,
        threads=0,
        precision="auto",
        graphs="auto",
        max_batch=1,
        max_iteration_steps=1024,
        loader=None,
    )
    load_all(settings)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_a_package_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    config = tiny_compact(tmp_path) / "config.json"
    config.chmod(0)
    prefix = HELD_TO_PERMISSIONS if os.getuid() == 0 else ()
    code, said = serve("--model", str(tmp_path), prefix=prefix)
    assert code == FAILED
    assert f"{config} cannot be read: Permission denied" in said


def test_a_volume_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"no model package '.*/lab': neither built in \(arm.*\) nor a folder"):
        load(tmp_path / "lab")
    (tmp_path / "lab").mkdir()
    with pytest.raises(PackageError, match=r"lab is not a model package: it has no config.json"):
        load(tmp_path / "lab")


def test_weights_that_were_copied_in_part_are_named(tmp_path: Path) -> None:
    weights = tiny_compact(tmp_path) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PackageError, match=r"weights.safetensors is not a whole safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")),
        "cuda:63",
        "toaster",
    ],
)
def test_a_device_that_cannot_be_used_is_told_in_one_line(device: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"device {device} cannot be used here: .*auto takes the best") as raised:
        load(tiny_compact(tmp_path), device)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("flags", [("--api-keys-file", "absent"), ("--tls-cert", "absent", "--tls-key", "absent")])
def test_a_secret_that_is_not_mounted_is_bad_settings(flags: tuple[str, ...]) -> None:
    code, said = serve(*flags)
    assert code == BAD_SETTINGS
    assert "absent" in said or "TLS files" in said


def test_a_second_instance_on_the_same_ports_leaves_the_first_alone(tmp_path: Path) -> None:
    with private_service(str(tiny_compact(tmp_path)), device="cpu", threads=1) as first:
        for door, port in (("grpc_port", first.grpc), ("http_port", first.rest)):
            number = port.rsplit(":", 1)[1]
            other = {"grpc_port": "--http-port", "http_port": "--grpc-port"}[door]
            code, said = serve(f"--{door.replace('_', '-')}", number, other, "0")
            assert code == FAILED
            assert said == f"presage: {door} {number} on 127.0.0.1 cannot be listened on: Address already in use"
        for where in (first.grpc, first.rest.removeprefix("http://")):
            host, number = where.rsplit(":", 1)
            socket.create_connection((host, int(number)), timeout=10).close()


def test_a_clock_that_was_never_set_is_told_and_a_set_one_is_not() -> None:
    assert clock_fault(1_800_000_000.0) is None
    said = clock_fault(3600.0)
    assert said is not None
    assert "1970-01-01" in said
    assert "NTP" in said
