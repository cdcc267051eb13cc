from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from model.package import PlannerDefaults
from planner.cost import GoalDistance
from planner.optimizers.cem import CEM
from planner.types import ActionSpace
from simulation.manifest import Manifest
from simulation.robots.arm import ACTION_NAMES, ACTION_UNITS, MAX_JOINT_SPEED, RATE_HZ, Arm
from simulation.rules import features
from training.evaluation.true_dynamics import TrueDynamics, run_ceiling

LOW, HIGH = (-MAX_JOINT_SPEED,) * 2, (MAX_JOINT_SPEED,) * 2
SPACE = ActionSpace(ACTION_NAMES, ACTION_UNITS, LOW, HIGH, RATE_HZ)


def dynamics() -> TrueDynamics:
    compared = features("arm")
    assert compared is not None
    return TrueDynamics(Arm(16), compared, block=5)


def test_a_rollout_is_what_the_robot_does() -> None:
    world, robot = dynamics(), Arm(16)
    start = np.array([0.3, -0.4])
    actions = torch.randn(1, 3, 10, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    told = world.rollout((torch.from_numpy(start[None]),), actions)
    assert told.shape == (1, 3, 2, 4)
    for candidate in range(3):
        robot.set_state(start)
        for step, action in enumerate(actions[0, candidate].numpy(), start=1):
            robot.act(action)
            if step % 5 == 0:
                torch.testing.assert_close(told[0, candidate, step // 5 - 1], world.latent(robot.state))


def test_a_search_with_the_true_dynamics_reaches_the_arms_goals() -> None:
    search = CEM(samples=48, iterations=4, elites=6, horizon=4, cost=GoalDistance(over="least"))
    settings = replace(PlannerDefaults(), execute=5)
    pairs = Manifest.load("arm").pairs(4, seed=3)
    tries = [run_ceiling(dynamics(), search, settings, SPACE, Arm(16), pair, 1, 50) for pair in pairs]
    assert all(each.success for each in tries)
    assert max(each.steps for each in tries) <= 50
