"""Numbers the observations of a session, for its single plans and its control loop together."""

from __future__ import annotations

import threading

from presage.errors import invalid


class SequenceCounter:
    """The highest observation sequence of a session. Safe to share between threads."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._lock = threading.Lock()

    def claim(self, wanted: int = 0) -> int:
        """`wanted`, which must be new, or the next number for 0. Raises InvalidRequest for one that was passed."""
        with self._lock:
            if 0 < wanted <= self._last:
                rule = f"must be above {self._last}, the last one"
                raise invalid("observation.sequence", rule, wanted, "STALE_OBSERVATION")
            self._last = wanted or self._last + 1
            return self._last

    def saw(self, sequence: int) -> None:
        """The server used this number."""
        with self._lock:
            self._last = max(self._last, sequence)
