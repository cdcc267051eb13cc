"""Reacher: the planar two-link arm of the DeepMind Control Suite, driven by torques; MuJoCo, from the extra ``mujoco``.

The arm's model is that suite's. The task is to bring the joints to where a goal image has them, as world models are
compared by; the suite's own target ball is not shown, and there is no reward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from simulation.extras import package_folder
from simulation.robots.arm import checked_action, wrap_angle
from simulation.robots.mujoco_stage import EXTRA, load_mujoco, stage
from simulation.robots.robot import Robot

RATE_HZ = 25.0  # two physics steps of 0.02 s, as the published world models drive it
MAX_TORQUE = 0.05  # N m, each joint; against the damping it turns a joint at up to 5 rad/s
WRIST_LIMIT = float(np.deg2rad(160.0))  # rad; the shoulder turns without end
SUCCESS_TOLERANCE = 0.05  # rad, each joint

_PHYSICS_STEPS = 2
_GIVEN_OVERSHOOT = 0.3  # rad past the wrist's limit, which is soft, accepted in a state from outside
_GIVEN_SPEED = 50.0  # rad/s


def random_state(rng: np.random.Generator) -> NDArray[np.float64]:
    """A state ``[4]`` at rest, its joints drawn uniformly from the whole joint space."""
    return np.concatenate([rng.uniform([-np.pi, -WRIST_LIMIT], [np.pi, WRIST_LIMIT]), np.zeros(2)])


def successes(states: NDArray[np.float64], goals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether both joints are less than 0.05 rad from the goal's: ``[N, 4]`` twice -> ``[N]``.

    The rule of the published world models (LeWM), whatever the joints' speeds; here the shoulder's angle counts the
    shorter way round, for no image shows how often it has turned.
    """
    apart = states[:, :2] - goals[:, :2]
    apart[:, 0] = wrap_angle(apart[:, 0])
    return np.asarray((np.abs(apart) < SUCCESS_TOLERANCE).all(axis=1))


class Reacher(Robot):
    """Reacher as a gymnasium environment and as a ``simulation.tasks.RobotTask``.

    State: ``[shoulder, wrist, shoulder velocity, wrist velocity]`` in rad and rad/s; the shoulder from the x axis
    counter-clockwise and in [-pi, pi), the wrist relative to the first link. Action: ``[2]`` torques in N m within
    +-0.05, held for one step of 0.04 s. Proprioception: the state. Raises MissingSimulator without MuJoCo, the
    suite's files or an OpenGL library.
    """

    name = "reacher"
    rate_hz = RATE_HZ
    action_names = ("shoulder_torque", "wrist_torque")
    action_units = ("N m", "N m")
    proprioception_names = ("shoulder_angle", "wrist_angle", "shoulder_velocity", "wrist_velocity")
    proprioception_units = ("rad", "rad", "rad/s", "rad/s")

    def __init__(self, image_size: int = 64, render_mode: str | None = "rgb_array") -> None:
        self._mujoco = load_mujoco(self.name)
        self._model = _model()
        self._data = self._mujoco.MjData(self._model)
        self._stage = stage(self.name, _model, "fixed", image_size)
        action = Box(-MAX_TORQUE, MAX_TORQUE, (2,), np.float32)
        super().__init__(image_size, render_mode, action, Box(-np.inf, np.inf, (4,), np.float32))

    @property
    def state(self) -> NDArray[np.float64]:
        """A copy of the state ``[4]``."""
        return np.concatenate([self._data.qpos, self._data.qvel])

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """What the robot measures of itself: the joints' angles in rad and velocities in rad/s ``[4]``."""
        return self.state.astype(np.float32)

    def set_state(self, state: NDArray[np.floating]) -> None:
        """Puts the joints at ``state`` ``[4]``; ValueError if it is malformed or past the wrist's limit."""
        checked = _checked_state(state)
        self._data.qpos[:], self._data.qvel[:] = checked[:2], checked[2:]

    def act(self, action: NDArray[np.floating]) -> None:
        """Moves for one control step of 0.04 s with joint torques ``[2]`` in N m, clipped to the bounds."""
        self._data.ctrl[:] = np.clip(checked_action(action) / MAX_TORQUE, -1.0, 1.0)
        self._mujoco.mj_step(self._model, self._data, _PHYSICS_STEPS)
        self._data.qpos[0] = wrap_angle(self._data.qpos[0])

    def render(self) -> NDArray[np.uint8]:
        """The camera's image now, uint8 ``[size, size, 3]``."""
        return self._stage.picture(self._data.qpos)

    def render_state(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        """What the camera would see at ``state``; the arm itself stays where it is."""
        return self._stage.picture(_checked_state(state)[:2])

    def random_state(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A start at rest, its joints drawn uniformly from the whole joint space."""
        return random_state(rng)

    def is_success(self, goal_state: NDArray[np.float64]) -> bool:
        """Whether both joints are less than 0.05 rad from their angles in ``goal_state``, whatever their speeds."""
        return bool(successes(self.state[None], np.asarray(goal_state, dtype=np.float64)[None])[0])


@cache
def _model() -> Any:
    """The suite's model, its target hidden; read from its files, for importing the suite takes seconds."""
    mujoco = load_mujoco(Reacher.name)
    suite = package_folder("dm_control", f"{Reacher.name}: needs dm_control; {EXTRA}") / "suite"
    model = mujoco.MjModel.from_xml_path(str(suite / "reacher.xml"))
    model.geom("target").group = 5  # of those that are not drawn
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_WARMSTART  # what comes next follows from the state alone
    return model


def _checked_state(state: NDArray[np.floating]) -> NDArray[np.float64]:
    copy = np.array(state, dtype=np.float64)
    if copy.shape != (4,):
        raise ValueError(f"state: must have shape (4,), got {copy.shape}")
    if not np.isfinite(copy).all():
        raise ValueError(f"state: every value must be finite, got {copy.tolist()}")
    if abs(copy[1]) > WRIST_LIMIT + _GIVEN_OVERSHOOT:
        raise ValueError(f"state: the wrist must be within {WRIST_LIMIT:.3f} rad of straight, got {copy[1]}")
    if (np.abs(copy[2:]) > _GIVEN_SPEED).any():
        raise ValueError(f"state: velocities must be within {_GIVEN_SPEED:.0f} rad/s, got {copy[2:].tolist()}")
    copy[0] = wrap_angle(copy[0]) if not -np.pi <= copy[0] < np.pi else copy[0]
    return copy
