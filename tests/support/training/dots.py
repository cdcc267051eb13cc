"""A world that is one moving dot, and trainings on it so small that a test may run several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from training.compact.recipe import CompactRecipe
from training.compact.train import TrainProgress, train
from training.data.episodes import Episodes

RECIPE = CompactRecipe(
    steps=6,
    batch=16,
    horizon=2,
    block=2,
    directions=64,
    latent=16,
    encoder_width=32,
    encoder_depth=1,
    predictor_width=36,
    predictor_depth=1,
    held_out=16,
    checkpoint_every=3,
    seed=1,
)


def dot_episodes(count: int = 64, steps: int = 8) -> Episodes:
    """A bright dot that moves by its action; the frame shows where it is."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-3, 3, (count, steps, 2)).astype(np.float32)
    start = rng.uniform(8, 24, (count, 1, 2))
    places = np.clip(np.concatenate([start, start + actions.cumsum(axis=1)], axis=1), 0, 31)
    return Episodes(
        frames=drawn_dots(places),
        actions=actions,
        action_names=("down", "right"),
        action_units=("px", "px"),
        action_low=(-3.0, -3.0),
        action_high=(3.0, 3.0),
        rate_hz=10.0,
        source="a dot",
        probe_targets=(places / 16 - 1).astype(np.float32),
    )


def drawn_dots(places: np.ndarray) -> np.ndarray:
    """Frames `[..., 32, 32, 3]` of a dot at `places` `[..., 2]`."""
    rows, columns = np.mgrid[0:32, 0:32]
    distance = (rows - places[..., 0, None, None]) ** 2 + (columns - places[..., 1, None, None]) ** 2
    gray = (255 * np.exp(-distance / 18)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def windy_episodes(count: int = 128, steps: int = 8) -> Episodes:
    """The dot, and a wind that no frame shows and the robot measures; a second measurement never changes."""
    rng = np.random.default_rng(0)
    still = dot_episodes(count, steps)
    wind = np.broadcast_to(rng.uniform(-1.5, 1.5, (count, 1, 1)), (count, steps + 1, 1))
    start = rng.uniform(12, 20, (count, 1, 2))
    drift = np.concatenate([wind, np.zeros_like(wind)], axis=2) * np.arange(steps + 1)[:, None]
    moved = np.concatenate([np.zeros((count, 1, 2)), 0.3 * still.actions.cumsum(axis=1)], axis=1)
    return replace(
        still,
        frames=drawn_dots(np.clip(start + moved + drift, 0, 31)),
        probe_targets=None,
        proprioception=np.concatenate([wind, np.full_like(wind, 7.0)], axis=2).astype(np.float32),
        proprioception_names=("wind", "constant"),
    )


def run(
    recipe: CompactRecipe, out: Path, stop_after: int | None = None, episodes: Episodes | None = None
) -> list[TrainProgress]:
    log: list[TrainProgress] = []

    def note(line: TrainProgress) -> None:
        log.append(line)
        if line.step == stop_after:
            raise KeyboardInterrupt

    train(recipe, episodes or dot_episodes(), "dot", out, note, provenance={"command": "test"})
    return log


def ignore(line: TrainProgress) -> None:
    """Nobody watches."""
