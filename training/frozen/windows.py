"""Pairs and windows of encoded episodes, for trainings on latents that no longer change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from training.data.episodes import Episodes, draw_begins


@dataclass(frozen=True, eq=False)
class EncodedEpisodes:
    """Episodes as latents, `every` so many steps, with what was done and measured on the way."""

    latents: NDArray[np.float32]  # [episodes, steps // every + 1, latent]
    actions: NDArray[np.float32]  # [episodes, steps, dimensions]
    every: int
    lengths: NDArray[np.int64]  # [episodes] recorded steps
    proprioception: NDArray[np.float32] | None = None  # [episodes, steps + 1, numbers]
    labels: NDArray[np.float32] | None = None  # [episodes, steps + 1, labels]

    @property
    def encoded_steps(self) -> NDArray[np.int64]:
        """[episodes] how many encoded frames of each follow its first."""
        return self.lengths // self.every

    def at(self, of_frames: NDArray[np.float32], rows: NDArray[np.int64], places: NDArray[np.int64]) -> Tensor:
        """What an array of all frames holds of encoded ones."""
        return torch.from_numpy(of_frames[rows, places * self.every])

    def split(self, held_out: int) -> tuple[EncodedEpisodes, EncodedEpisodes]:
        """All but the last `held_out` episodes, and those; ValueError where that leaves none."""
        if not 0 < held_out < len(self.latents):
            raise ValueError(f"held_out must lie in 1..{len(self.latents) - 1}, got {held_out}")
        return self._take(slice(None, -held_out)), self._take(slice(-held_out, None))

    def _take(self, rows: slice) -> EncodedEpisodes:
        measured, labels = self.proprioception, self.labels
        return EncodedEpisodes(
            self.latents[rows],
            self.actions[rows],
            self.every,
            self.lengths[rows],
            None if measured is None else measured[rows],
            None if labels is None else labels[rows],
        )


def encoded_episodes(episodes: Episodes, latents: NDArray[np.float32], every: int) -> EncodedEpisodes:
    """Episodes with their latents; labels are the probe's targets, of mean 0 and variance 1, where there are any."""
    rows, steps = episodes.actions.shape[:2]
    lengths = np.full(rows, steps) if episodes.lengths is None else episodes.lengths
    targets, labels = episodes.probe_targets, None
    if targets is not None:
        recorded = episodes.recorded(targets)
        spread = recorded.std(axis=0)
        labels = ((targets - recorded.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)).astype(np.float32)
    return EncodedEpisodes(latents, episodes.actions, every, lengths, episodes.proprioception, labels)


@dataclass(frozen=True)
class Hindsight:
    """A batch of answers known afterwards: what was done from a frame on, and a later frame as its goal."""

    latent: Float[Tensor, "batch latent"]
    goal: Float[Tensor, "batch latent"]
    steps_to_go: Float[Tensor, " batch"]  # robot actions between them
    actions: Float[Tensor, "batch time action"]  # from the frame on; what lies past the goal is not to be told
    proprioception: Float[Tensor, "batch numbers"] | None  # at the frame


def draw_hindsight(
    episodes: EncodedEpisodes, batch: int, longest: int, time: int, generator: torch.Generator
) -> Hindsight:
    """Random frames with a goal 1 to `longest` actions later in the same episode, every time equally likely where it
    fits, and the next `time` actions. ValueError where no episode holds two encoded frames so near each other."""
    ahead_most = longest // episodes.every
    ends = episodes.encoded_steps
    usable = np.flatnonzero(ends >= 1)
    if ahead_most < 1 or not len(usable):
        least = max(1, episodes.every)
        raise ValueError(
            f"episodes must be at least {least} steps long for hindsight (longest {longest}), "
            f"got {int(episodes.lengths.max())}"
        )
    chance = torch.from_numpy(ends[usable].astype(np.float64))
    rows = usable[torch.multinomial(chance, batch, replacement=True, generator=generator).numpy()]
    ahead = torch.randint(1, ahead_most + 1, (batch,), generator=generator).numpy()
    ahead = np.minimum(ahead, ends[rows])
    place = (torch.rand(batch, generator=generator).numpy() * (ends[rows] - ahead + 1)).astype(np.int64)
    steps = place[:, None] * episodes.every + np.arange(time)
    steps = np.minimum(steps, episodes.actions.shape[1] - 1)
    measured = episodes.proprioception
    return Hindsight(
        torch.from_numpy(episodes.latents[rows, place]),
        torch.from_numpy(episodes.latents[rows, place + ahead]),
        torch.from_numpy(ahead * episodes.every).float(),
        torch.from_numpy(episodes.actions[rows[:, None], steps]),
        None if measured is None else episodes.at(measured, rows, place),
    )


@dataclass(frozen=True)
class Windows:
    """A batch of stretches, a block of actions from each encoded frame to the next."""

    latents: Float[Tensor, "batch frames latent"]
    actions: Float[Tensor, "batch time action"]
    proprioception: Float[Tensor, "batch numbers"] | None  # at the first frame
    labels: Float[Tensor, "batch frames labels"] | None


def draw_windows(episodes: EncodedEpisodes, batch: int, steps: int, block: int, generator: torch.Generator) -> Windows:
    """Random windows of so many blocks of actions, each as likely as another; ValueError where none is long enough."""
    span = steps * block
    begins = np.maximum(episodes.encoded_steps - span // episodes.every + 1, 0)
    if not begins.any():
        raise ValueError(f"episodes must be at least {span} steps long, got {int(episodes.lengths.max())}")
    rows, places = draw_begins(begins, batch, generator)
    return windows_at(episodes, rows, places, steps, block)


def windows_at(
    episodes: EncodedEpisodes, rows: NDArray[np.int64], places: NDArray[np.int64], steps: int, block: int
) -> Windows:
    """The windows that begin at these encoded frames of these episodes."""
    shown = places[:, None] + np.arange(steps + 1) * (block // episodes.every)
    between = places[:, None] * episodes.every + np.arange(steps * block)
    measured, labels = episodes.proprioception, episodes.labels
    return Windows(
        torch.from_numpy(episodes.latents[rows[:, None], shown]),
        torch.from_numpy(episodes.actions[rows[:, None], between]),
        None if measured is None else episodes.at(measured, rows, places),
        None if labels is None else torch.from_numpy(labels[rows[:, None], shown * episodes.every]),
    )
