"""The planar arm of ``simulation.robots.arm`` with a puck on the table, to be pushed to the place a goal shows.

Contact is quasi-static and without friction: the second link moves the puck out of its way, along the contact normal,
and the puck rests when nothing pushes it. The first link passes above the table and touches nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulation.robots import arm
from simulation.robots.drawing import Color, blank, draw_discs
from simulation.robots.robot import Robot

PUCK_RADIUS = 0.12  # meters
CONTACT = arm.LINK_RADII[1] + PUCK_RADIUS  # distance of the puck's center from the link's axis when they touch
# The puck's center stays between the base and a rim that the tip can reach behind, so that no push is for ever.
PUCK_RANGE = (0.24, 0.66)  # meters from the base
# With 0.075 m between their centers, two pucks of 0.12 m radius cover 60 % of each other; it is 2.4 pixels at 64.
SUCCESS_TOLERANCE = 0.075  # meters
TABLE_COLOR: Color = (229, 225, 215)
PUCK_COLOR: Color = (38, 143, 92)

_SUBSTEPS = 10  # the link moves at most 0.02 m in one, well below the 0.18 m at which it would pass the puck
_PROJECTIONS = 12
_CLEARANCE = 1e-5  # meters left between link and puck after a push
_OVERLAP = 1e-6  # meters of overlap taken for rounding
_GIVEN_OVERLAP = 2e-3  # meters of overlap accepted in a state from outside, which may have been rounded


def step_states(states: NDArray[np.float64], actions: NDArray[np.floating]) -> NDArray[np.float64]:
    """One control step of 0.1 s: ``[N, 4]`` as (q1, q2, x, y) and joint velocities ``[N, 2]`` in rad/s -> ``[N, 4]``.

    Where the puck is caught between the link and the base or the rim and cannot slide away, the arm is stopped.
    """
    velocity = np.asarray(actions, dtype=np.float64)
    joints, puck = states[:, :2], states[:, 2:]
    for _ in range(_SUBSTEPS):
        moved = arm.step_states(joints, velocity, 1.0 / (arm.RATE_HZ * _SUBSTEPS))
        pushed = _push(moved, puck)
        apart = gap(moved, pushed)
        free = ((apart >= -_OVERLAP) | (apart > gap(joints, puck)))[:, None]
        joints, puck = np.where(free, moved, joints), np.where(free, pushed, puck)
    return np.concatenate([joints, puck], axis=1)


def gap(joints: NDArray[np.float64], puck: NDArray[np.float64]) -> NDArray[np.float64]:
    """Meters ``[N]`` between the second link and the puck; negative where they overlap."""
    return np.asarray(np.linalg.norm(puck - nearest_on_link(joints, puck), axis=1) - CONTACT)


def nearest_on_link(joints: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points ``[N, 2]`` of the second link's axis nearest to ``points`` ``[N, 2]``."""
    elbow, tip = arm.joint_positions(joints)
    along = ((points - elbow) * (tip - elbow)).sum(axis=1, keepdims=True) / arm.LINK_LENGTHS[1] ** 2
    return elbow + np.clip(along, 0.0, 1.0) * (tip - elbow)


