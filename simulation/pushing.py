"""Exploration of a pusher: approaches an object from every side, pushes through it, roams freely.

Positions only, in whatever unit the caller uses; turning a target into an action is the robot's business, and nothing
here knows a goal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ORBIT = 0.7  # rad ahead of itself that a pusher aims at while it goes round the object
_ROAM, _APPROACH, _PUSH = 0, 1, 2


@dataclass(frozen=True)
class PushingStyle:
    """The lengths of one robot's world, all in its own unit."""

    low: tuple[float, float]  # corners of the area in which the pusher roams
    high: tuple[float, float]
    standoff: float  # distance from the object's center at which a push begins
    through: tuple[float, float]  # how far past the object's place a push aims, least and most
    aside: float  # most distance by which a push misses the object's center
    arrived: float  # distance at which a target counts as reached
    roaming: float = 0.3  # share of the segments that roam
    patience: tuple[int, int] = (15, 10)  # most steps of an approach or a roam, and of a push

    def __post_init__(self) -> None:
        if not 0.0 <= self.roaming <= 1.0:
            raise ValueError(f"roaming: must be within 0 and 1, got {self.roaming}")
        if min(self.patience) < 1:
            raise ValueError(f"patience: must be at least one step, got {self.patience}")


class PushExplorer:
    """Targets for a group of pushers, each following its own random segments.

    An episode's segments are drawn from its own generator when the explorer is made, so an episode does not depend on
    those it is gathered with.
    """

    def __init__(self, style: PushingStyle, generators: Sequence[np.random.Generator], steps: int) -> None:
        self._style = style
        self._drawn = np.stack([rng.uniform(size=(steps + 1, 6)) for rng in generators])  # [N, segments, 6]
        self._segment = np.full(len(generators), -1)
        self._phase = np.full(len(generators), _ROAM)
        self._left = np.zeros(len(generators), dtype=np.int64)  # steps until the phase is given up
        self._target = np.zeros((len(generators), 2))

    def targets(
        self, pusher: NDArray[np.float64], thing: NDArray[np.float64], stuck: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Where each pusher should head now: targets ``[N, 2]``, haste ``[N]`` in 0..1, and who is roaming ``[N]``.

        ``pusher`` and ``thing`` are the present positions ``[N, 2]``; who is ``stuck`` ``[N]`` tries something else.
        """
        reached = np.linalg.norm(self._target - pusher, axis=1) < self._style.arrived
        over = (self._left <= 0) | reached | stuck
        pushing = over & (self._phase == _APPROACH) & ~stuck
        self._begin_push(pushing, thing)
        self._next_segment(over & ~pushing)
        self._left -= 1

        drawn = self._now()
        towards = np.pi * (2.0 * drawn[:, 1] - 1.0)  # the side of the object from which to push
        offset = pusher - thing
        bearing = np.arctan2(offset[:, 1], offset[:, 0])
        turn = np.mod(towards - bearing + np.pi, 2 * np.pi) - np.pi
        side = bearing + np.clip(turn, -_ORBIT, _ORBIT)
        around = thing + self._style.standoff * np.stack([np.cos(side), np.sin(side)], axis=1)
        approach = (self._phase == _APPROACH)[:, None]
        # the end of an approach, not the next point of the way round, is what counts as reached
        end = thing + self._style.standoff * np.stack([np.cos(towards), np.sin(towards)], axis=1)
        self._target = np.where(approach, end, self._target)
        haste = 0.4 + 0.6 * drawn[:, 5]
        return np.where(approach, around, self._target), haste, self._phase == _ROAM

    def _now(self) -> NDArray[np.float64]:
        return self._drawn[np.arange(len(self._drawn)), self._segment]

    def _begin_push(self, which: NDArray[np.bool_], thing: NDArray[np.float64]) -> None:
        drawn, style = self._now(), self._style
        towards = np.pi * (2.0 * drawn[:, 1] - 1.0)
        heading = -np.stack([np.cos(towards), np.sin(towards)], axis=1)
        across = np.stack([-heading[:, 1], heading[:, 0]], axis=1)
        length = style.through[0] + (style.through[1] - style.through[0]) * drawn[:, 2:3]
        aim = thing + heading * length + across * style.aside * (2.0 * drawn[:, 3:4] - 1.0)
        self._target = np.where(which[:, None], aim, self._target)
        self._phase = np.where(which, _PUSH, self._phase)
        self._left = np.where(which, style.patience[1], self._left)

    def _next_segment(self, which: NDArray[np.bool_]) -> None:
        self._segment = np.where(which, self._segment + 1, self._segment)
        drawn, style = self._now(), self._style
        roams = drawn[:, 0] < style.roaming
        self._phase = np.where(which, np.where(roams, _ROAM, _APPROACH), self._phase)
        low, high = np.array(style.low), np.array(style.high)
        anywhere = low + (high - low) * drawn[:, 2:4]
        self._target = np.where((which & roams)[:, None], anywhere, self._target)
        self._left = np.where(which, 2 + np.rint((style.patience[0] - 2) * drawn[:, 4]).astype(np.int64), self._left)
        self._left = np.where(which & ~roams, style.patience[0], self._left)
