"""What goes wrong where Presage is deployed is told in one line, with the exit code that a supervisor can act on."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.private_service import private_service
from model.package import PackageError
from server.engine.messages import EngineSettings
from server.observability import ntp
from server.worker.process import load_all
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


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--model", "/models/lab"), "no model package '/models/lab': neither built in"),
        pytest.param(
            ("--device", "cuda"),
            "device cuda cannot be used here: ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here"),
        ),
    ],
)
def test_a_service_that_lacks_what_it_was_told_to_use_ends_with_one_line(flags: tuple[str, ...], told: str) -> None:
    code, said = serve(*flags)
    assert code == FAILED
    assert told in said


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
@pytest.mark.parametrize("closed", [".", "weights.safetensors"])
def test_every_part_of_a_package_that_may_not_be_read_is_named(closed: str, tmp_path: Path) -> None:
    package = tiny_compact(tmp_path / "models" / "lab")
    locked = package.parent if closed == "." else package / closed
    locked.chmod(0)
    read = (
        "import sys; from pathlib import Path; from tests.deploy.test_bad_input import load\n"
        "try: load(Path(sys.argv[1]))\n"
        "except OSError as error: print(error.filename, error.strerror)"
    )
    prefix = HELD_TO_PERMISSIONS if os.getuid() == 0 else ()
    done = subprocess.run([*prefix, sys.executable, "-c", read, package], capture_output=True, text=True, check=False)
    locked.chmod(0o700)
    named = package if closed == "." else locked
    assert done.stdout == f"{named} Permission denied\n", done.stderr


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
    assert said.endswith(" absent cannot be read: No such file or directory")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_a_secret_that_may_not_be_read_is_bad_settings(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key")
    keys.chmod(0)
    code, said = serve("--api-keys-file", str(keys), prefix=HELD_TO_PERMISSIONS if os.getuid() == 0 else ())
    assert code == BAD_SETTINGS
    assert f"api_keys_file {keys} cannot be read: Permission denied" in said


def test_a_second_instance_on_the_same_ports_leaves_the_first_alone(tmp_path: Path) -> None:
    with private_service(str(tiny_compact(tmp_path)), device="cpu", threads=1) as first:
        for gateway, port in (("grpc_port", first.grpc), ("http_port", first.rest)):
            number = port.rsplit(":", 1)[1]
            other = {"grpc_port": "--http-port", "http_port": "--grpc-port"}[gateway]
            code, said = serve(f"--{gateway.replace('_', '-')}", number, other, "0")
            assert code == FAILED
            assert said == f"presage: {gateway} {number} on 127.0.0.1 cannot be listened on: Address already in use"
        for where in (first.grpc, first.rest.removeprefix("http://")):
            host, number = where.rsplit(":", 1)
            socket.create_connection((host, int(number)), timeout=10).close()


@pytest.mark.parametrize(
    ("now_s", "synchronized", "said"),
    [
        (1_800_000_000.0, True, None),
        (1_800_000_000.0, None, None),  # a system that cannot be asked
        (1_800_000_000.0, False, "nothing synchronizes it.*NTP"),
        (3600.0, None, "1970-01-01.*NTP.*Certificates"),
    ],
)
def test_a_clock_that_cannot_be_trusted_is_told(now_s: float, synchronized: bool | None, said: str | None) -> None:
    fault = ntp.fault(now_s, synchronized)
    assert fault is None if said is None else re.search(said, fault or "")


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not asked")
def test_the_kernel_says_whether_the_clock_is_kept() -> None:
    state = ctypes.CDLL(None).ntp_gettime(ctypes.create_string_buffer(1024))  # another call that tells it
    assert ntp.is_synchronized() == (state != 5)


def test_a_service_starts_and_stops_well_on_a_clock_that_was_never_set(tmp_path: Path) -> None:
    model = tiny_compact(tmp_path)
    in_1970 = "import sys, time; time.time = lambda: 3600.0; from cli.main import main; sys.exit(main())"
    flags = ("--model", str(model), "--device", "cpu", "--threads", "1", "--grpc-port", "0", "--http-port", "0")
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", in_1970, "serve", *flags, "--json", "--log-level", "warning"],
            env={name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        process.terminate()
        process.communicate(timeout=60)
        log.seek(0)
        (said,) = log.read().splitlines()
    assert ready["models"] == [str(model)]
    assert process.returncode == 0
    assert "1970-01-01" in said