def _push(joints: NDArray[np.float64], puck: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the link leaves the puck: out of the link and within the range, by projecting onto the two in turn."""
    for _ in range(_PROJECTIONS):
        offset = puck - nearest_on_link(joints, puck)
        distance = np.linalg.norm(offset, axis=1, keepdims=True)
        inside = distance < CONTACT
        if not inside.any():
            break
        puck = np.where(inside, puck + offset * ((CONTACT + _CLEARANCE) / np.maximum(distance, 1e-9) - 1.0), puck)
        radius = np.linalg.norm(puck, axis=1, keepdims=True)
        puck = puck * (np.clip(radius, *PUCK_RANGE) / radius)
    return puck


def render_states(states: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Images ``[N, size, size, 3]``, RGB, of the arms and pucks at ``states`` ``[N, 4]``."""
    scale = size / (2 * arm.VIEW)
    empty = blank(1, size, arm.BACKGROUND)
    draw_discs(empty, np.full((1, 2), size / 2), (PUCK_RANGE[1] + PUCK_RADIUS) * scale, TABLE_COLOR)
    frames = np.repeat(empty, len(states), axis=0)
    at_once = arm.scenes_at_once(size)
    for first in range(0, len(states), at_once):
        some, canvas = states[first : first + at_once], frames[first : first + at_once]
        draw_discs(canvas, arm.to_pixels(some[:, 2:], size), PUCK_RADIUS * scale, PUCK_COLOR)
        arm.draw_arms(canvas, some[:, :2])
    return frames


def random_state(rng: np.random.Generator) -> NDArray[np.float64]:
    """A state ``[4]``: joints from the whole joint space, the puck anywhere in its range that the link leaves free."""
    while True:
        radius = np.sqrt(rng.uniform(PUCK_RANGE[0] ** 2, PUCK_RANGE[1] ** 2))
        angle = rng.uniform(-np.pi, np.pi)
        joints, puck = arm.random_state(rng), radius * np.array([np.cos(angle), np.sin(angle)])
        if gap(joints[None], puck[None])[0] > 0.02:
            return np.concatenate([joints, puck])


def successes(states: NDArray[np.float64], goals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the puck is within 0.075 m of its goal place, wherever the arm is: ``[N, 4]`` twice -> ``[N]``."""
    return np.asarray(np.linalg.norm(states[:, 2:] - goals[:, 2:], axis=1) <= SUCCESS_TOLERANCE)


class ArmPush(Robot):
    """The arm and the puck as a gymnasium environment and as a ``simulation.tasks.RobotTask``.

    State: ``[q1, q2, x, y]``, joint angles in rad and the puck's center in meters from the base. Actions and
    observations are those of ``simulation.robots.arm.Arm``: the puck is seen, never measured. Reward is always 0 and
    episodes never end by themselves.
    """

    name = "arm-push"
    rate_hz = arm.RATE_HZ
    action_names = arm.ACTION_NAMES
    action_units = arm.ACTION_UNITS
    proprioception_names = arm.PROPRIOCEPTION_NAMES
    proprioception_units = arm.PROPRIOCEPTION_UNITS

    def __init__(self, image_size: int = 64, render_mode: str | None = "rgb_array") -> None:
        super().__init__(image_size, render_mode, arm.action_space(), arm.proprioception_space())
        self._state = np.array([0.0, 0.0, -0.5, 0.0])

    @property
    def state(self) -> NDArray[np.float64]:
        """A copy of the state ``[4]``."""
        return self._state.copy()

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """What the robot measures of itself: the joint angles ``[2]`` in rad."""
        return self._state[:2].astype(np.float32)

    def set_state(self, state: NDArray[np.floating]) -> None:
        """Puts arm and puck at ``state`` ``[4]``; ValueError if it is malformed, out of range, or they overlap."""
        copy = arm.checked_state(state, 4)
        radius = float(np.linalg.norm(copy[2:]))
        if not PUCK_RANGE[0] - _GIVEN_OVERLAP <= radius <= PUCK_RANGE[1] + _GIVEN_OVERLAP:
            raise ValueError(f"state: the puck must be {PUCK_RANGE} m from the base, got {radius:.4f} m")
        if (apart := float(gap(copy[None, :2], copy[None, 2:])[0])) < -_GIVEN_OVERLAP:
            raise ValueError(f"state: the puck must not overlap the second link, but does by {-apart:.4f} m")
        self._state = copy

    def act(self, action: NDArray[np.floating]) -> None:
        """Moves for one control step of 0.1 s with joint velocities ``[2]`` in rad/s, clipped to the bounds."""
        self._state = step_states(self._state[None], arm.checked_action(action)[None])[0]

    def render_state(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        """What the camera would see at ``state``; arm and puck stay where they are."""
        return render_states(np.asarray(state, dtype=np.float64)[None], self.image_size)[0]

    def random_state(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A start: joints from the whole joint space, the puck anywhere in its range that the link leaves free."""
        return random_state(rng)

    def is_success(self, goal_state: NDArray[np.float64]) -> bool:
        """Whether the puck is within 0.075 m of its place in ``goal_state``, wherever the arm is."""
        return bool(successes(self._state[None], np.asarray(goal_state, dtype=np.float64)[None])[0])
