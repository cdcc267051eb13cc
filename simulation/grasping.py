"""A scripted grasp: how a gripper picks up a cube and carries it, one step at a time, from positions alone.

Used to gather episodes and, without noise, as the oracle of ``cube``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HELD = 0.02  # meters between gripper and cube at which the fingers are around it
_TURNED = 0.3  # rad by which they may be turned against its faces
_CLOSED = 0.35  # of its stroke, past which the gripper has closed on a cube
_NEAR = 0.04  # meters, level, within which it is set down
_ALOFT = 0.06  # meters above the table at which a cube is carried over some way


def carry(
    gripper: NDArray[np.floating],
    cube: NDArray[np.float64],
    quaternion: NDArray[np.float64],
    target: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The next action ``[5]`` (m, m, m, rad, share of the stroke), not limited, that brings the cube to ``target``.

    ``gripper`` ``[5]`` is its place, yaw and how far it is closed; ``cube`` ``[3]`` is in m, its quaternion is (w, x,
    y, z). From above the gripper goes down around the cube, closes, and carries it, aloft where that is far.
    """
    place, closed = gripper[:3].astype(np.float64), float(gripper[4])
    turn = _turn(quaternion, float(gripper[3]))
    apart = cube - place
    if np.linalg.norm(apart) < _HELD and abs(turn) < _TURNED:
        if closed < _CLOSED:
            return np.array([*apart, 0.0, 1.0])
        ahead = target - cube
        if np.linalg.norm(ahead[:2]) > _NEAR:
            ahead[2] = max(ahead[2], _ALOFT - cube[2])
        return np.array([*ahead, 0.0, 1.0])
    level = float(np.linalg.norm(apart[:2]))
    above = float(np.clip(level, 0.07, 0.1)) if level > 0.015 or abs(turn) > _TURNED else 0.0
    return np.array([apart[0], apart[1], apart[2] + above, turn, -1.0])


def _turn(quaternion: NDArray[np.float64], yaw: float) -> float:
    """By how much the gripper must turn to face a side of the cube, within 45 degrees."""
    w, x, y, z = quaternion
    heading = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return float(np.mod(heading - yaw + np.pi / 4, np.pi / 2) - np.pi / 4)
