"""The built-in robot: a planar arm with two joints, driven by joint velocities and seen by a camera from above.

The physics is kinematic (the joints do what they are told, no momentum) and is two pure functions on batches of
states, ``step_states`` and ``render_states``; ``Arm`` is a gymnasium environment around them. It has no reward and no
end of its own: the task is a goal state, and ``is_success`` says whether it is reached.
"""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from simulation.robots.drawing import Color, blank, draw_capsules, draw_discs
from simulation.robots.robot import Robot

RATE_HZ = 10.0
LINK_LENGTHS = (0.5, 0.4)  # meters
LINK_RADII = (0.08, 0.06)  # meters, half the thickness
MAX_JOINT_SPEED = 1.5  # rad/s; 25 steps can turn a joint by up to 3.75 rad
# The first joint turns without end and its angle is kept in [-pi, pi). The second stops before the links fold onto
# each other, so both links, and with them the sign of the elbow, can always be seen.
ELBOW_LIMIT = 2.5  # rad
SUCCESS_TOLERANCE = 0.1  # rad, each joint

VIEW = 1.0  # meters from the base (the middle of the image) to each edge of the image
BACKGROUND: Color = (243, 241, 236)
BASE_COLOR: Color = (62, 66, 77)
UPPER_COLOR: Color = (44, 105, 176)
LOWER_COLOR: Color = (236, 131, 45)
JOINT_COLOR: Color = (28, 30, 36)
TIP_COLOR: Color = (196, 33, 66)
BASE_RADIUS = 0.11
JOINT_RADIUS = 0.045
TIP_RADIUS = 0.06

ACTION_NAMES = ("shoulder_velocity", "elbow_velocity")
ACTION_UNITS = ("rad/s", "rad/s")
PROPRIOCEPTION_NAMES = ("shoulder_angle", "elbow_angle")
PROPRIOCEPTION_UNITS = ("rad", "rad")


