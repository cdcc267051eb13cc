from __future__ import annotations

import numpy as np
import pytest

from simulation.rules import features, rules
from simulation.tasks import TASKS, make

GOAL = np.array([100.0, 100.0, 250.0, 250.0, 0.1, 0.0, 0.0])


def track(*offsets: tuple[float, float, float]) -> np.ndarray:
    """States that are off the goal by these: pusher's x, block's x (px), block's angle (degrees)."""
    states = np.repeat(GOAL[None], len(offsets), axis=0)
    for state, (pusher, block, angle) in zip(states, offsets, strict=True):
        state[0] += pusher
        state[2] += block
        state[4] += np.deg2rad(angle)
    return states


def test_push_ts_strict_rule_wants_the_block_alone_for_three_steps() -> None:
    moderate, strict = rules("pusht")
    near = (200.0, 9.0, -9.0)
    assert strict.met(track(near, near, near), GOAL)
    assert not strict.met(track(near, near, (0.0, 11.0, 0.0), near), GOAL)
    assert not moderate.met(track(near, near, near), GOAL), "which wants the pusher too"
    assert moderate.met(track((0.0, 50.0, 0.0), (10.0, 15.0, 19.0)), GOAL)
    assert not strict.met(track(), GOAL)


def test_a_cube_may_lie_on_any_of_its_faces() -> None:
    _, strict = rules("cube")
    goal = np.zeros(41)
    goal[14:17], goal[17] = (0.4, 0.0, 0.02), 1.0
    states = np.repeat(goal[None], 3, axis=0)
    states[:, 17:21] = np.cos(np.pi / 4), 0.0, np.sin(np.pi / 4), 0.0  # a quarter turn about y
    assert strict.met(states, goal)
    states[:, 17:21] = np.cos(np.deg2rad(10)), 0.0, 0.0, np.sin(np.deg2rad(10))  # 20 degrees about z
    assert not strict.met(states, goal)
    states = np.repeat(goal[None], 3, axis=0)
    states[:, 14] += 0.031
    assert not strict.met(states, goal)


def test_reachers_strict_rule_is_about_the_fingertip() -> None:
    _, strict = rules("reacher")
    goal = np.array([0.3, 1.0, 0.0, 0.0])
    close, far = goal.copy(), goal.copy()
    close[0], far[0] = 0.32, 0.36  # at 0.21 m from the shoulder to the tip
    assert strict.met(np.stack([close, close]), goal)
    assert not strict.met(np.stack([close, far, close]), goal)


def test_tasks_that_nobody_measured_otherwise_have_no_other_rule() -> None:
    assert [task for task in TASKS if not rules(task)] == ["arm", "arm-push"]


@pytest.mark.parametrize("task", ["arm", "arm-push", "pusht", "tworoom"])
def test_a_success_is_within_about_one_unit_of_its_features(task: str) -> None:
    robot, measured = make(task, 16), features(task)
    assert measured is not None
    state = robot.random_state(np.random.default_rng(0))
    robot.set_state(state)
    assert robot.is_success(state)
    assert np.allclose(measured(state[None]), measured(state[None].copy()))
    assert np.isfinite(measured(state[None])).all()
