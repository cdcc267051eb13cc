"""The policies a planner is compared with, and one try at one goal."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.attempts import attempt
from simulation.exploration import smooth_commands, tip_velocity_to_joints
from simulation.manifest import Manifest
from simulation.policies import arm_oracle, oracle_policy, push_costs, random_policy
from simulation.robots import arm, arm_push
from simulation.tasks import TASKS, make


def test_the_arm_oracle_solves_nearly_all_held_out_pairs() -> None:
    robot = make("arm", 16)
    tries = [
        attempt(robot, arm_oracle, pair.start_state, pair.goal_state, 50) for pair in Manifest.load("arm").pairs(200, 0)
    ]
    assert sum(one.success for one in tries) >= 198
    assert max(one.steps for one in tries if one.success) <= 50


def test_acting_at_random_seldom_solves_a_held_out_pair() -> None:
    robot = make("arm", 16)
    tries = [
        attempt(
            robot, random_policy(robot, np.random.default_rng([1, pair.index])), pair.start_state, pair.goal_state, 50
        )
        for pair in Manifest.load("arm").pairs(200, 0)
    ]
    assert sum(one.success for one in tries) < 40


def test_the_push_oracle_solves_held_out_pairs() -> None:
    robot = make("arm-push", 16)
    tries = []
    for pair in Manifest.load("arm-push").pairs(2, 0):
        policy = oracle_policy(robot, np.random.default_rng([0, pair.index]))
        assert policy is not None
        tries.append(attempt(robot, policy, pair.start_state, pair.goal_state, 50))
    assert all(one.success for one in tries)


def test_the_arm_oracle_goes_the_shorter_way_round_but_never_through_the_elbows_limit() -> None:
    action = arm_oracle(np.array([3.0, -2.4]), np.array([-3.0, 2.4]))
    np.testing.assert_array_equal(action, np.array([1.5, 1.5], dtype=np.float32))
    np.testing.assert_allclose(arm_oracle(np.array([0.0, 0.0]), np.array([0.05, -0.02])), [0.5, -0.2], rtol=1e-6)


def test_a_try_ends_at_the_first_hit_and_counts_the_steps_before_it() -> None:
    robot = make("arm", 16)
    straight = attempt(robot, arm_oracle, np.array([0.0, 0.0]), np.array([0.5, 0.0]), 50)
    assert (straight.success, straight.steps) == (True, 3)  # 0.15 rad a step, and within 0.1 rad counts
    short = attempt(robot, arm_oracle, np.array([0.0, 0.0]), np.array([0.5, 0.0]), 2)
    assert (short.success, short.steps) == (False, 2)


def test_random_actions_fill_the_bounds_and_follow_their_generator() -> None:
    robot, nowhere = make("arm", 16), np.zeros(2)
    policy = random_policy(robot, np.random.default_rng(2))
    actions = np.stack([policy(nowhere, nowhere) for _ in range(2000)])
    assert actions.dtype == np.float32
    assert (actions >= robot.action_low).all()
    assert (actions <= robot.action_high).all()
    np.testing.assert_allclose(actions.std(axis=0), 3.0 / np.sqrt(12.0), rtol=0.05)
    again = random_policy(robot, np.random.default_rng(2))
    np.testing.assert_array_equal(again(nowhere, nowhere), actions[0])


def test_smooth_commands_stay_in_bounds_and_resemble_their_neighbors() -> None:
    commands = smooth_commands(np.random.default_rng(0), 4000, 2)
    assert np.abs(commands).max() <= 1.0
    for column in commands.T:
        assert np.corrcoef(column[:-1], column[1:])[0, 1] > 0.7
        assert abs(np.corrcoef(column[:-40], column[40:])[0, 1]) < 0.2


def test_joint_speeds_for_a_tip_velocity_move_the_tip_that_way() -> None:
    joints = np.array([[0.3, 1.2], [-2.0, -1.5]])
    wanted = np.array([[0.1, -0.05], [-0.02, 0.12]])
    speeds = tip_velocity_to_joints(joints, wanted, np.full(2, 1.5))
    moved = (arm.joint_positions(joints + 1e-5 * speeds)[1] - arm.joint_positions(joints)[1]) / 1e-5
    assert (
        np.einsum("ni,ni->n", moved, wanted) > 0.9 * np.linalg.norm(moved, axis=1) * np.linalg.norm(wanted, axis=1)
    ).all()
    fast = tip_velocity_to_joints(joints, 100.0 * wanted, np.array([1.5, 0.4]))
    np.testing.assert_allclose(np.abs(fast).max(axis=1), [1.5, 0.4])


def test_pushing_towards_the_goal_costs_less_than_pushing_away() -> None:
    state = np.array([0.0, 0.0, 0.6, arm_push.CONTACT + 0.01])
    goal = np.array([0.0, 0.0, 0.5, 0.4])
    sweeps = np.stack([np.tile([1.0, 0.0], (6, 1)), np.tile([-1.0, 0.0], (6, 1))])
    towards, away = push_costs(state, goal, sweeps)
    assert towards < away


def test_every_task_can_be_made_by_name_and_an_unknown_one_cannot() -> None:
    for task in ("arm", "arm-push"):
        assert make(task, 32).name == task
        assert make(task, 32).render().shape == (32, 32, 3)
    assert TASKS == ("arm", "arm-push", "cube", "pusht", "reacher", "tworoom")
    with pytest.raises(
        ValueError, match="task: must be one of arm, arm-push, cube, pusht, reacher, tworoom, got 'walk'"
    ):
        make("walk", 32)
