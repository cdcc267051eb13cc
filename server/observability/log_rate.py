"""A limit on log lines: of each kind a burst, then so many a second, and a line that says how many were left out.

Whoever makes the service write a line for each request could otherwise fill its disk. Errors are limited too: their
first lines are the ones that are read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

BURST, PER_S = 50, 5.0
_KINDS = 256  # remembered; events are the code's, so there are fewer


class LineRate:
    """Whether a line of a kind may be written now, and how many of that kind were not since the last."""

    def __init__(self, burst: int = BURST, per_s: float = PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._kinds: dict[str, tuple[float, float, int]] = {}  # left, since when, lines left out
        self._lock = threading.Lock()

    def admit(self, kind: str) -> int | None:
        """Lines of this kind that were left out before this one; None where this one is left out too."""
        now = self._clock()
        with self._lock:
            if len(self._kinds) >= _KINDS and kind not in self._kinds:
                kind = "others"
            left, since, dropped = self._kinds.get(kind, (float(self._burst), now, 0))
            left = min(self._burst, left + self._per_s * (now - since))
            if left < 1:
                self._kinds[kind] = left, now, dropped + 1
                return None
            self._kinds[kind] = left - 1, now, 0
            return dropped


class LimitedLines(logging.Filter):
    """The rate for lines of libraries, as a filter of a handler; and for structured ones, as a processor."""

    def __init__(self, rate: LineRate) -> None:
        super().__init__()
        self._rate = rate

    def filter(self, record: logging.LogRecord) -> bool:
        dropped = self._rate.admit(f"{record.name}:{str(record.msg)[:40]}")
        if dropped:
            record.msg = f"{record.msg} ({dropped} lines like it were left out)"
        return dropped is not None

    def __call__(self, logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        dropped = self._rate.admit(f"{event.get('event')}:{event.get('code', method)}")
        if dropped is None:
            raise structlog.DropEvent
        if dropped:
            event["left_out"] = dropped
        return event
