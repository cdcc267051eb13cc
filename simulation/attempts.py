"""One try at one goal: a policy acts until the goal is reached or the budget of steps is spent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulation.policies import Policy
from simulation.tasks import RobotTask


@dataclass(frozen=True)
class Attempt:
    """How a try went. Success is latched: once the goal has been reached the try is over."""

    success: bool
    steps: int  # actions taken


def attempt(
    robot: RobotTask, policy: Policy, start_state: NDArray[np.float64], goal_state: NDArray[np.float64], budget: int
) -> Attempt:
    """Resets ``robot`` to ``start_state`` and lets ``policy`` act for at most ``budget`` steps."""
    robot.set_state(start_state)
    for taken in range(budget):
        if robot.is_success(goal_state):
            return Attempt(True, taken)
        robot.act(policy(robot.state, goal_state))
    return Attempt(robot.is_success(goal_state), budget)
