"""Cube: exact resets, the gripper, pictures and the success rule by hand. Needs the extra ``mujoco`` and OpenGL."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from simulation import extras
from simulation.attempts import attempt
from simulation.exploration import explore_cube, explore_cube_unseen
from simulation.extras import MissingSimulator
from simulation.grasping import carry
from simulation.manifest import Manifest
from simulation.policies import cube_oracle, random_policy
from simulation.robots import cube
from simulation.robots.cube import CUBE, Cube
from tests.support.simulation.simulators import require

UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def robot() -> Cube:
    require("cube")
    return Cube(64)


def start(robot: Cube, seed: int = 3) -> np.ndarray:
    return robot.random_state(np.random.default_rng(seed))


def test_success_is_four_centimeters_however_the_cube_is_turned() -> None:
    goal = np.zeros((1, cube.WIDTH))
    moved = np.ones((1, cube.WIDTH))
    moved[0, CUBE] = [0.0, 0.024, 0.0319]  # 0.0399 m
    assert cube.successes(moved, goal)[0]
    moved[0, CUBE] = [0.0, 0.024, 0.0321]  # 0.0401 m
    assert not cube.successes(moved, goal)[0]


def test_what_follows_a_state_is_told_by_the_state_alone(robot: Cube) -> None:
    robot.set_state(start(robot))
    np.testing.assert_array_equal(robot.state, start(robot))
    passed = []
    actions = np.random.default_rng(1).uniform(robot.action_low, robot.action_high, size=(12, 5))
    for action in actions:
        passed.append(robot.state)
        robot.act(action)
    other = Cube(64)
    other.set_state(passed[5])
    for action in actions[5:]:
        other.act(action)
    np.testing.assert_array_equal(other.state, robot.state)
    np.testing.assert_array_equal(other.proprioception, robot.proprioception)


@pytest.mark.parametrize(("axis", "sign"), [(0, 1.0), (1, 1.0), (2, -1.0)])
def test_the_gripper_goes_where_an_action_points_and_no_faster_than_the_bounds(
    robot: Cube, axis: int, sign: float
) -> None:
    ends = []
    for length in (0.05, 0.7):
        robot.set_state(start(robot))
        action = np.zeros(5)
        action[axis] = sign * length
        before = robot.proprioception
        for _ in range(4):
            robot.act(action)
        ends.append(robot.proprioception - before)
    np.testing.assert_array_equal(ends[0], ends[1])
    assert sign * ends[0][axis] > 0.03
    assert np.abs(np.delete(ends[0][:3], axis)).max() < 0.3 * abs(ends[0][axis])


def test_the_gripper_closes_and_opens(robot: Cube) -> None:
    robot.set_state(start(robot))
    told = []
    for closing in (1.0, -1.0):
        for _ in range(12):
            robot.act(np.array([0.0, 0.0, 0.0, 0.0, closing]))
        told.append(float(robot.proprioception[4]))
    assert told[0] > 0.9
    assert told[1] < 0.1


def test_a_picture_is_a_function_of_the_state_and_shows_the_cube(robot: Cube) -> None:
    state = start(robot)
    robot.set_state(state)
    image = robot.render_state(state)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(Cube(64).render_state(state), robot.render())
    aside = state.copy()
    aside[CUBE] = [0.5, 0.25, 0.02]
    other = robot.render_state(aside)
    np.testing.assert_array_equal(robot.state, state)

    def reddish(picture: np.ndarray) -> np.ndarray:
        red, green, blue = np.moveaxis(picture.astype(int), 2, 0)
        return np.argwhere((red > 2 * green) & (red > 2 * blue) & (red > 80))

    assert 0 < len(reddish(other)) < 100  # one cube, and no marker beside it
    assert abs(reddish(other).mean(axis=0) - reddish(image).mean(axis=0)).max() > 4


def test_the_rule_goes_above_the_cube_then_around_it_then_closes_then_carries() -> None:
    cube_at, target = np.array([0.4, 0.1, 0.02]), np.array([0.5, -0.2, 0.02])

    def action(place: tuple[float, float, float], closed: float, yaw: float = 0.0) -> np.ndarray:
        return carry(np.array([*place, yaw, closed]), cube_at, UPRIGHT, target)

    np.testing.assert_allclose(action((0.3, 0.1, 0.3), 0.0), [0.1, 0.0, -0.18, 0.0, -1.0])
    np.testing.assert_allclose(action((0.4, 0.1, 0.1), 0.0), [0.0, 0.0, -0.08, 0.0, -1.0], atol=1e-12)
    np.testing.assert_allclose(action((0.4, 0.1, 0.02), 0.1), [0.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(action((0.4, 0.1, 0.02), 0.5), [0.1, -0.3, 0.04, 0.0, 1.0])
    assert action((0.4, 0.1, 0.02), 0.0, yaw=np.pi / 2)[4] == 1.0  # any two sides of the cube will do
    np.testing.assert_allclose(action((0.4, 0.1, 0.02), 0.0, yaw=0.6)[3], -0.6)


def test_the_oracle_solves_held_out_pairs_and_chance_does_not(robot: Cube) -> None:
    pairs = Manifest.load("cube").pairs(20, 0)
    tries = [attempt(robot, cube_oracle(robot), pair.start_state, pair.goal_state, 50) for pair in pairs]
    assert sum(one.success for one in tries) >= 17
    solved = 0
    for pair in pairs:
        policy = random_policy(robot, np.random.default_rng([1, pair.index]))
        solved += attempt(robot, policy, pair.start_state, pair.goal_state, 50).success
    assert solved < 8


def test_exploring_moves_the_cube_and_follows_its_seed(robot: Cube) -> None:
    _, _, states = explore_cube_unseen(3, range(8), 50)
    assert (np.linalg.norm(np.ptp(states[..., CUBE], axis=1), axis=1) > 0.05).sum() >= 4
    group = explore_cube(3, range(3), 12, 16)
    assert (np.abs(group.actions) <= robot.action_high).all()
    robot.set_state(group.states[2, 10])
    np.testing.assert_array_equal(robot.proprioception, group.proprioception[2, 10])
    robot.act(group.actions[2, 10])
    np.testing.assert_array_equal(robot.state, group.states[2, 11])
    np.testing.assert_array_equal(Cube(16).render_state(group.states[2, 11]), group.frames[2, 11])
    for one, other in zip(explore_cube(3, [2], 12, 16), group, strict=True):
        np.testing.assert_array_equal(one[0], other[2])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({0: np.nan}, "every value must be finite"),
        ({14: 40.0}, "the cube must be within 3 m"),
        ({17: 3.0, 18: 3.0}, "quaternion must be of length 1"),
        ({30: 1e6}, "velocities must be within 100"),
    ],
)
def test_an_impossible_state_is_refused_by_name(robot: Cube, change: dict[int, float], rule: str) -> None:
    state = start(robot)
    for index, value in change.items():
        state[index] = value
    with pytest.raises(ValueError, match=f"state: .*{rule}"):
        robot.set_state(state)


def test_the_environment_keeps_gymnasiums_contract(robot: Cube) -> None:
    with warnings.catch_warnings():
        # actions are physical, in m and rad, and places have no bounds; the checker advises otherwise
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space.*")
        warnings.filterwarnings("ignore", ".*A Box observation space (min|max)imum value is.*infinity.*")
        check_env(Cube(16), skip_render_check=True)


def test_without_ogbench_the_error_says_what_to_install(robot: Cube, monkeypatch: pytest.MonkeyPatch) -> None:
    found = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == "ogbench" else found(name))
    with pytest.raises(MissingSimulator, match=r"^cube: needs ogbench; install the extra 'mujoco'"):
        cube._scene.__wrapped__()
