"""Engine heartbeat: sent periodically, withheld while the current step far exceeds its predicted duration.

The front replaces an engine whose heartbeats stop: its process is frozen, or one step of its work is far overdue. A
step of a kind not seen before may take any time.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.engine.messages import Heartbeat

OVERDUE_FACTOR = 20.0  # this many times what was predicted, and
OVERDUE_LEAST_S = 30.0  # at least this long: a busy machine is no fault of the engine

log = logging.getLogger("presage.engine")


class Watchdog:
    """What the one thread of an engine is at. Read by the thread that beats."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._overdue = math.inf

    @contextmanager
    def work(self, predicted_s: float | None) -> Iterator[None]:
        """Around one piece of work; None where nothing like it was seen."""
        if predicted_s is not None:
            self._overdue = self._clock() + max(OVERDUE_LEAST_S, OVERDUE_FACTOR * predicted_s)
        try:
            yield
        finally:
            self._overdue = math.inf

    @property
    def is_well(self) -> bool:
        """Whether the piece of work at hand, if any, may still be going on."""
        return self._clock() < self._overdue


@contextmanager
def heartbeat_thread(watchdog: Watchdog, send: Callable[[Heartbeat], None], every_s: float) -> Iterator[None]:
    """Send heartbeats periodically while work is not overdue, on a thread of its own."""
    stop = threading.Event()

    def beat() -> None:
        was_well = True
        while not stop.wait(every_s):
            if watchdog.is_well:
                try:
                    send(Heartbeat())
                except OSError:  # the front has gone
                    return
            elif was_well:
                log.error("a step is far overdue: heartbeats are withheld")
            was_well = watchdog.is_well

    thread = threading.Thread(target=beat, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
