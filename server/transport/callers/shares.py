"""What each caller holds of what there is: calls, streams, uploads, bytes of requests. No caller can take it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from server.config import Limits, share_of
from server.errors import Reason, ServiceError

Kind = Literal["calls", "streams", "uploads", "bytes"]
_WORDS: dict[Kind, str] = {
    "calls": "calls in progress",
    "streams": "control streams and openpi connections",
    "uploads": "uploads at a time",
    "bytes": "bytes of requests and replies in progress",
}


@dataclass
class Shares:
    """What callers hold. `parties` says how many there can be: one alone may have all there is."""

    limits: Limits
    parties: Callable[[], int | None]
    _held: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    _bytes: int = 0  # of all callers

    def most(self, kind: Kind) -> int:
        """That one caller may hold."""
        limits, alone = self.limits, self.parties() == 1
        if kind == "bytes":
            return limits.bytes_per_key
        if kind == "uploads":
            return _share(limits.max_concurrent_uploads, limits.uploads_per_key, alone)
        calls = _share(limits.concurrent_calls, limits.calls_per_key, alone)
        if kind == "calls":
            return calls
        return min(limits.streams_per_key or -(-3 * calls // 4), calls)

    def held(self, kind: Kind, name: str) -> int:
        return self._held[kind, name]

    def take(self, kind: Kind, name: str, count: int = 1) -> None:
        """To be given back. Raises OVERLOADED where the caller would hold more than its share."""
        most = self.most(kind)
        if self._held[kind, name] + count > most:
            raise _too_many(kind, most, "for one caller", count, self._held[kind, name])
        if kind == "bytes" and self._bytes + count > self.limits.bytes_in_progress:
            raise _too_many(kind, self.limits.bytes_in_progress, "for all callers", count, self._bytes)
        self._held[kind, name] += count
        self._bytes += count if kind == "bytes" else 0

    def give_back(self, kind: Kind, name: str, count: int = 1) -> None:
        self._held[kind, name] -= count
        self._bytes -= count if kind == "bytes" else 0
        if self._held[kind, name] <= 0:
            del self._held[kind, name]

    @contextmanager
    def holding(self, kind: Kind, name: str, count: int = 1) -> Iterator[None]:
        """Hold so much while this lasts. Raises OVERLOADED."""
        self.take(kind, name, count)
        try:
            yield
        finally:
            self.give_back(kind, name, count)


def _share(most: int, each: int, alone: bool) -> int:
    return most if alone and not each else share_of(most, each)


def _too_many(kind: Kind, most: int, whose: str, count: int, held: int) -> ServiceError:
    rule = f"must be at most {most} {whose}"
    got = f"{count} beside {held}" if kind == "bytes" else "one more"
    return ServiceError(
        Reason.OVERLOADED, f"{_WORDS[kind]} {rule}, got {got}",
        field=kind, rule=rule, value=str(held + count), retry_after_s=0.1,
    )  # fmt: skip
