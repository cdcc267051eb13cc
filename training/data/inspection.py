"""Inspection of recordings: the content of each episode, what is wrong with it, which one it repeats, and the
range of its actions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset, DatasetError, DatasetHeader, Episode
from training.data.episodes import CONSTANT, held_notes

RATE_TOLERANCE = 0.1  # share by which the rows' own rate may differ from what is said


@dataclass(frozen=True)
class Finding:
    """One episode, and why it cannot be used, if so."""

    name: str
    frames: int
    steps: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what was assumed to read it, or is odd about it


@dataclass(frozen=True)
class Range:
    """What one number of the actions takes, over the steps of all usable episodes."""

    name: str
    low: float
    high: float
    mean: float
    std: float

    @property
    def constant(self) -> bool:
        return not self.std > CONSTANT


@dataclass(frozen=True)
class Inspection:
    """A dataset, looked through."""

    header: DatasetHeader
    episodes: tuple[Finding, ...]
    actions: tuple[Range, ...]
    pictures_read: bool
    frame_size: tuple[int, int] | None  # height and width of the first frame read

    @property
    def broken(self) -> tuple[Finding, ...]:
        return tuple(episode for episode in self.episodes if episode.problems)

    @property
    def errors(self) -> tuple[str, ...]:
        """Everything that stands in the way of a training."""
        said = [f"{episode.name}: {problem}" for episode in self.broken for problem in episode.problems]
        if not self.episodes:
            said.append("there are no episodes")
        if not self.header.rate_hz > 0:
            said.append("the recording names no rate: say it with rate_hz")
        return tuple(said)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a training says and goes on with."""
        held = {entry.name: entry.low for entry in self.actions if entry.constant}
        whole = [episode for episode in self.episodes if not episode.problems]
        return (*self.header.notes, *counted(note for each in whole for note in each.notes), *held_notes(held))

    def summary(self) -> dict[str, Any]:
        """As plain values, for a program."""
        header = self.header
        usable = [episode.steps for episode in self.episodes if not episode.problems]
        return {
            "path": str(header.path),
            "format": header.format,
            "rate_hz": header.rate_hz or None,
            "cameras": list(header.cameras),
            "camera": header.camera,
            "frame_size": None if self.frame_size is None else list(self.frame_size),
            "pictures_read": self.pictures_read,
            "episodes": len(self.episodes),
            "usable_episodes": len(usable),
            "steps": sum(usable),
            "shortest_steps": min(usable, default=0),
            "median_steps": float(np.median(usable)) if usable else 0.0,
            "longest_steps": max(usable, default=0),
            "actions": [asdict(entry) for entry in self.actions],
            "constant_actions": [entry.name for entry in self.actions if entry.constant],
            "proprioception": list(header.proprioception_names),
            "broken": [asdict(episode) for episode in self.broken],
            "errors": list(self.errors),
            "notes": list(self.notes),
        }


