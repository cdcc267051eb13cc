"""Episodes for a training: recordings, or episodes gathered in simulation before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.options import workers_for
from cli.output import Output

if TYPE_CHECKING:
    from cli.train.config import EpisodesConfig
    from simulation.episodes import EpisodeBatch
    from training.data.episodes import Episodes
    from training.data.loading import Skipped


def training_episodes(
    output: Output,
    config: EpisodesConfig,
    image_size: int,
    recorded: Path | None,
    out: Path,
    shared: Path | None = None,
    collect: Callable[..., EpisodeBatch] | None = None,
) -> tuple[Episodes, tuple[Skipped, ...]]:
    """What to train on, and recorded episodes that were left out.

    Recordings are decoded into `out`. Simulated episodes are gathered into memory, or into the folder `shared`, where
    several processes find them; `collect` is another way to gather them.
    """
    path = recorded or (Path(config.dataset) if config.dataset else None)
    if path is None:
        return _gather(output, config, image_size, shared, collect), ()
    if (path / "episodes.json").is_file():
        return _open(path), ()

    from cli.data.recordings import load_recordings

    return load_recordings(output, path, config.reading, image_size, out)


def _gather(
    output: Output,
    config: EpisodesConfig,
    image_size: int,
    shared: Path | None,
    how: Callable[..., EpisodeBatch] | None,
) -> Episodes:
    from simulation.episodes import collect, collect_to

    if shared is None:
        return as_training_episodes(_collected(output, config, image_size, how or collect))
    if not _holds(shared, config, image_size):
        shutil.rmtree(shared, ignore_errors=True)  # an earlier training's, with other settings
        _collected(output, config, image_size, partial(collect_to, shared))
    return _open(shared)


def _holds(folder: Path, config: EpisodesConfig, image_size: int) -> bool:
    """Whether the folder's episodes are those that the settings gather."""
    from simulation.episodes import open_episodes

    if not folder.exists():
        return False
    there = open_episodes(folder)
    wanted = (config.task, config.data_seed, config.episodes, config.episode_steps, image_size)
    return (there.task, there.seed, there.episodes, there.steps, there.image_size) == wanted


def _collected(
    output: Output, config: EpisodesConfig, image_size: int, how: Callable[..., EpisodeBatch]
) -> EpisodeBatch:
    with output.progress() as bars:
        bar = bars.add_task(f"gathering {config.task}", total=config.episodes)
        return how(
            config.task,
            config.episodes,
            config.episode_steps,
            config.data_seed,
            workers=workers_for(config.episodes),
            image_size=image_size,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )


def _open(folder: Path) -> Episodes:
    import numpy as np

    from simulation.episodes import open_episodes

    checked = open_episodes(folder)
    # Mapped copy-on-write: torch warns of arrays that it may not write to, though nothing here does.
    frames = np.load(folder / "frames.npy", mmap_mode="c", allow_pickle=False)
    return as_training_episodes(replace(checked, frames=frames))


def as_training_episodes(batch: EpisodeBatch) -> Episodes:
    """Recorded episodes as training sees them, with what a probe of the latents should find."""
    from training.data.episodes import Episodes

    return Episodes(
        frames=batch.frames,
        actions=batch.actions,
        action_names=batch.action_names,
        action_units=batch.action_units,
        action_low=batch.action_low,
        action_high=batch.action_high,
        rate_hz=batch.rate_hz,
        source=f"{batch.task}: {batch.episodes} episodes of {batch.steps} steps, seed {batch.seed}",
        probe_targets=_probe_targets(batch),
        proprioception=batch.proprioception,
        proprioception_names=batch.proprioception_names,
    )


def _probe_targets(batch: EpisodeBatch) -> Any:
    """Sine and cosine of each angle in turn, then positions as they are; None for a task whose state is not known."""
    import numpy as np

    from simulation.robots.cube import CUBE

    angles = {"arm": [0, 1], "arm-push": [0, 1], "cube": [], "pusht": [4], "reacher": [0, 1], "tworoom": []}.get(
        batch.task
    )
    if angles is None:
        return None
    states = batch.states
    if batch.task == "cube":
        return states[..., CUBE].astype(np.float32)
    known = {"pusht": 5, "reacher": 2}.get(batch.task, states.shape[-1])  # the rest are speeds, which no image shows
    turned = [turn(states[..., angle]) for angle in angles for turn in (np.sin, np.cos)]
    positions = [states[..., entry] for entry in range(known) if entry not in angles]
    return np.stack([*turned, *positions], axis=-1).astype(np.float32)
