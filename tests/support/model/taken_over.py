"""What a decoder would try that a file has taken over: run in a worker in place of decoding."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from model.video.decode import Clip, ClipLimits, FrameSampling, VideoDecodeError


def attempt(path: Path, sampling: FrameSampling, size: tuple[int, int] | None, limits: ClipLimits) -> Clip:
    """Tries what it should not be able to, and answers as an error what came of each."""
    tried = {
        "internet": lambda: socket.socket(socket.AF_INET),
        "internet6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        "local": lambda: socket.socket(socket.AF_UNIX),
        "pair": socket.socketpair,
        "program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "shell": lambda: os.system("true") and _refuse(),
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "trace": lambda: _called(101 if os.uname().machine == "x86_64" else 117, 16, os.getppid(), 0, 0),
        "memory": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "file": lambda: (path.parent / "left-behind").write_bytes(b"x"),
        "thread": _thread,
    }
    found = {name: _outcome(action) for name, action in tried.items()}
    found["environment"] = sorted(os.environ)
    raise VideoDecodeError("damaged", json.dumps(found))


def _outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"


def _refuse() -> None:
    raise PermissionError(1, "the shell did not run")


def _called(number: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def _thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
