"""Episodes as training sees them: frames, actions and what they mean, whoever recorded them. No files are read here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

CONSTANT = 1e-8  # standard deviation below which a number is taken not to vary


def digest_of(array: NDArray[np.generic]) -> str:
    """sha256 of an array's shape, type and content, hexadecimal; read a row at a time, for it may be a mapped file."""
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    for row in array:
        digest.update(np.ascontiguousarray(row).data)
    return digest.hexdigest()


def held_notes(held: Mapping[str, float]) -> tuple[str, ...]:
    """What is said of actions that never change, given with their values."""
    return tuple(f"action {name} is {value:g} throughout: plans hold it there" for name, value in held.items())


@dataclass(frozen=True)
class Episodes:
    """Episodes side by side. `actions[:, t]` leads from frame t to frame t + 1; arrays may be maps of files.

    Where lengths differ, the arrays are as long as the longest episode and `lengths` says how many steps of each were
    recorded; what lies past them means nothing and is never drawn.
    """

    frames: NDArray[np.uint8]  # [episodes, steps + 1, height, width, 3] RGB
    actions: NDArray[np.float32]  # [episodes, steps, dimensions], robot units
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    rate_hz: float
    source: str  # where they come from, for the model card
    probe_targets: NDArray[np.float32] | None = None  # [episodes, steps + 1, targets]: what a linear probe should find
    labels: NDArray[np.float32] | None = None  # [episodes, steps + 1, labels]: what latents are trained to tell
    lengths: NDArray[np.int64] | None = None  # [episodes] recorded steps; None: all of them, in every episode
    proprioception: NDArray[np.float32] | None = None  # [episodes, steps + 1, numbers] as recorded
    proprioception_names: tuple[str, ...] = ()
    crop_policy: str = "exact"  # how the frames were made of the camera's images (`model.preprocessing`)
    frames_digest: str = ""  # of the frames' content, where whoever made them knows it
    notes: tuple[str, ...] = ()  # what was assumed to read them, or is odd about them, for the log and the model card

    def __post_init__(self) -> None:
        episodes, steps = self.actions.shape[:2]
        if self.frames.shape[:2] != (episodes, steps + 1):
            raise ValueError(f"frames must start with [{episodes}, {steps + 1}], got {list(self.frames.shape[:2])}")
        if self.lengths is not None and not (
            self.lengths.shape == (episodes,) and (self.lengths >= 1).all() and (self.lengths <= steps).all()
        ):
            raise ValueError(f"lengths must be {episodes} numbers of steps in 1..{steps}, got {self.lengths.tolist()}")
        if not np.isfinite(self.actions).all():
            raise ValueError("actions must be finite, got NaN or infinity")

    def action_mean(self) -> tuple[float, ...]:
        return tuple(self._recorded_actions().mean(axis=0, dtype=np.float64).tolist())

    def action_spread(self) -> tuple[float, ...]:
        """Standard deviations, 0 for what never changes."""
        spread = self._recorded_actions().std(axis=0, dtype=np.float64)
        return tuple(np.where(spread > CONSTANT, spread, 0.0).tolist())

    def held(self) -> dict[str, float]:
        """Actions that have one value throughout, and that value: a plan holds them there."""
        recorded, spread = self._recorded_actions(), self.action_spread()
        return {name: float(recorded[0, at]) for at, name in enumerate(self.action_names) if not spread[at]}

    def identity(self) -> dict[str, str]:
        """What a training on these episodes is a training on: it goes on from a checkpoint with the same alone."""
        digest = hashlib.sha256((self.frames_digest or digest_of(self.frames)).encode())
        for array in (self.actions, self.lengths, self.proprioception, self.probe_targets):
            digest.update(b"none" if array is None else digest_of(array).encode())
        return {
            "image size": f"{self.frames.shape[2]} x {self.frames.shape[3]}",
            "crop policy": self.crop_policy,
            "rate": f"{self.rate_hz:g} Hz",
            "actions": ", ".join(self.action_names),
            "proprioception": ", ".join(self.proprioception_names) or "none",
            "recordings": digest.hexdigest(),
        }

    def recorded_proprioception(self) -> NDArray[np.float32]:
        """`[all frames, numbers]`; ValueError where there is none."""
        if self.proprioception is None or not self.proprioception.shape[-1]:
            raise ValueError(f"proprioception must be recorded, got none in {self.source}")
        return self.recorded(self.proprioception)

    def recorded(self, of_frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[all frames, numbers]` of an array `[episodes, steps + 1, numbers]`."""
        if self.lengths is None:
            return of_frames.reshape(-1, of_frames.shape[-1])
        return of_frames[np.arange(of_frames.shape[1]) <= self.lengths[:, None]]

    def label_count(self) -> int:
        """Numbers that latents are trained to tell of a frame."""
        return 0 if self.labels is None else self.labels.shape[-1]

    def steps_of(self, row: int) -> int:
        """Recorded steps of one episode; it has one frame more."""
        return self.actions.shape[1] if self.lengths is None else int(self.lengths[row])

    def draw_windows(
        self, count: int, span: int, generator: torch.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and first steps of `count` random windows of `span` steps, none of which leaves what was recorded.

        Raises ValueError where no episode is that long.
        """
        longest = self.actions.shape[1] if self.lengths is None else int(self.lengths.max())
        if longest < span:
            raise ValueError(f"episodes must have at least horizon x block = {span} steps, got {longest}")
        if self.lengths is None:
            rows = torch.randint(len(self.actions), (count,), generator=generator).numpy()
            return rows, torch.randint(longest - span + 1, (count,), generator=generator).numpy()
        return draw_begins(np.maximum(self.lengths - span + 1, 0), count, generator)

    def split(self, held_out: int) -> tuple[Episodes, Episodes]:
        """Training episodes and the last `held_out` ones: whole episodes, never windows of one."""
        if not 0 < held_out < len(self.actions):
            raise ValueError(f"held_out must lie in 1..{len(self.actions) - 1}, got {held_out}")
        return self._take(slice(None, -held_out)), self._take(slice(-held_out, None))

    def _take(self, rows: slice) -> Episodes:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for name in ("frames", "actions", "probe_targets", "labels", "lengths", "proprioception"):
            values[name] = None if values[name] is None else values[name][rows]
        values["frames_digest"] = f"{self.frames_digest} {rows}" if self.frames_digest else ""
        return Episodes(**values)

    def _recorded_actions(self) -> NDArray[np.float32]:
        """`[all steps, dimensions]`."""
        if self.lengths is None:
            return self.actions.reshape(-1, self.actions.shape[-1])
        return self.actions[np.arange(self.actions.shape[1]) < self.lengths[:, None]]


def draw_begins(
    begins: NDArray[np.int64], count: int, generator: torch.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and places of random windows, each as likely as another, where row r has `begins[r]` places to begin at.

    At least one row must have one.
    """
    ends = begins.cumsum()
    drawn = torch.randint(int(ends[-1]), (count,), generator=generator).numpy()
    rows = np.searchsorted(ends, drawn, side="right")
    return rows, drawn - (ends - begins)[rows]