def inspect(
    dataset: Dataset, *, pictures: bool = True, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Look through every episode; with `pictures` every frame is decoded, without it clips are not opened at all."""
    header = dataset.header
    findings: list[Finding] = []
    usable: dict[int, Episode] = {}
    size: tuple[int, int] | None = None
    for index, name in enumerate(header.episodes):
        try:
            episode = dataset.episode(index)
        except DatasetError as error:
            findings.append(Finding(name, 0, 0, (_without(name, str(error)),)))
        else:
            said = list(problems(episode, header))
            if pictures and episode.frames > 0:
                seen, trouble = read_through(dataset, index, episode.frames)
                size = size or seen
                said += trouble
            findings.append(Finding(name, episode.frames, episode.steps, tuple(said), episode.notes))
            if not said:
                usable[index] = episode
        if progress is not None:
            progress(index + 1, len(header.episodes))
    for index, original in repeats(dataset, usable).items():
        findings[index] = replace(findings[index], problems=(repeat_of(header, original),))
        del usable[index]
    recorded = [episode.actions[: episode.steps] for episode in usable.values()]
    header = replace(header, notes=(*header.notes, *dangling_links(header.path)))
    return Inspection(header, tuple(findings), _ranges(header, recorded), pictures, size)


def dangling_links(root: Path) -> tuple[str, ...]:
    """A note for each link below a dataset that leads nowhere: an interrupted download, an editor's lock."""
    links = [path for path in sorted(root.rglob("*")) if path.is_symlink() and not path.exists()]
    return tuple(f"{link} is a link that leads nowhere" for link in links)


def repeat_of(header: DatasetHeader, original: int) -> str:
    """What is wrong with an episode that repeats another."""
    return f"repeats {header.episodes[original]}: an episode counts once"


def counted(notes: Iterable[str]) -> tuple[str, ...]:
    """Each note once, and how many episodes it is about where there are several."""
    return tuple(note if count == 1 else f"{note} ({count} episodes)" for note, count in Counter(notes).items())


def problems(episode: Episode, header: DatasetHeader) -> tuple[str, ...]:
    """What keeps an episode's numbers from being trained on."""
    if episode.frames == 0 or len(episode.actions) == 0:
        return (f"is empty: {episode.frames} frames and {len(episode.actions)} actions",)
    said = []
    if len(episode.actions) not in (episode.frames, episode.frames - 1):
        said.append(f"has {len(episode.actions)} actions for {episode.frames} frames")
    elif episode.steps == 0:
        said.append("has one frame: no action leads anywhere")
    if episode.actions.shape[1] != len(header.action_names):
        said.append(f"has actions of {episode.actions.shape[1]} numbers, not {len(header.action_names)}")
    if len(episode.proprioception) != episode.frames:
        said.append(f"has {len(episode.proprioception)} rows of proprioception for {episode.frames} frames")
    if episode.proprioception.shape[1] != len(header.proprioception_names):
        width = episode.proprioception.shape[1]
        said.append(f"has proprioception of {width} numbers, not {len(header.proprioception_names)}")
    # The last of as many actions as frames leads nowhere; recorders often leave it NaN.
    said += _not_finite(episode.actions[: episode.steps], "actions")
    said += _not_finite(episode.proprioception, "proprioception")
    return (*said, *_irregular(episode.timestamps_s, header.rate_hz))


def read_through(dataset: Dataset, index: int, frames: int) -> tuple[tuple[int, int] | None, list[str]]:
    """The size of an episode's frames, and what is wrong with them; every one is decoded."""
    name, seen, size = dataset.header.episodes[index], 0, None
    try:
        for batch in dataset.frames(index):
            found = (batch.shape[1], batch.shape[2])
            if size is not None and found != size:
                return size, [f"has frames of {found[0]} x {found[1]} after frames of {size[0]} x {size[1]}"]
            seen, size = seen + len(batch), found
    except DatasetError as error:
        return size, [f"frames cannot be read: {_without(name, str(error))}"]
    return size, [] if seen == frames else [f"has {seen} pictures, not {frames}"]


def _not_finite(values: NDArray[np.float32], what: str) -> list[str]:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1)) if values.size else np.zeros(0, np.int64)
    return [f"has NaN or infinity in {len(bad)} rows of {what}, first at step {bad[0]}"] if len(bad) else []


def _irregular(times: NDArray[np.float64] | None, rate_hz: float) -> list[str]:
    """Gaps of more than half a frame, and clocks that stand still or run backwards."""
    if times is None or len(times) < 2 or not rate_hz > 0:
        return []
    gaps = np.diff(times)
    bad = np.flatnonzero(~(np.abs(gaps - 1 / rate_hz) <= 0.5 / rate_hz))
    if not len(bad):
        span = float(times[-1] - times[0])
        if abs(span * rate_hz - len(gaps)) <= max(0.5, RATE_TOLERANCE * len(gaps)):
            return []
        return [f"has {len(gaps) / span:.4g} rows a second by its timestamps where {rate_hz:g} are expected"]
    at = int(bad[0])
    return [f"has {len(bad)} gaps in time, first {gaps[at]:.4g} s at step {at} where {1 / rate_hz:.4g} s is expected"]


def _ranges(header: DatasetHeader, recorded: list[NDArray[np.float32]]) -> tuple[Range, ...]:
    if not recorded:
        return ()
    actions = np.concatenate(recorded).astype(np.float64)
    columns = (actions.min(axis=0), actions.max(axis=0), actions.mean(axis=0), actions.std(axis=0))
    return tuple(
        Range(name, *(float(column[place]) for column in columns)) for place, name in enumerate(header.action_names)
    )


def _without(name: str, message: str) -> str:
    """A message that does not begin with the episode's name, which stands before it anyway."""
    return message.removeprefix(f"{name}: ")


def repeats(dataset: Dataset, episodes: Mapping[int, Episode]) -> dict[int, int]:
    """For each episode that repeats an earlier one, both by index: the same numbers, and the same pictures.

    A copy counts twice in training, and one of the two may be held out. Pictures are compared only where the numbers
    are the same; a script that is played twice is not a copy.
    """
    known: dict[str, list[int]] = {}
    found: dict[int, int] = {}
    for index, episode in episodes.items():
        alike = known.setdefault(_digest(episode), [])
        original = next((other for other in alike if _look_alike(dataset, other, index)), None)
        if original is None:
            alike.append(index)
        else:
            found[index] = original
    return found


def _digest(episode: Episode) -> str:
    digest = hashlib.sha256(f"{episode.frames} {episode.actions.shape}".encode())
    digest.update(np.ascontiguousarray(episode.actions[: episode.steps]).data)
    digest.update(np.ascontiguousarray(episode.proprioception).data)
    return digest.hexdigest()


def _look_alike(dataset: Dataset, one: int, other: int) -> bool:
    try:
        pairs = zip_longest(dataset.frames(one), dataset.frames(other))
        return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)
    except DatasetError:  # whoever reads the pictures says so
        return False
