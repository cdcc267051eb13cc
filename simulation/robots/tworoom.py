"""Two rooms and a door: a round robot on a floor, seen from above, that reaches the other room through the door alone.

The physics is kinematic and is two pure functions on batches of states, ``step_states`` and ``render_states``. Contact
is continuous: a step is cut where it first touches a wall and goes on along it, so no speed carries the robot through.
The task is that of the published TwoRoom in shape and success rule; the rooms, the drawing and the data are our own.
"""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from simulation.robots.drawing import Color, blank, draw_boxes, draw_discs
from simulation.robots.robot import Robot

RATE_HZ = 10.0
SIDE = 2.0  # meters of the square floor; the origin is its lower left corner, x to the right and y up in the image
RADIUS = 0.1  # meters, of the robot
MAX_SPEED = 0.6  # m/s, each axis; 25 steps lead at most 1.5 m
WALL_X = (0.95, 1.05)  # meters; the wall stands across the whole floor but for the door
DOOR_Y = (0.45, 0.95)  # meters; the robot has 0.3 m to pass
SUCCESS_TOLERANCE = 16 / 224 * SIDE  # meters: 16 pixels of 224, as the published task has it

BACKGROUND: Color = (238, 236, 228)
WALL_COLOR: Color = (70, 76, 92)
ROBOT_COLOR: Color = (206, 62, 48)

ACTION_NAMES = ("velocity_x", "velocity_y")
ACTION_UNITS = ("m/s", "m/s")
PROPRIOCEPTION_NAMES = ("robot_x", "robot_y")
PROPRIOCEPTION_UNITS = ("m", "m")

_LOW, _HIGH = RADIUS, SIDE - RADIUS  # of the robot's center
# Where the center cannot be: the two pieces of the wall, widened by the robot's radius (corners stay square).
_BLOCKED = np.array(
    [
        [[WALL_X[0] - RADIUS, -SIDE], [WALL_X[1] + RADIUS, DOOR_Y[0] + RADIUS]],
        [[WALL_X[0] - RADIUS, DOOR_Y[1] - RADIUS], [WALL_X[1] + RADIUS, 2 * SIDE]],
    ]
)  # [pieces, low and high, axis]
_GIVEN_OVERLAP = 1e-3  # meters into a wall accepted in a state from outside, which may have been rounded
_BERTH = 0.02  # meters kept from the wall on the way round it
_BENDS = 3  # a step along two axis-parallel walls bends at most twice, and then has nowhere left to go


def step_states(states: NDArray[np.float64], actions: NDArray[np.floating]) -> NDArray[np.float64]:
    """One step of 0.1 s: places ``[N, 2]`` in m and velocities ``[N, 2]`` in m/s, clipped to the bounds -> ``[N, 2]``.

    The robot goes straight until it touches a wall and then along it with what remains of its motion.
    """
    velocity = np.clip(np.asarray(actions, dtype=np.float64), -MAX_SPEED, MAX_SPEED)
    return moved_to(states, states + velocity / RATE_HZ)


