"""The action space the published V-JEPA 2-AC planner searches. Its optimizer settings are presets of `cem.CEM`."""

from __future__ import annotations

import math

from planner.types import ActionSpace


def vjepa2_ac_space(largest_step_m: float = 0.075, rate_hz: float = 4.0) -> ActionSpace:
    """End-effector steps of a Franka arm: meters per axis within a box, no rotation, gripper command -1 to 1.

    Positive gripper commands close. The box is per axis, as released; the paper calls it an L1 ball.
    """
    turn = math.pi
    return ActionSpace(
        names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
        units=("m", "m", "m", "rad", "rad", "rad", "1"),
        low=(-largest_step_m,) * 3 + (-turn,) * 3 + (-1.0,),
        high=(largest_step_m,) * 3 + (turn,) * 3 + (1.0,),
        rate_hz=rate_hz,
        frozen=(None, None, None, 0.0, 0.0, 0.0, None),
    )
