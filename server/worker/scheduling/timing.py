"""Measured durations of an engine's steps, so that none is started that would make a plan late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from planner.anytime import IterationClock

KINDS = 256  # remembered; callers choose the sizes of searches, so there is no end to them


class Durations:
    """Durations by kind of work and by how many calls shared it."""

    def __init__(self) -> None:
        self._clocks: OrderedDict[Hashable, dict[int, IterationClock]] = OrderedDict()

    def observe(self, kind: Hashable, count: int, seconds: float) -> None:
        """Learn from one piece of work that `count` calls shared."""
        self._clocks.setdefault(kind, {}).setdefault(count, IterationClock()).observe(seconds)
        self._clocks.move_to_end(kind)
        while len(self._clocks) > KINDS:
            self._clocks.popitem(last=False)

    def predict(self, kind: Hashable, count: int) -> float | None:
        """Seconds that such work may take; None while none like it was seen.

        Between counts that were seen: as many more times as there are more calls, never less than a larger one's share.
        """
        clocks = self._clocks.get(kind)
        if not clocks:
            return None
        if count in clocks:
            return clocks[count].estimate_s
        fewer = max((seen for seen in clocks if seen < count), default=None)
        more = min((seen for seen in clocks if seen > count), default=None)
        bounds = []
        if fewer is not None:
            bounds.append(clocks[fewer].estimate_s * count / fewer)
        if more is not None:
            bounds.append(clocks[more].estimate_s)
        return min(bounds)

    def forget(self) -> None:
        """Start anew: first runs are slower than all others."""
        self._clocks.clear()
