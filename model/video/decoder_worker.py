"""Clips decoded in processes of their own: a file that crashes, hangs or bloats a decoder costs one request.

`ClipDecoder` is what a service holds. Each worker is a fresh interpreter that imports this module and nothing of the
program that started it (never torch: it is ready in a fraction of a second). Requests and answers are JSON, so
nothing a worker says after it parsed a stranger's file is unpickled; frames come through a window of shared memory
that has no name and therefore cannot be left behind. Not here: decoding itself (`model/video/decode.py`). POSIX only.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy as np

from model.processes.fence import fence
from model.video.decode import Clip, ClipDescription, ClipLimits, FrameSampling, VideoDecodeError, decode, find_decord
from model.video.probe import Reason

DecodeFunction = Callable[[Path, FrameSampling, "tuple[int, int] | None", ClipLimits], Clip]

_WINDOW_BYTES = 8 * 2**20
_MAX_MESSAGE_BYTES = 64 * 2**20  # an answer is a few hundred bytes and a number for each frame
_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "import model.video.decoder_worker as w; w.serve(sys.argv[2:])"
)


class ClipDecoder:
    """Decodes clips in `workers` processes; `decode` may be called from many threads at once.

    memory_bytes: address space a worker may use beyond what it has when idle (Linux only).
    decode_function: what the workers run, a function at the top level of a module.
    """

    def __init__(
        self, *, workers: int = 1, memory_bytes: int = 4 * 2**30, decode_function: DecodeFunction = decode
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if memory_bytes < 2**28:
            raise ValueError(f"memory_bytes must be at least {2**28}, got {memory_bytes}")
        if decode_function.__module__ == "__main__" or not decode_function.__qualname__.isidentifier():
            name = f"{decode_function.__module__}.{decode_function.__qualname__}"
            raise ValueError(f"decode_function must stand at the top level of an importable module, got {name}")
        self._memory_bytes = memory_bytes
        self._function = f"{decode_function.__module__}:{decode_function.__name__}"
        self.unfenced = ""  # why the workers have no fence (`model.processes.fence`); empty: they have, or none ran
        self._changed = threading.Condition()  # guards what follows
        self._closed = False
        self._workers = {_Worker(self._function, memory_bytes) for _ in range(workers)}
        self._idle = list(self._workers)

    def decode(
        self,
        path: Path,
        sampling: FrameSampling | None = None,
        size: tuple[int, int] | None = None,
        limits: ClipLimits | None = None,
        timeout_s: float = 60.0,
    ) -> Clip:
        """As `model.video.decode.decode`, elsewhere. `timeout_s` covers waiting for a free worker and decoding.

        Raises what `model.video.decode.decode` does; VideoDecodeError("timeout") when the time is over and
        VideoDecodeError("decoder_crashed") when the worker died, after both of which a fresh worker takes its place;
        RuntimeError once the decoder is closed.
        """
        path.stat()  # a missing file is the caller's mistake, not the clip's
        if size is not None and min(size) < 1:
            raise ValueError(f"size must be (height, width) of at least 1 pixel each, got {size}")
        deadline = time.monotonic() + timeout_s
        worker = self._take(deadline, timeout_s)
        try:
            clip = worker.decode(path, sampling or FrameSampling(), size, limits or ClipLimits(), deadline, timeout_s)
            self.unfenced = worker.unfenced
            return clip
        except VideoDecodeError as error:
            if self._closed:
                raise RuntimeError("the ClipDecoder was closed while it decoded") from error
            raise
        finally:
            self._give_back(worker)

    def close(self) -> None:
        """Ends all workers, busy ones too. Closing twice is allowed."""
        with self._changed:
            self._closed = True
            workers, idle = list(self._workers), list(self._idle)
            self._idle.clear()
            self._changed.notify_all()
        for worker in workers:
            worker.kill()
        for worker in idle:
            worker.dispose()  # a busy worker's thread disposes of it

    def __enter__(self) -> ClipDecoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _take(self, deadline: float, timeout_s: float) -> _Worker:
        with self._changed:
            free = self._changed.wait_for(lambda: self._closed or self._idle, deadline - time.monotonic())
            if self._closed:
                raise RuntimeError("the ClipDecoder is closed")
            if not free:
                raise VideoDecodeError("timeout", f"no decoder became free within {timeout_s:g} s")
            return self._revived(self._idle.pop())

    def _give_back(self, worker: _Worker) -> None:
        with self._changed:
            if self._closed:
                worker.dispose()
                return
            self._idle.append(self._revived(worker))
            self._changed.notify()

    def _revived(self, worker: _Worker) -> _Worker:
        """This worker if it can be asked, else a fresh one in its place."""
        if worker.in_step and worker.process.poll() is None:
            return worker
        worker.kill()
        try:
            fresh = _Worker(self._function, self._memory_bytes)
        except OSError:
            return worker  # the machine has no process to spare: tried again when this one is next taken
        self._workers.remove(worker)
        worker.dispose()
        self._workers.add(fresh)
        return fresh


class _Worker:
    """One process, the pipe to it and the window its frames come through. Used by one thread at a time."""

    def __init__(self, function: str, memory_bytes: int) -> None:
        here, there = Pipe()
        shared = _anonymous_memory(_WINDOW_BYTES)
        search_path = json.dumps([str(folder) for folder in sys.path])
        arguments = [search_path, str(there.fileno()), str(shared), str(memory_bytes), function]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, *arguments],
                pass_fds=(there.fileno(), shared),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
            self.window = mmap.mmap(shared, _WINDOW_BYTES)
        finally:
            os.close(shared)
            there.close()
        self.connection = here
        self.started, self.unfenced = False, ""
        self.in_step = True  # False while an answer is outstanding: such a worker cannot be asked again

    def decode(
        self,
        path: Path,
        sampling: FrameSampling,
        size: tuple[int, int] | None,
        limits: ClipLimits,
        deadline: float,
        timeout_s: float,
    ) -> Clip:
        asked = {"path": str(path.absolute()), "sampling": asdict(sampling), "size": size, "limits": asdict(limits)}
        request = json.dumps(asked).encode()
        self.in_step = False
        try:
            if not self.started:
                self.unfenced = str(self._receive(deadline).get("unfenced", ""))
                self.started = True
            self.connection.send_bytes(request)
            answer = self._receive(deadline)
            clip = self._fetch(answer, limits, deadline) if "error" not in answer else None
        except TimeoutError as error:
            message = f"the clip was not decoded within {timeout_s:g} s"
            raise VideoDecodeError("timeout", message) from error
        except (OSError, EOFError) as error:
            raise VideoDecodeError("decoder_crashed", self._how_it_died()) from error
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise VideoDecodeError("decoder_crashed", "the decoder gave an answer that makes no sense") from error
        self.in_step = True
        if clip is not None:
            return clip
        reason: Reason = next((known for known in get_args(Reason) if known == answer["error"]), "decoder_crashed")
        raise VideoDecodeError(reason, str(answer.get("message")))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def dispose(self) -> None:
        self.kill()
        self.connection.close()
        self.window.close()

    def _receive(self, deadline: float) -> dict[str, Any]:
        if not self.connection.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        answer = json.loads(self.connection.recv_bytes(_MAX_MESSAGE_BYTES))
        if not isinstance(answer, dict):
            raise ValueError(f"an answer must be an object, got {type(answer).__name__}")
        return answer

    def _fetch(self, answer: dict[str, Any], limits: ClipLimits, deadline: float) -> Clip:
        count, height, width = (int(answer["shape"][axis]) for axis in range(3))
        total = count * height * width * 3
        times = np.array(answer["timestamps_s"], np.float64)
        if min(count, height, width) < 1 or total > limits.max_output_bytes or times.shape != (count,):
            raise ValueError(f"shape {answer['shape']} does not fit")
        flat = np.empty(total, np.uint8)
        for start in range(0, total, _WINDOW_BYTES):
            self.connection.send_bytes(b"{}")
            self._receive(deadline)
            part = flat[start : start + _WINDOW_BYTES]
            part[:] = np.frombuffer(self.window, np.uint8, count=len(part))
        description = ClipDescription(**answer["description"])
        if not isinstance(description.stream, int) or not 0 <= description.stream < 2**32:
            raise ValueError(f"stream {description.stream} is none")
        return Clip(flat.reshape(count, height, width, 3), times, description, str(answer["reader"]))

    def _how_it_died(self) -> str:
        try:
            code = self.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "the decoder process closed its connection"
        if not self.started:
            return f"the decoder process could not start (exit code {code})"
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        return f"the decoder crashed on this clip ({how})"


def serve(arguments: list[str]) -> None:
    """The worker's whole life, until its owner closes the connection or dies.

    arguments: number of the connection, number of the shared memory, memory_bytes, "module:function".
    """
    connection_number, shared, memory_bytes = (int(argument) for argument in arguments[:3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the owner decides what ends
    connection: Connection = Connection(connection_number)
    window = np.frombuffer(mmap.mmap(shared, _WINDOW_BYTES), np.uint8)
    module, _, name = arguments[3].partition(":")
    function: DecodeFunction = getattr(importlib.import_module(module), name)
    find_decord()  # its import takes longer than a small clip
    _limit_resources(memory_bytes)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # decoders write to stderr whatever they find in a file
    connection.send_bytes(json.dumps({"unfenced": fence()}).encode())
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            _answer(connection, window, function, request)
        except (EOFError, OSError):
            return


def _answer(
    connection: Connection, window: np.ndarray[Any, np.dtype[np.uint8]], function: DecodeFunction, request: Any
) -> None:
    size = request["size"]
    flat = window[:0]
    try:
        clip = function(
            Path(request["path"]),
            FrameSampling(**request["sampling"]),
            (size[0], size[1]) if size else None,
            ClipLimits(**request["limits"]),
        )
        flat = np.ascontiguousarray(clip.frames).reshape(-1)
        answer: dict[str, Any] = {
            "shape": clip.frames.shape,
            "timestamps_s": clip.timestamps_s.tolist(),
            "description": asdict(clip.description),
            "reader": clip.reader,
        }
    except VideoDecodeError as error:
        answer = {"error": error.reason, "message": str(error)}
    except MemoryError:
        answer = {"error": "too_large", "message": "decoding the clip needs more memory than a decoder is given"}
    except Exception as error:  # whatever it is, the owner is told and this process goes on
        answer = {"error": "decoder_crashed", "message": f"the decoder failed: {type(error).__name__}: {error}"}
    connection.send_bytes(json.dumps(answer).encode())
    for start in range(0, len(flat), len(window)):
        connection.recv_bytes()
        part = flat[start : start + len(window)]
        window[: len(part)] = part
        connection.send_bytes(b"{}")


def _limit_resources(memory_bytes: int) -> None:
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _environment() -> dict[str, str]:
    """Of a worker: nothing of its owner's but where libraries are found. Secrets are kept in environments."""
    found = os.environ.get("LD_LIBRARY_PATH")
    return {"LC_ALL": "C.UTF-8", "PATH": os.defpath} | ({"LD_LIBRARY_PATH": found} if found else {})


def _anonymous_memory(size: int) -> int:
    """The number of an open file in memory that has no name. The caller closes it."""
    if sys.platform == "linux":
        number = os.memfd_create("presage-clip", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(number, size)
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # a worker that shrank it would kill its owner
        return number
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), size)
        return os.dup(file.fileno())
