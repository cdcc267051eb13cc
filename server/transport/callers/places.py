"""Places for callers who have shown no key: a few, and the newest comer always gets one.

Refusing newcomers would let whoever came first and says nothing keep everybody out; a probe that is in earnest is
answered long before it is the oldest.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from server.errors import Reason, ServiceError


@dataclass
class _Place:
    task: asyncio.Task[object]
    party: str
    began: float
    is_taken_back: bool = False


@dataclass
class Places:
    """At most `most` at once. One more ends the oldest of the party that has most, if it has stood `patience_s`."""

    what: str
    most: int
    patience_s: float = 0.0
    _held: dict[int, _Place] = field(default_factory=dict)  # oldest first
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def one(self, party: str = "") -> Iterator[None]:
        """A place for the task in progress. Raises OVERLOADED in the task that has to give it to another."""
        task = asyncio.current_task()
        assert task is not None
        now = time.monotonic()
        if len(self._held) >= self.most:
            standing = [each for each in self._held.values() if not each.is_taken_back]
            counts = Counter(each.party for each in standing)
            oldest = max(standing, key=lambda each: counts[each.party], default=None)  # the first of those with most
            if oldest is not None and now - oldest.began >= self.patience_s:
                oldest.is_taken_back = True
                oldest.task.cancel()
        number, place = next(self._numbers), _Place(task, party, now)
        self._held[number] = place
        try:
            yield
        except asyncio.CancelledError:
            if not place.is_taken_back:
                raise
            if hasattr(task, "uncancel"):  # Python 3.11
                task.uncancel()
            rule = f"must number at most {self.most}: a newer one took this place"
            raise ServiceError(Reason.OVERLOADED, f"{self.what} {rule}", rule=rule, retry_after_s=1.0) from None
        finally:
            del self._held[number]


@dataclass(frozen=True)
class Strangers:
    """What is done for callers before they are known, or without a key."""

    probes: Places = field(default_factory=lambda: Places("unfinished requests for health", 16))
    watchers: Places = field(default_factory=lambda: Places("watchers of health", 64))
    refusals: Places = field(default_factory=lambda: Places("refusals on their way", 256))
    arriving: Places = field(default_factory=lambda: Places("messages that are long in coming", 8, patience_s=0.5))
