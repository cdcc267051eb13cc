"""How episodes are gathered: exploring policies, run on a group of robots side by side.

Every random number of an episode comes from its own generator, seeded with (collection seed, episode index), so an
episode is the same whichever group or process it is gathered in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulation import arm


class Group(NamedTuple):
    """The arrays of some episodes, as in ``simulation.episodes.EpisodeBatch``."""

    frames: NDArray[np.uint8]  # [N, steps + 1, size, size, 3]
    actions: NDArray[np.float32]  # [N, steps, A]
    proprioception: NDArray[np.float32]  # [N, steps + 1, P]
    states: NDArray[np.float64]  # [N, steps + 1, S]


def episode_generators(seed: int, indices: Sequence[int]) -> list[np.random.Generator]:
    """One generator for each episode, a function of the collection's seed and the episode's index alone."""
    return [np.random.default_rng([seed, index]) for index in indices]


def smooth_commands(rng: np.random.Generator, steps: int, width: int) -> NDArray[np.float64]:
    """Random commands ``[steps, width]`` in [-1, 1]: held for 3 to 20 steps at a time, with correlated noise on top.

    Each column changes on its own. Holding makes 25 steps lead far; the noise makes the commands differ inside a block
    of a few actions, as a planner's samples do.
    """
    commands = np.empty((steps, width))
    for column in range(width):
        durations = rng.integers(3, 21, size=steps // 3 + 1)
        levels = rng.uniform(-1.0, 1.0, size=steps // 3 + 1)
        commands[:, column] = np.repeat(levels, durations)[:steps]
    noise = np.zeros(width)
    for step, kick in enumerate(rng.normal(size=(steps, width))):
        noise = 0.7 * noise + 0.2 * kick
        commands[step] += noise
    return np.clip(commands, -1.0, 1.0)


def explore_arm(seed: int, indices: Sequence[int], steps: int, image_size: int) -> Group:
    """Episodes of the arm moving smoothly at random, starting anywhere in its joint space."""
    generators = episode_generators(seed, indices)
    states = np.empty((len(indices), steps + 1, 2))
    states[:, 0] = [arm.random_state(rng) for rng in generators]
    commands = np.stack([smooth_commands(rng, steps, 2) for rng in generators]) * arm.MAX_JOINT_SPEED
    actions = np.empty((len(indices), steps, 2), dtype=np.float32)
    away = np.ones(len(indices))  # turned round at the elbow's limits: waiting there would teach nothing
    for step in range(steps):
        elbow = states[:, step, 1]
        pressing = (np.abs(elbow) >= arm.ELBOW_LIMIT) & (elbow * commands[:, step, 1] * away > 0)
        away = np.where(pressing, -away, away)
        actions[:, step, 0] = commands[:, step, 0]
        actions[:, step, 1] = commands[:, step, 1] * away
        states[:, step + 1] = arm.step_states(states[:, step], actions[:, step])
    frames = arm.render_states(states.reshape(-1, 2), image_size)
    return Group(frames.reshape(*states.shape[:2], *frames.shape[1:]), actions, states.astype(np.float32), states)


def explore(task: str, seed: int, indices: Sequence[int], steps: int, image_size: int) -> Group:
    """Gathers the episodes ``indices`` of ``task``; a plain function, so that a fresh process can run it."""
    match task:
        case "arm":
            return explore_arm(seed, indices, steps, image_size)
        case _:
            raise ValueError(f"task: no exploring policy for {task!r}")
