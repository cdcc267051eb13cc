"""Deadlines and retries of one call. Sleeping and sending are the clients'.

Only what changes nothing twice is repeated, only where the server said that it did not do it (UNAVAILABLE, or
RESOURCE_EXHAUSTED with a time to come back), and never past the deadline. A missed deadline is final.
"""

from __future__ import annotations

import random
import time
from typing import Callable

from presage.errors import DeadlineExceeded, Overloaded, PresageError, Unavailable
from presage.protocol import arguments
from presage.values import Health

ATTEMPTS = 4
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0


class Attempts:
    """One call's time and tries. `timeout_s` covers all of them; `random_unit` gives numbers in [0, 1)."""

    def __init__(
        self,
        timeout_s: float,
        repeatable: bool,
        clock: Callable[[], float] = time.monotonic,
        random_unit: Callable[[], float] = random.random,
    ) -> None:
        self._deadline = clock() + arguments.positive("timeout_s", timeout_s)
        self._repeatable, self._clock, self._random_unit = repeatable, clock, random_unit
        self._failed = 0

    def remaining_s(self) -> float:
        """What the next try may take. Raises DeadlineExceeded when there is nothing left."""
        left = self._deadline - self._clock()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed between two tries", reason="DEADLINE")
        return left

    def pause_s(self, error: PresageError) -> float | None:
        """How long to wait before the next try after `error`; None if it is final."""
        self._failed += 1
        asked = error.retry_after_s
        welcome = isinstance(error, Unavailable) or (isinstance(error, Overloaded) and asked is not None)
        if not (self._repeatable and welcome and self._failed < ATTEMPTS):
            return None
        # Full jitter on top of the server's wish: robots that were refused together do not come back together.
        spread = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failed) * self._random_unit()
        pause = (asked or 0.0) + spread
        return pause if pause < self._deadline - self._clock() else None


class Readiness:
    """A wait for a server that may still be starting: asks again after a pause that grows to half a second."""

    def __init__(self, address: str, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._address, self._timeout_s, self._clock = address, arguments.number("timeout_s", timeout_s), clock
        self._deadline = clock() + self._timeout_s
        self._pause = FIRST_PAUSE_S

    def ask_within_s(self, longest_s: float) -> float:
        """How long the next question may take."""
        return max(FIRST_PAUSE_S, min(longest_s, self._deadline - self._clock()))

    def pause_s(self, answer: Health | PresageError) -> float | None:
        """How long to wait after `answer`; None once the server is ready. Raises Unavailable when the time is up,
        and `answer` itself where waiting does not help."""
        if isinstance(answer, Health):
            if answer.ready:
                return None
            seen = f"it says {answer.status}"
        elif isinstance(answer, (Unavailable, DeadlineExceeded, Overloaded)):
            seen = answer.message
        else:
            raise answer
        self._pause = min(0.5, 2 * self._pause)
        if self._clock() + self._pause >= self._deadline:
            message = f"{self._address} was not ready within {self._timeout_s:g} s: {seen}"
            raise Unavailable(message, reason="NOT_READY")
        return self._pause
