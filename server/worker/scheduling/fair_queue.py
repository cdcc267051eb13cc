"""Whose turn it is in an engine: weighted fair queueing over callers, by the time that their work took.

However much one caller has waiting, another's work gets its part of the engine. (Start-time fair queueing: who comes
back after a pause is not owed the time in which nothing of his waited.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

SLACK_S = 0.1  # of served time, within which callers count as served alike


class FairQueue:
    """Seconds of the engine that callers were served, each divided by its weight."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    def next(self, waiting: Collection[str]) -> str:
        """Of the callers with work, the one served least; those without are forgotten."""
        known = [self._served[caller] for caller in waiting if caller in self._served]
        least = min(known, default=0.0)
        self._served = {caller: self._served.get(caller, least) for caller in waiting}
        return min(waiting, key=self._served.__getitem__)

    def charge(self, seconds: float, shares: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Note what a piece of work took: each caller's share of it."""
        total = sum(shares.values())
        for caller, share in shares.items():
            if caller in self._served:
                self._served[caller] += seconds * share / total / weights.get(caller, 1.0)

    def is_owed(self, caller: str, beside: str) -> bool:
        """Whether a caller was not served more than another, but for a little."""
        return self._served.get(caller, 0.0) <= self._served.get(beside, 0.0) + SLACK_S


def mixed(callers: Sequence[str], first: str) -> list[int]:
    """Which of these to take together, in order: each caller's first, each one's second, and so on.

    No other caller gets more in than `first` has: what is done together takes about as long as what it would do alone.
    """
    rank: dict[str, int] = {}
    ranked = []
    for index, caller in enumerate(callers):
        rank[caller] = rank.get(caller, -1) + 1
        ranked.append((rank[caller], caller != first, index))
    most = rank[first] + 1
    return [index for place, _, index in sorted(ranked) if place < most]
