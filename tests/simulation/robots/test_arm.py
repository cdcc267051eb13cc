"""The planar arm: kinematics by hand, limits, wrapped angles, pictures, and the gymnasium contract."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from simulation.robots import arm
from simulation.robots.arm import Arm


def pixel_at(image: np.ndarray, point: np.ndarray) -> tuple[int, ...]:
    """The color of the image where a point of the table, in meters, lies."""
    column, row = arm.to_pixels(point[None], len(image))[0]
    return tuple(int(value) for value in image[int(row), int(column)])


@pytest.mark.parametrize(
    ("joints", "elbow", "tip"),
    [
        ([0.0, 0.0], [0.5, 0.0], [0.9, 0.0]),
        ([np.pi / 2, 0.0], [0.0, 0.5], [0.0, 0.9]),
        ([0.0, np.pi / 2], [0.5, 0.0], [0.5, 0.4]),
        ([np.pi / 2, -np.pi / 2], [0.0, 0.5], [0.4, 0.5]),
    ],
)
def test_the_joints_lie_where_trigonometry_puts_them(joints: list[float], elbow: list[float], tip: list[float]) -> None:
    found_elbow, found_tip = arm.joint_positions(np.array([joints]))
    np.testing.assert_allclose(found_elbow[0], elbow, atol=1e-12)
    np.testing.assert_allclose(found_tip[0], tip, atol=1e-12)


def test_a_step_turns_each_joint_by_velocity_times_a_tenth_of_a_second() -> None:
    moved = arm.step_states(np.array([[0.2, -0.3]]), np.array([[1.0, -0.5]]))
    np.testing.assert_allclose(moved, [[0.3, -0.35]])


def test_velocities_past_the_bounds_act_like_the_bounds() -> None:
    start = np.array([[0.2, -0.3]])
    wild = arm.step_states(start, np.array([[40.0, -9.0]]))
    bound = arm.step_states(start, np.array([[arm.MAX_JOINT_SPEED, -arm.MAX_JOINT_SPEED]]))
    np.testing.assert_array_equal(wild, bound)


def test_the_elbow_stops_at_its_limits_and_the_shoulder_goes_round() -> None:
    states = np.array([[3.1, 2.45], [-3.1, -2.45]])
    moved = arm.step_states(states, np.array([[1.5, 1.5], [-1.5, -1.5]]))
    np.testing.assert_allclose(moved[:, 1], [arm.ELBOW_LIMIT, -arm.ELBOW_LIMIT])
    np.testing.assert_allclose(moved[:, 0], [3.25 - 2 * np.pi, 2 * np.pi - 3.25])


def test_success_takes_the_shorter_way_round() -> None:
    goal = np.array([[-3.13, 0.5]])
    assert arm.successes(np.array([[3.12, 0.45]]), goal)[0]  # 0.033 rad apart through pi
    assert not arm.successes(np.array([[3.0, 0.5]]), goal)[0]
    assert not arm.successes(np.array([[-3.13, 0.61]]), goal)[0]
    assert not arm.successes(np.array([[0.01, 0.5]]), goal)[0]


def test_the_links_are_drawn_in_their_colors_where_they_are() -> None:
    state = np.array([0.7, 1.2])
    image = Arm(128).render_state(state)
    elbow, tip = (points[0] for points in arm.joint_positions(state[None]))
    assert pixel_at(image, elbow * 0.6) == arm.UPPER_COLOR
    assert pixel_at(image, elbow + 0.5 * (tip - elbow)) == arm.LOWER_COLOR
    assert pixel_at(image, tip) == arm.TIP_COLOR
    assert pixel_at(image, elbow) == arm.JOINT_COLOR
    assert pixel_at(image, np.zeros(2)) == arm.BASE_COLOR
    assert pixel_at(image, np.array([-0.5, -0.5])) == arm.BACKGROUND


def test_the_two_elbows_that_reach_one_point_look_different() -> None:
    left, right = np.array([0.0, 1.0]), np.array([0.0, -1.0])
    heading = [np.arctan2(*arm.joint_positions(state[None])[1][0][::-1]) for state in (left, right)]
    states = np.array([left - [heading[0], 0.0], right - [heading[1], 0.0]])  # both tips on the x axis
    tips = arm.joint_positions(states)[1]
    np.testing.assert_allclose(tips[0], tips[1], atol=1e-12)
    first, second = arm.render_states(states, 64).astype(int)
    assert np.count_nonzero(np.abs(first - second).max(axis=2) > 60) > 100


def test_every_turn_of_a_joint_by_the_success_tolerance_changes_the_image() -> None:
    rng = np.random.default_rng(5)
    states = np.stack([arm.random_state(rng) for _ in range(200)])
    images = arm.render_states(states, 64).astype(int)
    for turn in ([0.1, 0.0], [0.0, 0.1]):
        turned = arm.render_states(states + turn, 64).astype(int)
        assert (np.abs(images - turned).max(axis=(1, 2, 3)) > 30).all()


def test_pictures_do_not_depend_on_the_batch() -> None:
    states = np.stack([arm.random_state(np.random.default_rng(seed)) for seed in range(130)])
    together = arm.render_states(states, 32)
    for index in (0, 63, 64, 129):
        np.testing.assert_array_equal(together[index], Arm(32).render_state(states[index]))


def test_reset_to_a_state_is_exact() -> None:
    robot, state = Arm(), np.array([-2.123456789, 1.987654321])
    observation, _ = robot.reset(options={"state": state})
    np.testing.assert_array_equal(robot.state, state)
    np.testing.assert_array_equal(observation["image"], robot.render_state(state))
    np.testing.assert_array_equal(observation["proprioception"], state.astype(np.float32))


def test_the_same_seed_gives_the_same_episode() -> None:
    def episode(seed: int) -> list[np.ndarray]:
        robot = Arm(32)
        first, _ = robot.reset(seed=seed)
        actions = np.random.default_rng(1).uniform(-1.5, 1.5, size=(5, 2)).astype(np.float32)
        return [first["image"], *(robot.step(action)[0]["image"] for action in actions)]

    for one, other in zip(episode(11), episode(11), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(episode(11)[0], episode(12)[0])


@pytest.mark.parametrize(
    ("state", "rule"), [([0.0], "shape"), ([0.0, np.inf], "finite"), ([0.0, 2.6], "within 2.5 rad")]
)
def test_an_impossible_state_is_refused_by_name(state: list[float], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"state: .*{rule}"):
        Arm().set_state(np.array(state))


@pytest.mark.parametrize(("action", "rule"), [([0.0, 0.0, 0.0], "shape"), ([np.nan, 0.0], "finite")])
def test_a_malformed_action_is_refused_by_name(action: list[float], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"action: .*{rule}"):
        Arm().act(np.array(action))


def test_the_environment_keeps_gymnasiums_contract() -> None:
    with warnings.catch_warnings():
        # actions are physical, in rad/s, and not scaled to [-1, 1] as the checker advises
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space.*")
        check_env(Arm(32), skip_render_check=True)
