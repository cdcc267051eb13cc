"""The service under attack, and what an attack is: a function of it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.service_load import end

LIMIT_BYTES = 2 * 2**30  # address space of each process of the service
ATTACKER, OTHER = "attackers-key-0123456789", "another-robots-key-0123456789"


@dataclass(frozen=True)
class Target:
    """Where the service is. `pid` is its front's; `log` what it writes; without `key`, it asks for none."""

    grpc: str  # host:port
    rest: str  # http://host:port
    pid: int
    log: Path
    key: str = ATTACKER

    @property
    def headers(self) -> dict[str, str]:
        return {"x-api-key": self.key} if self.key else {}

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.headers.items())

    def address(self, transport: str) -> tuple[str, int]:
        host, _, port = (self.grpc if transport == "grpc" else self.rest.partition("://")[2]).rpartition(":")
        return host, int(port)


Outcomes = Counter[str]
"""How often what was answered: a status with its reason, or how a connection ended."""


@dataclass(frozen=True)
class Attack:
    """One row. `run` takes the target and about how long it may go on, and tells what it was answered."""

    row: str
    name: str
    run: Callable[[Target, float], Outcomes]
    keyless: bool = False  # against a service that asks for no key
    prepare: Callable[[Path], dict[str, str]] = lambda folder: {}  # settings of its service, made in a folder for it


@contextmanager
def serving(attack: Attack, folder: Path) -> Iterator[Target]:
    """The service with the package `arm`, in processes of its own, each within LIMIT_BYTES."""
    ports = _free_ports(2)
    log = folder / "service.log"
    keys = Path(folder) / "keys"
    keys.write_text(f"{ATTACKER} name=attacker\n{OTHER} name=other\n")
    keys.chmod(0o600)
    settings = {
        "MODELS": "arm", "DEVICES": "cpu", "ENGINE_THREADS": "1", "PRECISION": "float32", "LOG_FORMAT": "json",
        "GRPC_PORT": str(ports[0]), "HTTP_PORT": str(ports[1]), **attack.prepare(folder),
        **({} if attack.keyless else {"API_KEYS_FILE": str(keys)}),
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")}
    environment = {**kept, **{f"PRESAGE_{name}": value for name, value in settings.items()}}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "server"], stdout=file, stderr=file, env=environment, preexec_fn=_limited
        )
    rest = f"http://127.0.0.1:{ports[1]}"
    try:
        _wait_ready(process, rest, log)
        yield Target(f"127.0.0.1:{ports[0]}", rest, process.pid, log, "" if attack.keyless else ATTACKER)
    finally:
        end(process)


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    least = 1024 if hard == resource.RLIM_INFINITY else min(1024, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (least, least))  # what a shell gives


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def _wait_ready(process: subprocess.Popen[bytes], rest: str, log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            raise RuntimeError(f"the service did not start: {log.read_text()[-2000:]}")
        try:
            if httpx.get(f"{rest}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the service was not ready within two minutes")


def resident_bytes(pid: int) -> int:
    """Of one process; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="presage-attack-") as name:
        yield Path(name)
