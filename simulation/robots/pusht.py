"""Push-T: a round pusher moves a T-shaped block on a table; the physics is gym-pusht's, from the extra ``sim``.

This wraps that environment for goals given as images: it resets to a state, acts relative to the pusher, draws at any
size, and judges success by the rule that world models are compared with. It has no goal region and no reward.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from simulation.extras import MissingSimulator
from simulation.robots.robot import Robot

SIDE = 512.0  # px, the simulator's own length; the walls are 5 px inside the edges
RATE_HZ = 10.0
# An action is where the pusher should go, relative to where it is. It gets about a quarter of the way in its first
# step from rest; 100 px is the scale that published Push-T world models use.
MAX_DISPLACEMENT = 100.0  # px, each axis
POSITION_TOLERANCE = 20.0  # px, pusher and block together
ANGLE_TOLERANCE = np.pi / 9  # 20 degrees

_BLOCK_CENTER = np.array([0.0, 45.0])  # the block's center of mass from its origin, the middle of the bar's far edge
_APART = [450.0, 450.0, 150.0, 150.0, 0.0]  # pusher and block well clear of each other


def block_centers(states: NDArray[np.float64]) -> NDArray[np.float64]:
    """The block's center of mass ``[N, 2]`` in px, of states ``[N, 7]``."""
    cos, sin = np.cos(states[:, 4]), np.sin(states[:, 4])
    x, y = _BLOCK_CENTER
    return states[:, 2:4] + np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)


def random_state(rng: np.random.Generator) -> NDArray[np.float64]:
    """A state ``[7]``: the block anywhere clear of the walls, at any angle; the pusher anywhere clear of the block."""
    while True:
        pusher, center = rng.uniform(40.0, SIDE - 40.0, size=2), rng.uniform(110.0, SIDE - 110.0, size=2)
        angle = rng.uniform(-np.pi, np.pi)
        state = np.array([*pusher, 0.0, 0.0, angle, 0.0, 0.0])
        state[2:4] = center - block_centers(state[None])[0]
        if np.linalg.norm(pusher - center) > 100.0:
            return state


