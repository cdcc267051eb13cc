"""Cube: OGBench's robot arm that picks up a cube and puts it elsewhere; MuJoCo, from the extra ``mujoco``.

The scene and the arm's controller are that benchmark's. The task is to bring the cube to where a goal image has it, as
world models are compared by; the benchmark's own target marker is not shown, and there is no reward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from simulation.extras import package_folder
from simulation.robots.mujoco_stage import EXTRA, load_mujoco, stage
from simulation.robots.robot import Robot

RATE_HZ = 20.0
SUCCESS_TOLERANCE = 0.04  # meters
# Of one step, by which the gripper's target is moved from where it is: meters, radians, and the share of its stroke.
ACTION_HIGH = (0.05, 0.05, 0.05, 0.3, 1.0)
WIDTH = 41  # of a state: 21 positions and 20 velocities
CUBE = slice(14, 17)  # the cube's place in a state, in meters
QUATERNION = slice(17, 21)

_POSITIONS = 21
_PHYSICS_STEPS = 25  # of 0.002 s
_GIVEN_FAR = 3.0  # meters from the origin
_GIVEN_SPEED = 100.0  # m/s and rad/s


def successes(states: NDArray[np.float64], goals: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the cube's center is within 0.04 m of the goal's, wherever the arm is: ``[N, 41]`` twice -> ``[N]``.

    The rule of the benchmark's authors and of the published world models; how the cube is turned does not count.
    """
    return np.asarray(np.linalg.norm(states[:, CUBE] - goals[:, CUBE], axis=1) <= SUCCESS_TOLERANCE)


class Cube(Robot):
    """Cube as a gymnasium environment and as a ``simulation.tasks.RobotTask``.

    State: ``[41]``, MuJoCo's positions (arm 6, gripper 8, the cube's place in m and its quaternion) and velocities.
    Action: ``[5]``, where the gripper should go relative to where it is (x, y, z in m, yaw in rad) and by how much of
    its stroke it should close, within +-0.05, 0.3 and 1, for one step of 0.05 s. Proprioception: the gripper's place,
    its yaw, and how far it is closed, 0 to 1. Raises MissingSimulator without MuJoCo, OGBench or an OpenGL library.
    """

    name = "cube"
    rate_hz = RATE_HZ
    action_names = ("gripper_dx", "gripper_dy", "gripper_dz", "gripper_dyaw", "gripper_closing")
    action_units = ("m", "m", "m", "rad", "1")
    proprioception_names = ("gripper_x", "gripper_y", "gripper_z", "gripper_yaw", "gripper_closed")
    proprioception_units = ("m", "m", "m", "rad", "1")

    def __init__(self, image_size: int = 64, render_mode: str | None = "rgb_array") -> None:
        self._mujoco = load_mujoco(self.name)
        self._scene = _scene()
        self._data = self._mujoco.MjData(self._scene.model)
        self._stage = stage(self.name, _model, "front_pixels", image_size)
        high = np.array(ACTION_HIGH, dtype=np.float32)
        proprioception = Box(-np.inf, np.inf, (5,), np.float32)
        super().__init__(image_size, render_mode, Box(-high, high, dtype=np.float32), proprioception)
        self.set_state(self.random_state(np.random.default_rng(0)))

    @property
    def state(self) -> NDArray[np.float64]:
        """A copy of the state ``[41]``."""
        return np.concatenate([self._data.qpos, self._data.qvel])

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """What the robot measures of itself: the gripper's place in m, its yaw in rad, how far it is closed ``[5]``."""
        self._scene._data = self._data
        proprioception = self._scene.compute_ob_info()
        parts = [proprioception[f"proprio/{name}"] for name in ("effector_pos", "effector_yaw", "gripper_opening")]
        return np.concatenate(parts).astype(np.float32)

    def set_state(self, state: NDArray[np.floating]) -> None:
        """Puts arm and cube at ``state`` ``[41]``; ValueError if it is malformed or far from the table."""
        checked = _checked_state(state)
        self._data.qpos[:], self._data.qvel[:] = checked[:_POSITIONS], checked[_POSITIONS:]
        self._settle()

    def act(self, action: NDArray[np.floating]) -> None:
        """Moves for one control step of 0.05 s with an action ``[5]``, clipped to the bounds."""
        wanted = np.array(action, dtype=np.float64)
        if wanted.shape != (5,) or not np.isfinite(wanted).all():
            raise ValueError(f"action: must be five finite numbers, got {wanted.tolist()}")
        self._scene._data = self._data
        self._scene.set_control(self._scene.normalize_action(np.clip(wanted, self.action_low, self.action_high)))
        self._mujoco.mj_step(self._scene.model, self._data, _PHYSICS_STEPS)
        self._settle()

    def render(self) -> NDArray[np.uint8]:
        """The camera's image now, uint8 ``[size, size, 3]``."""
        return self._stage.picture(self._data.qpos)

    def render_state(self, state: NDArray[np.float64]) -> NDArray[np.uint8]:
        """What the camera would see at ``state``; arm and cube stay where they are."""
        return self._stage.picture(_checked_state(state)[:_POSITIONS])

    def random_state(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A start like the benchmark's episodes': the gripper anywhere above the table, the cube anywhere on it."""
        scene = self._scene
        scene._data = self._mujoco.MjData(scene.model)
        scene.np_random = rng
        scene.reset()
        return np.concatenate([scene.data.qpos, scene.data.qvel])

    def is_success(self, goal_state: NDArray[np.float64]) -> bool:
        """Whether the cube's center is within 0.04 m of its place in ``goal_state``, wherever the arm is."""
        return bool(successes(self.state[None], np.asarray(goal_state, dtype=np.float64)[None])[0])

    def _settle(self) -> None:
        """Brings what is computed from the state up to date; nothing else is remembered from one step to the next."""
        self._data.qacc_warmstart[:] = 0.0
        self._mujoco.mj_forward(self._scene.model, self._data)


@cache
def _scene() -> Any:
    """The benchmark's environment, for its model and its controller; robots lend it their state while it computes."""
    load_mujoco(Cube.name)
    package_folder("ogbench", f"{Cube.name}: needs ogbench; {EXTRA}")
    from ogbench.manipspace.envs.cube_env import CubeEnv

    scene = CubeEnv("single", mode="data_collection", visualize_info=False, terminate_at_goal=False)
    scene.reset(seed=0)
    scene.model.geom("target_object_0").group = 5  # of those that are not drawn
    return scene


def _model() -> Any:
    return _scene().model


def _checked_state(state: NDArray[np.floating]) -> NDArray[np.float64]:
    copy = np.array(state, dtype=np.float64)
    if copy.shape != (WIDTH,):
        raise ValueError(f"state: must have shape ({WIDTH},), got {copy.shape}")
    if not np.isfinite(copy).all():
        raise ValueError(f"state: every value must be finite, got {copy.tolist()}")
    if np.abs(copy[CUBE]).max() > _GIVEN_FAR:
        raise ValueError(f"state: the cube must be within {_GIVEN_FAR:.0f} m of the origin, got {copy[CUBE].tolist()}")
    length = float(np.linalg.norm(copy[QUATERNION]))
    if abs(length - 1.0) > 0.01:
        raise ValueError(f"state: the cube's quaternion must be of length 1, got {length:.3f}")
    if np.abs(copy[_POSITIONS:]).max() > _GIVEN_SPEED:
        raise ValueError(f"state: velocities must be within {_GIVEN_SPEED:.0f}, got {np.abs(copy[_POSITIONS:]).max()}")
    return copy
