"""The robots by name, and what every one of them offers to those who collect, evaluate or demonstrate."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulation.robots.arm import Arm
from simulation.robots.arm_push import ArmPush
from simulation.robots.cube import Cube
from simulation.robots.pusht import PushT
from simulation.robots.reacher import Reacher
from simulation.robots.tworoom import TwoRoom

TASKS = ("arm", "arm-push", "cube", "pusht", "reacher", "tworoom")


class RobotTask(Protocol):
    """A simulated robot that can be put at a state, seen, moved, and asked whether it is where a goal state says."""

    @property
    def name(self) -> str:
        """The task's name in ``TASKS``."""

    @property
    def image_size(self) -> int:
        """Height and width of the image in pixels."""

    @property
    def rate_hz(self) -> float:
        """Control steps per second."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """One name for each number of an action."""

    @property
    def action_units(self) -> tuple[str, ...]:
        """The unit of each number of an action."""

    @property
    def action_low(self) -> NDArray[np.float32]:
        """Lower bounds ``[A]`` in those units."""

    @property
    def action_high(self) -> NDArray[np.float32]:
        """Upper bounds ``[A]`` in those units."""

    @property
    def proprioception_names(self) -> tuple[str, ...]:
        """One name for each number the robot measures of itself."""

    @property
    def proprioception_units(self) -> tuple[str, ...]:
        """The unit of each of those numbers."""

    @property
    def state(self) -> NDArray[np.float64]:
        """A copy of the simulator's whole state ``[S]``: ``set_state`` to it continues exactly from there."""

    @property
    def proprioception(self) -> NDArray[np.float32]:
        """What the robot measures of itself ``[P]``."""

    def set_state(self, state: NDArray[np.floating], /) -> None:
        """Puts the simulator at a state; ValueError where the state is malformed or impossible."""

    def random_state(self, rng: np.random.Generator, /) -> NDArray[np.float64]:
        """A state to start from."""

    def render(self) -> NDArray[np.uint8]:
        """The camera's image now, RGB ``[image_size, image_size, 3]``."""

    def render_state(self, state: NDArray[np.float64], /) -> NDArray[np.uint8]:
        """The camera's image at a state; the robot itself stays where it is."""

    def act(self, action: NDArray[np.floating], /) -> None:
        """Moves for one control step with an action ``[A]``, clipped to the bounds."""

    def is_success(self, goal_state: NDArray[np.float64], /) -> bool:
        """Whether the goal is reached now, by the task's own rule."""


def make(task: str, image_size: int = 64) -> RobotTask:
    """The robot called ``task``, seen at ``image_size`` x ``image_size`` pixels; ValueError for an unknown name.

    ``pusht`` needs the extra ``sim``, ``reacher`` and ``cube`` the extra ``mujoco``
    (``simulation.extras.MissingSimulator``).
    """
    match task:
        case "arm":
            return Arm(image_size)
        case "arm-push":
            return ArmPush(image_size)
        case "cube":
            return Cube(image_size)
        case "pusht":
            return PushT(image_size)
        case "reacher":
            return Reacher(image_size)
        case "tworoom":
            return TwoRoom(image_size)
        case _:
            raise ValueError(f"task: must be one of {', '.join(TASKS)}, got {task!r}")
