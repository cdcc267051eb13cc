"""Recorded episodes: what they hold, how they are kept in a folder, and ``collect``, which gathers new ones.

A folder of episodes is ``episodes.json`` beside four ``.npy`` files that can be mapped into memory; nothing in it is
ever unpickled. Other recordings (teleoperation, foreign data sets) are not read here.
"""

from __future__ import annotations

import fcntl
import glob
import json
import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from presage.user_error import UserError

from simulation.exploration import Group, explore
from simulation.tasks import RobotTask, make

# Episodes for training have seeds below the first number, episodes that tests and manifests are made from have seeds
# from the second number on: no held-out pair can have been trained on.
TRAINING_SEED_LIMIT = 1_000_000
HELD_OUT_SEED_START = 1_000_000_000

FORMAT = "presage-episodes/1"
GROUP = 32  # episodes gathered side by side; the same whatever the number of workers, so that the results are too
_ARRAYS = ("frames", "actions", "proprioception", "states")

Progress = Callable[[int, int], None]


class EpisodeError(UserError, ValueError):
    """A folder that is not what ``save_episodes`` writes; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class EpisodeBatch:
    """Episodes of one task, all of the same length; the arrays may be maps of files."""

    task: str
    seed: int  # of the collection; the episode at index i is drawn from (seed, i)
    rate_hz: float  # control steps per second
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    proprioception_names: tuple[str, ...]
    proprioception_units: tuple[str, ...]
    frames: NDArray[np.uint8]  # [N, steps + 1, size, size, 3] RGB
    actions: NDArray[np.float32]  # [N, steps, A] in action_units; actions[:, t] leads from frame t to frame t + 1
    proprioception: NDArray[np.float32]  # [N, steps + 1, P]
    states: NDArray[np.float64]  # [N, steps + 1, S], what the simulator can be reset to

    def __post_init__(self) -> None:
        episodes, steps = self.actions.shape[:2]
        for name in ("frames", "proprioception", "states"):
            shape = getattr(self, name).shape
            if shape[:2] != (episodes, steps + 1):
                raise ValueError(f"{name}: must start with [{episodes}, {steps + 1}] as actions say, got {list(shape)}")
        if self.actions.shape[2] != len(self.action_names):
            raise ValueError(f"actions: {self.actions.shape[2]} wide, but action_names has {len(self.action_names)}")

    @property
    def episodes(self) -> int:
        """How many episodes there are."""
        return len(self.actions)

    @property
    def steps(self) -> int:
        """How many actions each episode has; it has one frame more."""
        return self.actions.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of a frame in pixels."""
        return self.frames.shape[2]


def collect(
    task: str,
    episodes: int,
    steps: int,
    seed: int,
    workers: int = 1,
    image_size: int = 64,
    progress: Progress | None = None,
) -> EpisodeBatch:
    """Gathers episodes with the task's exploring policy, into memory.

    The same seed gives the same arrays whatever ``workers`` is; with one worker everything runs in this process,
    otherwise in ``workers`` fresh ones (a script that asks for them needs ``if __name__ == "__main__"``).
    ``progress(done, total)`` is called with counts of episodes.
    """
    robot = make(task, image_size)
    arrays: dict[str, NDArray[Any]] = {}
    for first, group in _groups(task, episodes, steps, seed, workers, image_size, progress):
        for name, part in group._asdict().items():
            if name not in arrays:
                arrays[name] = np.empty((episodes, *part.shape[1:]), part.dtype)
            arrays[name][first : first + len(part)] = part
    return EpisodeBatch(**_description(robot, seed), **arrays)


def collect_to(
    folder: Path,
    task: str,
    episodes: int,
    steps: int,
    seed: int,
    workers: int = 1,
    image_size: int = 64,
    progress: Progress | None = None,
) -> EpisodeBatch:
    """``collect`` straight into a folder, for more episodes than memory holds; gives them back mapped from there.

    The folder appears when it is complete, and must not exist before (FileExistsError).
    """
    robot = make(task, image_size)
    with _complete_or_absent(folder) as partial:
        arrays: dict[str, NDArray[Any]] = {}
        for first, group in _groups(task, episodes, steps, seed, workers, image_size, progress):
            for name, part in group._asdict().items():
                if name not in arrays:
                    arrays[name] = np.lib.format.open_memmap(
                        partial / f"{name}.npy", mode="w+", dtype=part.dtype, shape=(episodes, *part.shape[1:])
                    )
                arrays[name][first : first + len(part)] = part
        batch = EpisodeBatch(**_description(robot, seed), **arrays)
        _write_header(batch, partial)
        for array in arrays.values():
            array.flush()  # type: ignore[attr-defined]
    return open_episodes(folder)


