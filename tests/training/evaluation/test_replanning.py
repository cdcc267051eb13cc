"""The built-in arm, planned for anew at every action, without a clock: as many iterations fit as one likes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.built_in import built_in
from model.registry import load
from planner import registry
from planner.anytime import plan_in_time
from planner.receding import warm_start
from planner.types import Problem
from simulation.manifest import Manifest
from simulation.robots.arm import SUCCESS_TOLERANCE, Arm, wrap_angle
from training.evaluation.closed_loop import action_space, encode_image


@pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here")
@pytest.mark.parametrize("iterations", [2, 6])
def test_a_loop_that_replans_every_action_stays_at_its_goal(iterations: int) -> None:
    """Also where much time fits: no plan leaves the goal within a model step, to come back at its end."""
    model = load("arm", torch.device("cpu"))
    optimizer = registry.optimizer("real_time_iteration", samples=48, iterations=iterations, elites=20, horizon=5)
    (pair,) = (pair for pair in Manifest.load("arm").pairs(20, seed=1) if pair.index == 379)
    arm, space, plan, errors = Arm(), action_space(model), None, []
    goal = encode_image(model, arm.render_state(pair.goal_state))
    arm.set_state(pair.goal_state - 0.2)
    for tick in range(25):
        context = model.context([encode_image(model, arm.render())], None)
        left = None if plan is None else warm_start(plan, 1, space)
        plan = plan_in_time(optimizer, model, Problem(context, goal, space, seed=tick, warm_start=left))
        arm.act(plan.actions[0].numpy())
        errors.append(float(np.abs(wrap_angle(arm.state - pair.goal_state)).max()))
    assert max(errors[10:]) < SUCCESS_TOLERANCE / 2
