"""Interface of every reader of recordings: a header, each episode's numbers, and each episode's frames.

One file of its own for each format; which one reads a path is `training.data.formats.opening`, and whether
what it read can be trained on is `training.data.inspection`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from presage.user_error import UserError

FRAMES_AT_ONCE = 32  # frames of an episode come in batches of at most so many: a long one never lies in memory whole


class DatasetError(UserError, ValueError):
    """A recording that cannot be read; the message names the file or the episode, and what is wrong with it."""


@dataclass(frozen=True)
class ReadOptions:
    """What a recording may leave open."""

    camera: str = ""  # one of the header's cameras; needed where there are several
    state_key: str = ""  # the column or array of what the robot measured; empty: the format's usual one, if it is there
    rate_hz: float = 0.0  # frames a second, where the recording does not say
    action_key: str = ""  # the column or array of the actions; empty: the format's usual one

    def __post_init__(self) -> None:
        if not 0 <= self.rate_hz <= 1000:
            raise DatasetError(f"rate_hz must lie in 0..1000, got {self.rate_hz}")


@dataclass(frozen=True)
class DatasetHeader:
    """A dataset as a whole."""

    format: str
    path: Path
    rate_hz: float  # frames, and actions, a second; 0 where nobody says
    action_names: tuple[str, ...]
    proprioception_names: tuple[str, ...]
    cameras: tuple[str, ...]
    camera: str  # the one that is read
    episodes: tuple[str, ...]  # their names, in order
    notes: tuple[str, ...] = ()  # what is odd about it as a whole, and keeps nobody from training


@dataclass(frozen=True)
class Episode:
    """One recorded episode but for its pictures, as it is stored: nothing here is checked against anything else."""

    name: str
    frames: int  # how many there should be
    actions: NDArray[
        np.float32
    ]  # [frames or frames - 1, A] in robot units; the action at t leads from frame t to t + 1
    proprioception: NDArray[np.float32]  # [frames, P], P may be 0
    timestamps_s: NDArray[np.float64] | None = None  # [frames], where they are recorded
    notes: tuple[str, ...] = ()  # what was assumed to read it, or is odd about it, and keeps nobody from training

    @property
    def steps(self) -> int:
        """Actions that lead from one frame to another: the last of `frames` actions leads nowhere."""
        return min(len(self.actions), max(self.frames - 1, 0))


class Dataset(Protocol):
    """Episodes on disk."""

    @property
    def header(self) -> DatasetHeader: ...

    def episode(self, index: int) -> Episode:
        """The numbers of one episode. Raises DatasetError."""
        ...

    def frames(self, index: int) -> Iterator[NDArray[np.uint8]]:
        """The camera's frames in order, `[at most 32, height, width, 3]` RGB at their recorded size.

        Raises DatasetError where they end early or cannot be read.
        """
        ...


def chosen_camera(cameras: tuple[str, ...], wanted: str, where: Path) -> str:
    """The camera to read. Raises DatasetError naming those there are."""
    known = ", ".join(cameras)
    if not cameras:
        raise DatasetError(f"{where}: holds no camera's frames")
    if wanted and wanted not in cameras:
        raise DatasetError(f"{where}: camera must be one of {known}, got {wanted!r}")
    if not wanted and len(cameras) > 1:
        raise DatasetError(f"{where}: has {len(cameras)} cameras; choose one of {known}")
    return wanted or cameras[0]


def as_table(values: NDArray[np.generic], where: str) -> NDArray[np.float32]:
    """`[rows, numbers]` float32 of a column of numbers or of rows of numbers. Raises DatasetError."""
    if values.ndim not in (1, 2) or values.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: must hold rows of numbers, got {values.dtype} {list(values.shape)}")
    table: NDArray[np.float32] = (values if values.ndim == 2 else values[:, None]).astype(np.float32)
    return table


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file below `root`, or a folder on the way to it, is hidden: macOS leaves `._NAME` beside each file."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