def moved_to(places: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where robots at ``places`` ``[N, 2]`` come to that move towards ``targets`` ``[N, 2]``, however far they are."""
    place, left = places, np.clip(targets, _LOW, _HIGH) - places
    for _ in range(_BENDS):
        share, axis, face = _first_contact(place, left)
        reached = place + share[:, None] * left
        hit = share < 1.0
        rows = np.flatnonzero(hit)
        reached[rows, axis[rows]] = face[rows]  # exactly on the wall: what follows along it does not touch it
        left = (1.0 - share)[:, None] * left
        left[rows, axis[rows]] = 0.0
        place = reached
        if not hit.any():
            break
    return np.clip(place, _LOW, _HIGH)  # what rounding added


def _first_contact(
    place: NDArray[np.float64], motion: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """What share of each motion ``[N, 2]`` is free (1: all), the axis that is blocked then, and the wall's coordinate.

    The slab method: along each axis, the share at which the motion enters and leaves a piece's span.
    """
    count = len(place)
    share, axis, face = np.ones(count), np.zeros(count, dtype=np.int64), np.zeros(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        for low, high in _BLOCKED:
            near, far = np.where(motion >= 0, low, high), np.where(motion >= 0, high, low)
            enters, leaves = (near - place) / motion, (far - place) / motion
            still = motion == 0
            within = (place > low) & (place < high)
            enters = np.where(still, np.where(within, -np.inf, np.inf), enters)
            leaves = np.where(still, np.where(within, np.inf, -np.inf), leaves)
            last = enters.argmax(axis=1)
            entry = enters[np.arange(count), last]
            hit = (entry >= 0) & (entry < leaves.min(axis=1)) & (entry < share)
            share = np.where(hit, entry, share)
            axis = np.where(hit, last, axis)
            face = np.where(hit, near[np.arange(count), last], face)
    return share, axis, face


def is_free(places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the robot's center can be at ``places`` ``[N, 2]``: on the floor and clear of the wall."""
    on_floor = ((places >= _LOW) & (places <= _HIGH)).all(axis=1)
    in_wall = [((places > low) & (places < high)).all(axis=1) for low, high in _BLOCKED]
    return np.asarray(on_floor & ~np.any(in_wall, axis=0))


def render_states(states: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Images ``[N, size, size, 3]``, RGB, of the rooms with the robot at ``states`` ``[N, 2]``."""
    scale = size / SIDE
    empty = blank(1, size, BACKGROUND)
    for y in ((0.0, DOOR_Y[0]), (DOOR_Y[1], SIDE)):
        corners = _to_pixels(np.array([[WALL_X[0], y[1]], [WALL_X[1], y[0]]]), size)
        draw_boxes(empty, corners[:1], corners[1:], WALL_COLOR)
    frames = np.repeat(empty, len(states), axis=0)
    draw_discs(frames, _to_pixels(states, size), RADIUS * scale, ROBOT_COLOR)
    return frames


def _to_pixels(points: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.asarray((points * np.array([1.0, -1.0]) + np.array([0.0, SIDE])) * (size / SIDE))


def random_state(rng: np.random.Generator) -> NDArray[np.float64]:
    """A place ``[2]`` drawn uniformly from where the robot can be."""
    while True:
        place = rng.uniform(_LOW, _HIGH, size=2)
        if is_free(place[None])[0]:
            return place


def waypoints(places: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where to head for ``[N, 2]`` on the way from ``places`` to ``targets``: the target itself, or the door first."""
    middle, level = sum(WALL_X) / 2, sum(DOOR_Y) / 2
    faces = WALL_X[0] - RADIUS, WALL_X[1] + RADIUS
    left, right = faces[0] - _BERTH, faces[1] + _BERTH  # the two mouths of the door
    on_left = places[:, 0] < middle
    near, far = np.where(on_left, left, right), np.where(on_left, right, left)
    in_door = [(x[:, 0] > faces[0] + _GIVEN_OVERLAP) & (x[:, 0] < faces[1] - _GIVEN_OVERLAP) for x in (places, targets)]
    passable = _level_with_door(places)
    direct = np.where(in_door[1], passable, ~in_door[0] & (on_left == (targets[:, 0] < middle)))
    # What lies at the wall is approached with the berth: a straight line along the wall might end in it.
    beside = np.where(targets[:, 0] < middle, np.minimum(targets[:, 0], left), np.maximum(targets[:, 0], right))
    across = on_left != (targets[:, 0] < middle)
    mouth = np.stack([np.where(across & passable, far, near), np.full(len(places), level)], axis=1)
    end = np.stack([np.where(in_door[1], targets[:, 0], beside), targets[:, 1]], axis=1)
    return np.where(direct[:, None], end, mouth)


def _level_with_door(places: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray((places[:, 1] > DOOR_Y[0] + RADIUS) & (places[:, 1] < DOOR_Y[1] - RADIUS))


def successes(states: NDArray[np.float64], goals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the robot is within 0.143 m (16 pixels of 224) of its goal: ``[N, 2]`` twice -> ``[N]``."""
    return np.asarray(np.linalg.norm(states - goals, axis=1) <= SUCCESS_TOLERANCE)


class TwoRoom(Robot):
    """The two rooms as a gymnasium environment and as a ``simulation.tasks.RobotTask``.

    State and proprioception: the center's place ``[x, y]`` in meters. Action: ``[2]`` velocities in m/s within +-0.6,
    held for one step of 0.1 s. Reward is always 0 and episodes never end by themselves.
    """

    name = "tworoom"
    rate_hz = RATE_HZ
    action_names = ACTION_NAMES
    action_units = ACTION_UNITS
    proprioception_names = PROPRIOCEPTION_NAMES
    proprioception_units = PROPRIOCEPTION_UNITS

    def __init__(self, image_size: int = 64, render_mode: str | None = "rgb_array") -> None:
        action, places = Box(-MAX_SPEED, MAX_SPEED, (2,), np.float32), Box(0.0, SIDE, (2,), np.float32)
        super().__init__(image_size, render_mode, action, places)
        self._state = np.array([0.5, 1.0])

    @property
    def state(self) -> NDArray[np.float64]:
        """A copy of the state ``[2]``."""
        return self._state.copy()

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """What the robot measures of itself: its place ``[2]`` in meters."""
        return self._state.astype(np.float32)

    def set_state(self, state: NDArray[np.floating]) -> None:
        """Puts the robot at ``state`` ``[2]``; ValueError if that is malformed, off the floor or in the wall."""
        self._state = _checked_state(state)

    def act(self, action: NDArray[np.floating]) -> None:
        """Moves for one control step of 0.1 s with a velocity ``[2]`` in m/s, clipped to the bounds."""
        velocity = np.array(action, dtype=np.float64)
        if velocity.shape != (2,) or not np.isfinite(velocity).all():
            raise ValueError(f"action: must be two finite numbers, got {velocity.tolist()}")
        self._state = step_states(self._state[None], velocity[None])[0]

    def render_state(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        """What the camera would see at ``state``; the robot itself stays where it is."""
        return render_states(np.asarray(state, dtype=np.float64)[None], self.image_size)[0]

    def random_state(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A start drawn uniformly from where the robot can be."""
        return random_state(rng)

    def is_success(self, goal_state: NDArray[np.float64]) -> bool:
        """Whether the robot is within 0.143 m of ``goal_state``."""
        return bool(successes(self._state[None], np.asarray(goal_state, dtype=np.float64)[None])[0])


def _checked_state(state: NDArray[np.floating]) -> NDArray[np.float64]:
    """A float64 copy that lies clear of the walls; one rounded into them is put back on their surface."""
    copy = np.array(state, dtype=np.float64)
    if copy.shape != (2,):
        raise ValueError(f"state: must have shape (2,), got {copy.shape}")
    if not np.isfinite(copy).all():
        raise ValueError(f"state: every value must be finite, got {copy.tolist()}")
    corrected = np.clip(copy, _LOW, _HIGH)
    for low, high in _BLOCKED:
        if ((corrected > low) & (corrected < high)).all():
            depths = np.concatenate([corrected - low, high - corrected])
            nearest = int(depths.argmin())
            corrected[nearest % 2] = (low if nearest < 2 else high)[nearest % 2]
    if np.abs(corrected - copy).max() > _GIVEN_OVERLAP:
        raise ValueError(f"state: the robot must be on the floor and clear of the wall, got {copy.tolist()}")
    return corrected
