"""Success rules beside a task's own: stricter ones, by which published models have been measured again.

After the CLEAR-LeWM evaluation: tighter tolerances, what is handled alone, held for several steps. A task's own rule,
which counts the first hit, is the published one and is in its robot's module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from simulation.robots import cube, pusht, reacher, tworoom
from simulation.robots.arm import wrap_angle

States = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """A rule by name. `holds` takes states and goals ``[N, S]`` and says of each whether it is at its goal."""

    name: str
    holds: Callable[[States, States], NDArray[np.bool_]]
    steps: int = 1  # in a row for which it must hold

    def met(self, states: States, goal: States) -> bool:
        """Whether it held for long enough at some time; ``states`` ``[T, S]`` are those after each action."""
        held = 0
        for here in self.holds(states, np.broadcast_to(goal, states.shape).copy()) if len(states) else ():
            held = held + 1 if here else 0
            if held == self.steps:
                return True
        return False


def rules(task: str) -> tuple[Rule, ...]:
    """The rules beside the task's own, the mildest first; none for a task that nobody has measured otherwise."""
    match task:
        case "pusht":
            return (Rule("moderate", pusht.successes), Rule("strict", _block_alone, 3))
        case "cube":
            return (Rule("moderate", cube.successes), Rule("strict", _cube_placed, 3))
        case "reacher":
            return (Rule("moderate", reacher.successes), Rule("strict", _fingertip, 2))
        case "tworoom":
            return (Rule("strict", _half_as_far),)
        case _:
            return ()


def _block_alone(states: States, goals: States) -> NDArray[np.bool_]:
    """Push-T's block within 10 px and 10 degrees, wherever the pusher is."""
    apart = np.linalg.norm(states[:, 2:4] - goals[:, 2:4], axis=1)
    turned = np.abs(wrap_angle(states[:, 4] - goals[:, 4]))
    return np.asarray((apart < 10.0) & (turned < np.deg2rad(10.0)))


def _cube_placed(states: States, goals: States) -> NDArray[np.bool_]:
    """The cube within 0.03 m and 15 degrees, up to the rotations that make a cube look the same."""
    apart = np.linalg.norm(states[:, cube.CUBE] - goals[:, cube.CUBE], axis=1)
    turned = np.array([_cube_angle(*pair) for pair in zip(states, goals, strict=True)])
    return np.asarray((apart <= 0.03) & (turned <= np.deg2rad(15.0)))


def _cube_angle(state: States, goal: States) -> float:
    """The least angle, in rad, by which a cube is turned from its goal's pose."""
    relative = _rotation(state[cube.QUATERNION]).T @ _rotation(goal[cube.QUATERNION])
    cosines = [(float(np.trace(relative @ same)) - 1) / 2 for same in _SAME_CUBES]
    return float(np.arccos(np.clip(max(cosines), -1.0, 1.0)))


def _rotation(quaternion: States) -> States:
    """The rotation matrix of a quaternion (w, x, y, z)."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _same_cubes() -> list[States]:
    """The 24 proper rotations of a cube onto itself."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            turn = np.zeros((3, 3))
            turn[range(3), order] = signs
            if np.linalg.det(turn) > 0:
                found.append(turn)
    return found


_SAME_CUBES = _same_cubes()
_REACHER_LINKS = (0.12, 0.12)  # m, from shoulder to wrist and from wrist to fingertip


def _fingertip(states: States, goals: States) -> NDArray[np.bool_]:
    """Reacher's fingertip within 0.01 m of where the goal's joints put it."""
    return np.asarray(np.linalg.norm(_tip(states) - _tip(goals), axis=1) <= 0.01)


def _tip(states: States) -> States:
    shoulder, heading = states[:, 0], states[:, 0] + states[:, 1]
    upper, lower = _REACHER_LINKS
    return np.stack(
        [upper * np.cos(shoulder) + lower * np.cos(heading), upper * np.sin(shoulder) + lower * np.sin(heading)], axis=1
    )


def _half_as_far(states: States, goals: States) -> NDArray[np.bool_]:
    """TwoRoom's robot within 8 pixels of 224, half of its own rule's distance; its walls let no illegal way through."""
    return np.asarray(np.linalg.norm(states - goals, axis=1) < tworoom.SUCCESS_TOLERANCE / 2)


def features(task: str) -> Callable[[States], States] | None:
    """What a search with the true dynamics compares: states ``[N, S]`` in the units of the task's rule ``[N, F]``."""
    match task:
        case "arm":
            return lambda states: _turned(states[:, :2]) / 0.1
        case "arm-push":
            return lambda states: states[:, 2:] / 0.075
        case "cube":
            return lambda states: states[:, cube.CUBE] / cube.SUCCESS_TOLERANCE
        case "pusht":
            chord = 2 * np.sin(pusht.ANGLE_TOLERANCE / 2)
            return lambda states: np.concatenate(
                [states[:, :4] / pusht.POSITION_TOLERANCE, _turned(states[:, 4:5]) / chord], axis=1
            )
        case "reacher":
            return lambda states: _turned(states[:, :2]) / reacher.SUCCESS_TOLERANCE
        case "tworoom":
            return lambda states: states / tworoom.SUCCESS_TOLERANCE
        case _:
            return None


def _turned(angles: States) -> States:
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
