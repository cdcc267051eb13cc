"""Bodies and pictures that take long are read in processes of their own, which end at the caller's deadline.

What is small is read where it arrived: a hop to another process costs more than that takes. The front's side; what is
done there is `parser_jobs`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import structlog

from model.processes.isolated import IsolatedProcess, ProcessEnded
from server.config import MIB
from server.errors import Faults, Reason, ServiceError, invalid
from server.values.caller import calling
from server.values.calls import Frame

WORKERS = 2
MEMORY_BYTES = 768 * MIB  # of a process, beyond what it has when idle
MOST_WAITING = 16  # of one caller
LONGEST_S = 10.0  # for one body or the pictures of one request, whatever its deadline
_JOBS = "server.transport.parser_jobs"

_log = structlog.get_logger()
Answer = tuple[dict[str, Any], list[bytes]]


class _Slot:
    """One process, and the next in its place once it is ended. Asked by one thread at a time, ended from any."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._process: IsolatedProcess | None = None
        self.closed = False

    def start(self) -> IsolatedProcess:
        if self._process is None or not self._process.usable:
            if self._process is not None:
                self._process.dispose()
            self._process = IsolatedProcess(_JOBS, self._memory_bytes)
        return self._process

    def ask(self, job: str, about: Mapping[str, Any], pieces: Sequence[bytes | bytearray], until: float) -> Answer:
        try:
            return self.start().ask(job, about, pieces, until)
        finally:
            if not self.closed:
                self.start()  # now, so that the next caller does not wait for it

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()

    def dispose(self) -> None:
        if self._process is not None:
            self._process.dispose()


class Parsers:
    """At most `workers` processes, of which one caller keeps all but one busy at most. Belongs to one event loop."""

    def __init__(self, workers: int = WORKERS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="parsers")
        self._slots = tuple(_Slot(memory_bytes) for _ in range(workers))
        self._idle = list(self._slots)
        self._each = max(1, workers - 1)  # of one caller
        self._held: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[_Slot]]] = deque()

    async def start(self) -> None:
        """Start every process now, so that the first caller does not wait for it."""
        await asyncio.gather(*(asyncio.to_thread(slot.start) for slot in self._slots))

    async def close(self) -> None:
        """End all processes, busy ones too."""
        for slot in self._slots:
            slot.closed = True
            slot.end()
        await asyncio.to_thread(self._threads.shutdown)
        for slot in self._slots:
            await asyncio.to_thread(slot.dispose)

    async def ask(
        self, job: str, about: Mapping[str, Any], pieces: Sequence[bytes | bytearray], deadline: float | None
    ) -> Answer:
        """What a process answers. Cancelling ends the process that works for it.

        Raises Faults with what is wrong, DEADLINE at the caller's deadline, OVERLOADED, TOO_LARGE for what takes longer
        than LONGEST_S, or INVALID_REQUEST for what ended the process.
        """
        until = min(math.inf if deadline is None else deadline, time.monotonic() + LONGEST_S)
        name = calling().name
        slot = await self._turn(name, until, deadline)
        loop = asyncio.get_running_loop()
        work = self._threads.submit(slot.ask, job, about, pieces, until)
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._give_back, name, slot))
        try:
            told, answered = await asyncio.wait_for(asyncio.wrap_future(work), max(0.0, until - time.monotonic()) + 0.1)
        except (TimeoutError, asyncio.TimeoutError):
            if not work.done():  # else its process is ended, and the next one may be at work for another
                slot.end()
            raise _too_slow(until, deadline) from None
        except ProcessEnded as error:
            _log.warning("a parser ended", job=job, why=str(error))
            raise invalid("body", "must not end its parser", "what did", Reason.INVALID_REQUEST) from None
        except asyncio.CancelledError:
            if not work.done():
                slot.end()
            raise
        if "faults" in told:
            raise Faults([_fault(each) for each in told["faults"]])
        return told, answered

    async def _turn(self, name: str, until: float, deadline: float | None) -> _Slot:
        """The next idle process, for a caller who does not keep too many busy."""
        if self._idle and self._held[name] < self._each:
            self._held[name] += 1
            return self._idle.pop()
        if sum(each == name for each, _ in self._waiting) >= MOST_WAITING:
            message = f"bodies and pictures of one caller that wait must number at most {MOST_WAITING}, got one more"
            raise ServiceError(Reason.OVERLOADED, message, retry_after_s=0.5)
        turn: asyncio.Future[_Slot] = asyncio.get_running_loop().create_future()
        waiting = name, turn
        self._waiting.append(waiting)
        try:
            await asyncio.wait((turn,), timeout=max(0.0, until - time.monotonic()))
            if not turn.done():
                raise _too_slow(until, deadline)
            return turn.result()
        except asyncio.CancelledError:
            if turn.done():
                self._give_back(name, turn.result())
            raise
        finally:
            if not turn.done():
                self._waiting.remove(waiting)

    def _give_back(self, name: str, slot: _Slot) -> None:
        self._idle.append(slot)
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]
        # Whoever keeps the fewest busy is next, and of these who came first.
        able = [each for each in self._waiting if self._held[each[0]] < self._each]
        if able:
            chosen = min(able, key=lambda each: self._held[each[0]])
            self._waiting.remove(chosen)
            self._held[chosen[0]] += 1
            chosen[1].set_result(self._idle.pop())


async def pictures(
    parsers: Parsers, deadline: float | None, files: Sequence[tuple[str, bytes]], max_pixels: int
) -> list[Frame]:
    """Pixels of picture files, each with the name of its field. Raises ServiceError."""
    about = {"fields": [field for field, _ in files], "max_pixels": max_pixels}
    try:
        told, frames = await parsers.ask("pictures", about, [content for _, content in files], deadline)
    except Faults as error:
        raise error.faults[0] from None
    sizes = zip(told["sizes"], frames, strict=True)
    return [np.frombuffer(pixels, np.uint8).reshape(height, width, 3) for (height, width), pixels in sizes]


def _too_slow(until: float, deadline: float | None) -> ServiceError:
    if deadline is not None and deadline <= until:
        return ServiceError(Reason.DEADLINE, "the request could not be read by its deadline")
    return invalid("body", f"must be readable within {LONGEST_S:g} s", "more", Reason.TOO_LARGE)


def _fault(told: Mapping[str, Any]) -> ServiceError:
    texts: dict[str, Any] = {name: str(told[name]) for name in ("field", "rule", "value")}
    return ServiceError(Reason[told["reason"]], str(told["message"]), **texts)
