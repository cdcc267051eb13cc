"""A warning that comes with every plan while its reason lasts, logged now and then."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import structlog

_log = structlog.get_logger()


@dataclass(eq=False)
class SparseLog:
    """Logs a warning at once, then at most every `every_s` seconds; `times` in the line counts those since the last."""

    event: str
    clock: Callable[[], float]
    every_s: float = 10.0
    _times: int = 0
    _next: float = -math.inf

    def warn(self, **fields: object) -> None:
        self._times += 1
        if self.clock() >= self._next:
            _log.warning(self.event, times=self._times, **fields)
            self._times, self._next = 0, self.clock() + self.every_s