def successes(states: NDArray[np.float64], goals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether pusher and block are where the goal has them: ``[N, 7]`` twice -> ``[N]``.

    The rule of the published world models (DINO-WM, LeWM): the distance between the two (pusher x, y, block x, y) is
    less than 20 px, and the block's angles differ by less than 20 degrees, here the shorter way round.
    """
    distance = np.linalg.norm(states[:, :4] - goals[:, :4], axis=1)
    angle = np.abs(np.mod(states[:, 4] - goals[:, 4] + np.pi, 2 * np.pi) - np.pi)
    return np.asarray((distance < POSITION_TOLERANCE) & (angle < ANGLE_TOLERANCE))


class PushT(Robot):
    """Push-T as a gymnasium environment and as a ``simulation.tasks.RobotTask``.

    State: ``[pusher x, y, block x, y, block angle, pusher velocity x, y]`` in px, rad and px/s; x to the right and y
    down. Put at a state, the block is at rest and the simulator remembers no contact, so a push cut in two by
    ``set_state`` can differ from one that is not by a pixel or so. Action: ``[2]``, where the pusher should go relative
    to where it is, in px within +-100. Proprioception: the pusher's position and velocity ``[4]``.
    """

    name = "pusht"
    rate_hz = RATE_HZ
    action_names = ("displacement_x", "displacement_y")
    action_units = ("px", "px")
    proprioception_names = ("pusher_x", "pusher_y", "pusher_velocity_x", "pusher_velocity_y")
    proprioception_units = ("px", "px", "px/s", "px/s")

    def __init__(self, image_size: int = 96, render_mode: str | None = "rgb_array") -> None:
        action = Box(-MAX_DISPLACEMENT, MAX_DISPLACEMENT, (2,), np.float32)
        super().__init__(image_size, render_mode, action, Box(-np.inf, np.inf, (4,), np.float32))
        self._world = _simulator(image_size)
        # All pictures are taken in a second world that never runs: the first would draw its contacts into them, and an
        # image is to be a function of the state alone.
        self._stage = _simulator(image_size)
        self._stage.reset(options={"reset_to_state": _APART})
        self.set_state(np.array([*_APART, 0.0, 0.0]))

    @property
    def state(self) -> NDArray[np.float64]:
        """A copy of the state ``[7]``, the angle in [-pi, pi)."""
        pusher, block = self._world.agent, self._world.block
        angle = np.mod(block.angle + np.pi, 2 * np.pi) - np.pi
        return np.array([*pusher.position, *block.position, angle, *pusher.velocity])

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """What the robot measures of itself: the pusher's position in px and velocity in px/s ``[4]``."""
        return self.state[[0, 1, 5, 6]].astype(np.float32)

    def set_state(self, state: NDArray[np.floating]) -> None:
        """Puts pusher and block at ``state`` ``[7]``; ValueError if it is malformed or off the table."""
        checked = _checked_state(state)
        self._world.reset(options={"reset_to_state": _APART})  # begins a new world: no contact is remembered
        _place(self._world, checked)

    def act(self, action: NDArray[np.floating]) -> None:
        """Moves for one control step of 0.1 s towards a place ``[2]`` px from the pusher, clipped to the bounds."""
        displacement = np.array(action, dtype=np.float64)
        if displacement.shape != (2,) or not np.isfinite(displacement).all():
            raise ValueError(f"action: must be two finite numbers, got {displacement.tolist()}")
        limited = np.clip(displacement, -MAX_DISPLACEMENT, MAX_DISPLACEMENT)
        self._world.step(np.clip(np.array(self._world.agent.position) + limited, 0.0, SIDE))

    def render(self) -> NDArray[np.uint8]:
        """The camera's image now, uint8 ``[size, size, 3]``."""
        return self._picture(self.state)

    def render_state(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        """What the camera would see at ``state``; pusher and block stay where they are."""
        return self._picture(_checked_state(state))

    def random_state(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A start with the block anywhere clear of the walls and the pusher anywhere clear of the block."""
        return random_state(rng)

    def is_success(self, goal_state: NDArray[np.float64]) -> bool:
        """Whether pusher and block together are within 20 px of their places and the block within 20 degrees."""
        return bool(successes(self.state[None], np.asarray(goal_state, dtype=np.float64)[None])[0])

    def _picture(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        _place(self._stage, state)
        return np.asarray(self._stage._render(), dtype=np.uint8)  # render() would take a size of its own


def _simulator(image_size: int) -> Any:
    try:
        from gym_pusht.envs.pusht import PushTEnv
    except ImportError as error:
        raise MissingSimulator("pusht: needs gym-pusht; install the extra 'sim' (pip install -e '.[sim]')") from error
    return PushTEnv(obs_type="state", observation_width=image_size, observation_height=image_size)


def _checked_state(state: NDArray[np.floating]) -> NDArray[np.float64]:
    copy = np.array(state, dtype=np.float64)
    if copy.shape != (7,):
        raise ValueError(f"state: must have shape (7,), got {copy.shape}")
    if not np.isfinite(copy).all():
        raise ValueError(f"state: every value must be finite, got {copy.tolist()}")
    for name, place in (("pusher", copy[:2]), ("block's center", block_centers(copy[None])[0])):
        if (place < 0.0).any() or (place > SIDE).any():
            raise ValueError(f"state: the {name} must be within 0 and {SIDE:.0f} px, got {place.tolist()}")
    return copy


def _place(simulator: Any, state: NDArray[np.float64]) -> None:
    """Moves the bodies to a state. The simulator's own way there sets the angle last, and so moves the block."""
    pusher, block = simulator.agent, simulator.block
    pusher.position, pusher.velocity = state[:2].tolist(), state[5:].tolist()
    block.angle = float(state[4])
    block.position = state[2:4].tolist()
    block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
    for body in (pusher, block):
        simulator.space.reindex_shapes_for_body(body)  # they are drawn where they were indexed
