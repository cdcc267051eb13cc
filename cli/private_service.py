"""A private service on loopback for the duration of a command: a child process, ended by its process id."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from cli.exit_codes import CommandError

STOP_S = 15.0  # after SIGTERM a service may finish what it is doing; then it is killed


@dataclass(frozen=True)
class PrivateService:
    """Where it listens."""

    grpc: str  # host:port
    rest: str  # http://host:port


@contextmanager
def private_service(
    model: str, *, device: str = "auto", threads: int = 0, startup_timeout_s: float = 180.0
) -> Iterator[PrivateService]:
    """Start `presage serve` on free ports, wait until it is ready, and end it on the way out, whatever happened.

    PRESAGE_* variables are not passed on: they are about somebody else's service. Raises CommandError with the
    service's own words if it does not start.
    """
    flags = ["--json", "--model", model, "--device", device, "--threads", str(threads)]
    flags += ["--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")}
    with tempfile.TemporaryFile("w+") as log:
        # -I: the folder this runs in must not lend its modules. A session of its own: Ctrl-C is for this process alone.
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "cli", "serve", *flags, "--log-format", "json", "--log-level", "warning"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            announced = _announcement(process, startup_timeout_s)
            if announced is None:
                raise CommandError(f"the service did not start: {_last_words(log)}")
            yield PrivateService(announced["grpc"], announced["rest"])
        finally:
            _end(process)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves through the `finally` blocks, as Ctrl-C does. Only in the main thread."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _announcement(process: subprocess.Popen[str], timeout_s: float) -> dict[str, str] | None:
    """The line a service prints once it is ready; None if it ended first. CommandError if it takes too long."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            continue
        return json.loads(line) if line.strip() else None
    raise CommandError(f"the service was not ready after {timeout_s:g} s")


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _last_words(log: IO[str]) -> str:
    """The last line a process wrote to its log, out of its JSON where it is some."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    if not lines:
        return "it said nothing"
    try:
        entry = json.loads(lines[-1])
        return str(entry.get("why") or entry.get("event") or lines[-1])
    except (ValueError, AttributeError):
        return lines[-1].removeprefix("presage: ")