def wrap_angle(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same angle in [-pi, pi)."""
    return np.asarray(np.mod(angle + np.pi, 2 * np.pi) - np.pi)


def step_states(
    states: NDArray[np.float64], actions: NDArray[np.floating], seconds: float = 1.0 / RATE_HZ
) -> NDArray[np.float64]:
    """One step of ``seconds`` for every arm: ``[N, 2]`` angles (rad), ``[N, 2]`` velocities (rad/s) -> ``[N, 2]``.

    Velocities past the bounds are clipped; the elbow stops at its limits; the first joint wraps to [-pi, pi).
    """
    velocity = np.clip(np.asarray(actions, dtype=np.float64), -MAX_JOINT_SPEED, MAX_JOINT_SPEED)
    moved = states + velocity * seconds
    shoulder = wrap_angle(moved[:, 0])
    elbow = np.clip(moved[:, 1], -ELBOW_LIMIT, ELBOW_LIMIT)
    return np.stack([shoulder, elbow], axis=1)


def joint_positions(states: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Forward kinematics: elbow and tip, each ``[N, 2]`` as (x, y) in meters from the base; y is up in the image."""
    shoulder, heading = states[:, 0], states[:, 0] + states[:, 1]
    elbow = LINK_LENGTHS[0] * np.stack([np.cos(shoulder), np.sin(shoulder)], axis=1)
    return elbow, elbow + LINK_LENGTHS[1] * np.stack([np.cos(heading), np.sin(heading)], axis=1)


def to_pixels(points: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Table coordinates ``[N, 2]`` in meters to image coordinates (x right, y down) in pixels."""
    return (points * np.array([1.0, -1.0]) / VIEW + 1.0) * (size / 2)


def draw_arms(canvas: NDArray[np.uint8], states: NDArray[np.float64]) -> None:
    """Draws one arm into each scene of ``canvas`` ``[N, size, size, 3]``, the second link above the first."""
    size = canvas.shape[1]
    scale = size / (2 * VIEW)
    elbow, tip = joint_positions(states)
    base_at, elbow_at, tip_at = to_pixels(np.zeros_like(elbow), size), to_pixels(elbow, size), to_pixels(tip, size)
    draw_capsules(canvas, base_at, elbow_at, LINK_RADII[0] * scale, UPPER_COLOR)
    draw_discs(canvas, base_at, BASE_RADIUS * scale, BASE_COLOR)
    draw_capsules(canvas, elbow_at, tip_at, LINK_RADII[1] * scale, LOWER_COLOR)
    draw_discs(canvas, elbow_at, JOINT_RADIUS * scale, JOINT_COLOR)
    draw_discs(canvas, tip_at, TIP_RADIUS * scale, TIP_COLOR)


def scenes_at_once(size: int) -> int:
    """How many images to draw together so that the temporary arrays stay in the processor's cache."""
    return max(1, 64 * 64 * 64 // (size * size))


def render_states(states: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Images ``[N, size, size, 3]``, RGB, of the arms at ``states`` ``[N, 2]``."""
    frames = blank(len(states), size, BACKGROUND)
    at_once = scenes_at_once(size)
    for first in range(0, len(states), at_once):
        draw_arms(frames[first : first + at_once], states[first : first + at_once])
    return frames


def random_state(rng: np.random.Generator) -> NDArray[np.float64]:
    """A state ``[2]`` drawn uniformly from the whole joint space."""
    return rng.uniform([-np.pi, -ELBOW_LIMIT], [np.pi, ELBOW_LIMIT])


def successes(states: NDArray[np.float64], goals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether both joints are within 0.1 rad of the goal, the shorter way round: ``[N, 2]`` twice -> ``[N]``."""
    return np.asarray((np.abs(wrap_angle(states - goals)) <= SUCCESS_TOLERANCE).all(axis=1))


def checked_state(state: NDArray[np.floating], width: int) -> NDArray[np.float64]:
    """A float64 copy of a state from outside; ValueError unless it is ``[width]``, finite and within the limits."""
    copy = np.array(state, dtype=np.float64)
    if copy.shape != (width,):
        raise ValueError(f"state: must have shape ({width},), got {copy.shape}")
    if not np.isfinite(copy).all():
        raise ValueError(f"state: every value must be finite, got {copy.tolist()}")
    if abs(copy[1]) > ELBOW_LIMIT:
        raise ValueError(f"state: the elbow must be within {ELBOW_LIMIT} rad of straight, got {copy[1]}")
    copy[0] = wrap_angle(copy[0]) if not -np.pi <= copy[0] < np.pi else copy[0]
    return copy


def checked_action(action: NDArray[np.floating]) -> NDArray[np.float64]:
    """A float64 copy of an action; ValueError unless it is two finite numbers. Bounds are for ``step_states``."""
    copy = np.array(action, dtype=np.float64)
    if copy.shape != (2,):
        raise ValueError(f"action: must have shape (2,), got {copy.shape}")
    if not np.isfinite(copy).all():
        raise ValueError(f"action: every value must be finite, got {copy.tolist()}")
    return copy


def action_space() -> Box:
    """Joint velocities in rad/s."""
    return Box(-MAX_JOINT_SPEED, MAX_JOINT_SPEED, (2,), np.float32)


def proprioception_space() -> Box:
    """The joint angles in rad."""
    angles = np.array([np.pi, ELBOW_LIMIT], dtype=np.float32)
    return Box(-angles, angles, dtype=np.float32)


class Arm(Robot):
    """The arm as a gymnasium environment and as a ``simulation.tasks.RobotTask``.

    State: ``[q1, q2]`` in rad, q1 from the x axis counter-clockwise, q2 relative to the first link. Action: ``[2]``
    joint velocities in rad/s within +-1.5, held for one step of 0.1 s. Observation: ``image`` uint8
    ``[size, size, 3]`` RGB and ``proprioception`` float32 ``[q1, q2]``. ``reset(options={"state": ...})`` starts at
    exactly that state. Reward is always 0 and episodes never end by themselves.
    """

    name = "arm"
    rate_hz = RATE_HZ
    action_names = ACTION_NAMES
    action_units = ACTION_UNITS
    proprioception_names = PROPRIOCEPTION_NAMES
    proprioception_units = PROPRIOCEPTION_UNITS

    def __init__(self, image_size: int = 64, render_mode: str | None = "rgb_array") -> None:
        super().__init__(image_size, render_mode, action_space(), proprioception_space())
        self._state = np.zeros(2)

    @property
    def state(self) -> NDArray[np.float64]:
        """A copy of the state ``[2]``."""
        return self._state.copy()

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """What the robot measures of itself: the joint angles ``[2]`` in rad."""
        return self._state.astype(np.float32)

    def set_state(self, state: NDArray[np.floating]) -> None:
        """Puts the arm at ``state`` ``[2]``; ValueError if it is malformed or past the elbow's limits."""
        self._state = checked_state(state, 2)

    def act(self, action: NDArray[np.floating]) -> None:
        """Moves for one control step of 0.1 s with joint velocities ``[2]`` in rad/s, clipped to the bounds."""
        self._state = step_states(self._state[None], checked_action(action)[None])[0]

    def render_state(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        """What the camera would see at ``state``; the arm itself stays where it is."""
        return render_states(np.asarray(state, dtype=np.float64)[None], self.image_size)[0]

    def random_state(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A start drawn uniformly from the whole joint space."""
        return random_state(rng)

    def is_success(self, goal_state: NDArray[np.float64]) -> bool:
        """Whether both joints are within 0.1 rad of ``goal_state``, the shorter way round."""
        return bool(successes(self._state[None], np.asarray(goal_state, dtype=np.float64)[None])[0])
