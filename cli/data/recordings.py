"""Opens recordings for commands: those that `presage data collect` gathered, and a lab's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from presage.fields import from_fields

from cli.output import Output
from model.preprocessing import CropPolicy
from training.data.dataset import FRAMES_AT_ONCE, Dataset, DatasetHeader, Episode, ReadOptions

if TYPE_CHECKING:
    from simulation.episodes import EpisodeBatch
    from training.data.episodes import Episodes
    from training.data.frame_store import Skipped

SHOWN = 20  # problems told one by one on a output


class CollectedEpisodes:
    """A folder that `presage data collect` made. Satisfies `training.data.dataset.Dataset`."""

    def __init__(self, path: Path, batch: EpisodeBatch) -> None:
        self._batch = batch
        self.header = from_fields(
            DatasetHeader,
            batch,
            format="presage episodes",
            path=path,
            cameras=("camera",),
            camera="camera",
            episodes=tuple(f"episode {index}" for index in range(batch.episodes)),
        )

    def episode(self, index: int) -> Episode:
        """The numbers of one episode."""
        batch = self._batch
        name = self.header.episodes[index]
        return Episode(name, batch.steps + 1, np.array(batch.actions[index]), np.array(batch.proprioception[index]))

    def frames(self, index: int) -> Iterator[NDArray[np.uint8]]:
        """The camera's frames, in batches."""
        for first in range(0, self._batch.steps + 1, FRAMES_AT_ONCE):
            yield np.array(self._batch.frames[index, first : first + FRAMES_AT_ONCE])


def open_recordings(path: Path, options: ReadOptions) -> Dataset:
    """Whatever can be trained on, by its path. Raises DatasetError and EpisodeError."""
    if (path / "episodes.json").is_file():
        from simulation.episodes import open_episodes

        return CollectedEpisodes(path, open_episodes(path))

    from training.data.formats.opening import open_dataset

    return open_dataset(path, options)


def load_recordings(
    output: Output,
    path: Path,
    options: ReadOptions,
    image_size: int,
    store: Path,
    crop_policy: CropPolicy = "planning_antialiased",
) -> tuple[Episodes, tuple[Skipped, ...]]:
    """Episodes to train on; those that cannot be used are counted, and named on stderr with the reason."""
    from training.data.loading import load_episodes

    dataset = open_recordings(path, options)
    with output.progress() as bars:
        bar = bars.add_task(f"reading {path.name}", total=len(dataset.header.episodes))
        episodes, skipped = load_episodes(
            dataset,
            store,
            image_size,
            crop_policy,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    tell_skipped(output, skipped, f"of {len(dataset.header.episodes)} episodes")
    tell_notes(output, episodes.notes)
    return episodes, skipped


def tell_notes(output: Output, notes: Sequence[str]) -> None:
    """Say on stderr what a training goes on with."""
    for note in notes[:SHOWN]:
        output.remark(f"note: {note}")
    if len(notes) > SHOWN:
        output.remark(f"  and {len(notes) - SHOWN} more notes")


def tell_skipped(output: Output, skipped: Sequence[Skipped], what: str) -> None:
    """Name on stderr what was left out, and why."""
    if not skipped:
        return
    output.remark(f"{len(skipped)} {what} left out:")
    for entry in skipped[:SHOWN]:
        output.remark(f"  {entry.name}: {entry.reason}")
    if len(skipped) > SHOWN:
        output.remark(f"  and {len(skipped) - SHOWN} more")
