"""A process that reads what strangers sent: without this program's environment, bounded in memory, ended at will.

It is a fresh interpreter that imports one module and nothing of the program that started it. Messages are JSON with
pieces of bytes beside it, so that nothing it says after it parsed a stranger's bytes is unpickled. POSIX only.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from model.processes.fence import fence

Job = Callable[[dict[str, Any], list[bytes]], "tuple[dict[str, Any], Sequence[bytes | memoryview]]"]
"""What a process does: something said and pieces of bytes, in and out."""

NICE = 5  # the program that asks runs first
_MOST_PIECES = 4096
_MOST_BYTES = 256 * 2**20  # of one piece
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "import model.processes.isolated as i; i.serve(sys.argv[2:])"
)
_KEPT = ("LANG", "LC_ALL", "PATH", "TMPDIR", "OMP_NUM_THREADS")  # of the environment


class ProcessEnded(Exception):
    """The process died, or was ended, before it answered."""


class IsolatedProcess:
    """One process; used by one thread at a time, ended from any."""

    def __init__(self, module: str, memory_bytes: int) -> None:
        """`module` has a dictionary `JOBS` by name. `memory_bytes`: address space beyond what it has when idle."""
        here, there = Pipe()
        search_path = json.dumps([str(folder) for folder in sys.path])
        arguments = [search_path, str(there.fileno()), str(memory_bytes), module]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, *arguments],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT if name in os.environ},
            )
        finally:
            there.close()
        self._connection = here
        self._started = False
        self.unfenced = ""  # why it has no fence (`model.processes.fence`), once it has answered; empty: it has one
        self.in_step = True  # False while an answer is outstanding: such a process cannot be asked again

    @property
    def usable(self) -> bool:
        return self.in_step and self.process.poll() is None

    def ask(
        self, job: str, about: Mapping[str, Any], pieces: Sequence[bytes | bytearray], deadline: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        """What the job answers. Raises TimeoutError at the deadline (of time.monotonic()), or ProcessEnded."""
        self.in_step = False
        try:
            if not self._started:
                self.unfenced = str(self._receive(deadline)[0].get("unfenced", ""))
                self._started = True
            _send(self._connection, {"job": job, "about": dict(about)}, pieces)
            answer = self._receive(deadline)
            self.in_step = True
            return answer
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise ProcessEnded(type(error).__name__) from error

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()

    def dispose(self) -> None:
        self.process.kill()
        self.process.wait()
        self._connection.close()

    def _receive(self, deadline: float) -> tuple[dict[str, Any], list[bytes]]:
        if not self._connection.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        said = json.loads(self._connection.recv_bytes(_MOST_BYTES))
        if not isinstance(said, dict) or not 0 <= int(said["pieces"]) <= _MOST_PIECES:
            raise ValueError("an answer that makes no sense")
        return said["about"], [self._connection.recv_bytes(_MOST_BYTES) for _ in range(said["pieces"])]


def _send(connection: Connection, about: dict[str, Any], pieces: Sequence[bytes | bytearray | memoryview]) -> None:
    connection.send_bytes(json.dumps({**about, "pieces": len(pieces)}).encode())
    for piece in pieces:
        connection.send_bytes(piece)


def serve(arguments: list[str]) -> None:
    """The process's whole life, until its owner closes the connection or dies.

    arguments: number of the connection, memory_bytes, module.
    """
    import importlib

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the owner decides what ends
    connection: Connection = Connection(int(arguments[0]))
    jobs: dict[str, Job] = importlib.import_module(arguments[2]).JOBS
    limit_memory(int(arguments[1]))
    os.nice(NICE)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write to stderr whatever they find
    _send(connection, {"about": {"unfenced": fence()}}, [])
    while True:
        try:
            asked = json.loads(connection.recv_bytes())
            pieces = [connection.recv_bytes() for _ in range(asked["pieces"])]
            about, answered = jobs[asked["job"]](asked["about"], pieces)
            _send(connection, {"about": about}, answered)
        except (EOFError, OSError):
            return
        del pieces, answered


def limit_memory(memory_bytes: int) -> None:
    """Let this process have so many bytes of address space beyond what it has (Linux), and write no core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory_bytes
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