def save_episodes(batch: EpisodeBatch, folder: Path) -> None:
    """Writes a batch as a new folder, which appears only when it is complete; FileExistsError if it is there."""
    with _complete_or_absent(folder) as partial:
        for name in _ARRAYS:
            np.save(partial / f"{name}.npy", getattr(batch, name), allow_pickle=False)
        _write_header(batch, partial)


def open_episodes(folder: Path) -> EpisodeBatch:
    """Opens a folder of episodes with its arrays mapped into memory, read-only.

    Raises FileNotFoundError where a file is missing and EpisodeError where one is not what ``save_episodes`` wrote.
    """
    path = Path(folder) / "episodes.json"
    try:
        header = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise EpisodeError(f"{path}: not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise EpisodeError(f"{path}: 'format' must be {FORMAT!r}")
    described = {field.name for field in fields(EpisodeBatch)} - set(_ARRAYS)
    if missing := sorted((described | {"arrays"}) - header.keys()):
        raise EpisodeError(f"{path}: lacks {', '.join(missing)}")
    arrays: dict[str, NDArray[Any]] = {}
    for name in _ARRAYS:
        file = Path(folder) / f"{name}.npy"
        try:
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise EpisodeError(f"{file}: not a readable array ({error})") from error
        found = {"dtype": str(arrays[name].dtype), "shape": list(arrays[name].shape)}
        if found != header["arrays"].get(name):
            raise EpisodeError(f"{file}: holds {found}, but {path.name} says {header['arrays'].get(name)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in header.items()}
    return EpisodeBatch(**{name: values[name] for name in described}, **arrays)


def _groups(
    task: str, episodes: int, steps: int, seed: int, workers: int, image_size: int, progress: Progress | None
) -> Iterator[tuple[int, Group]]:
    """Gathers groups of episodes, in order, each with the index of its first episode."""
    for name, value in (("episodes", episodes), ("steps", steps), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed: must not be negative, got {seed}")
    firsts = range(0, episodes, GROUP)
    jobs = [(task, seed, range(first, min(first + GROUP, episodes)), steps, image_size) for first in firsts]
    if workers == 1:
        for job in jobs:
            yield job[2].start, explore(*job)
            if progress is not None:
                progress(job[2].stop, episodes)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(explore, *job) for job in jobs[: 2 * workers]]  # bounded: finished groups are large
        for number, job in enumerate(jobs):
            group = waiting.pop(0).result()
            if number + 2 * workers < len(jobs):
                waiting.append(pool.submit(explore, *jobs[number + 2 * workers]))
            yield job[2].start, group
            if progress is not None:
                progress(job[2].stop, episodes)


def _description(robot: RobotTask, seed: int) -> dict[str, Any]:
    return {
        "task": robot.name,
        "seed": seed,
        "rate_hz": robot.rate_hz,
        "action_names": robot.action_names,
        "action_units": robot.action_units,
        "action_low": tuple(float(value) for value in robot.action_low),
        "action_high": tuple(float(value) for value in robot.action_high),
        "proprioception_names": robot.proprioception_names,
        "proprioception_units": robot.proprioception_units,
    }


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which takes its name when that is done and is removed when it fails.

    One left by a process that was killed is removed here: whoever still fills a folder holds a lock on it.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: already exists")
    for abandoned in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        with suppress(OSError), _locked(abandoned):
            shutil.rmtree(abandoned)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    with _locked(partial):
        try:
            yield partial
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock that ends with the process at the latest; BlockingIOError where another process has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _write_header(batch: EpisodeBatch, folder: Path) -> None:
    header: dict[str, Any] = {"format": FORMAT}
    header |= {field.name: getattr(batch, field.name) for field in fields(batch) if field.name not in _ARRAYS}
    header |= {"episodes": batch.episodes, "steps": batch.steps, "image_size": batch.image_size}
    shapes = {name: getattr(batch, name) for name in _ARRAYS}
    header["arrays"] = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in shapes.items()}
    (folder / "episodes.json").write_text(json.dumps(header, indent=2) + "\n")
