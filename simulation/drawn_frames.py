"""Episodes without pictures, whose frames are drawn from the states when somebody looks at them.

Drawing takes most of the time of gathering: who looks at one frame in five, once, gathers with this several times as
many episodes, and keeps none of the frames.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from presage.fields import from_fields

from simulation.episodes import GROUP, EpisodeBatch, Progress
from simulation.exploration import explore_unseen
from simulation.tasks import RobotTask, make


@dataclass(frozen=True, eq=False)
class DrawnFrames:
    """Looks like `frames` of an `EpisodeBatch`; `frames[row, steps]` draws those, `frames[rows]` draws none."""

    robot: RobotTask
    states: NDArray[np.float64]  # [N, steps + 1, S]
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """``(N, steps + 1, size, size, 3)``."""
        size = self.robot.image_size
        return (*self.states.shape[:2], size, size, 3)

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return DrawnFrames(self.robot, self.states[key])
        row, steps = key
        states = self.states[row, steps]
        if states.ndim != 2:
            raise IndexError(f"frames: must be asked for as [row, steps], got {key!r}")
        return np.stack([self.robot.render_state(state) for state in states])


def collect_unseen(
    task: str,
    episodes: int,
    steps: int,
    seed: int,
    workers: int = 1,
    image_size: int = 64,
    progress: Progress | None = None,
) -> EpisodeBatch:
    """The episodes that ``collect`` gathers, with frames that are drawn when they are looked at.

    ``progress(done, total)`` is called with counts of episodes.
    """
    robot = make(task, image_size)
    parts: list[tuple[NDArray[Any], ...]] = []
    for part in _parts(task, episodes, steps, seed, workers):
        parts.append(part)
        if progress is not None:
            progress(min(len(parts) * GROUP, episodes), episodes)
    actions, proprioception, states = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return from_fields(
        EpisodeBatch,
        robot,
        task=robot.name,
        seed=seed,
        action_low=tuple(float(value) for value in robot.action_low),
        action_high=tuple(float(value) for value in robot.action_high),
        frames=DrawnFrames(robot, states),  # type: ignore[arg-type]  # stands in for an array
        actions=actions,
        proprioception=proprioception,
        states=states,
    )


def _parts(task: str, episodes: int, steps: int, seed: int, workers: int) -> Iterator[tuple[NDArray[Any], ...]]:
    """Groups of episodes in order; the same whatever the number of workers."""
    jobs = [(task, seed, range(first, min(first + GROUP, episodes)), steps) for first in range(0, episodes, GROUP)]
    if workers == 1:
        yield from (explore_unseen(*job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for waiting in [pool.submit(explore_unseen, *job) for job in jobs]:
            yield waiting.result()
