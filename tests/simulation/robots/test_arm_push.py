"""The arm and the puck: contact by hand, what may never happen, pictures, and the gymnasium contract."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from simulation.robots import arm, arm_push
from simulation.robots.arm_push import CONTACT, PUCK_RANGE, ArmPush


def test_a_link_that_does_not_reach_the_puck_leaves_it_and_moves_like_the_arm_alone() -> None:
    states = np.array([[0.0, 0.0, -0.5, 0.1]])
    moved = arm_push.step_states(states, np.array([[1.0, -1.0]]))
    np.testing.assert_array_equal(moved[:, 2:], states[:, 2:])
    np.testing.assert_allclose(moved[:, :2], [[0.1, -0.1]])


def test_a_straight_sweep_pushes_the_puck_along_the_links_normal() -> None:
    """The straight arm turns from the x axis towards a puck resting against it at 0.6 m."""
    states = np.array([[0.0, 0.0, 0.6, CONTACT]])
    moved = arm_push.step_states(states, np.array([[1.0, 0.0]]))[0]
    normal = np.array([-np.sin(moved[0]), np.cos(moved[0])])
    assert moved[2:] @ normal == pytest.approx(CONTACT, abs=1e-4)  # it still touches
    # Without friction the puck only ever moves along the normals, which turn by 0.1 rad: it slides outwards a little.
    assert np.arctan2(moved[3], moved[2]) == pytest.approx(np.arctan2(CONTACT, 0.6) + 0.1, abs=0.01)
    assert moved[3] > CONTACT + 0.05


def test_a_link_moving_away_does_not_pull() -> None:
    states = np.array([[0.0, 0.0, 0.6, CONTACT + 1e-5]])
    moved = arm_push.step_states(states, np.array([[-1.5, 0.0]]))
    np.testing.assert_array_equal(moved[:, 2:], states[:, 2:])


def test_the_puck_is_never_inside_the_link_and_never_leaves_its_range() -> None:
    rng = np.random.default_rng(3)
    states = np.stack([arm_push.random_state(rng) for _ in range(300)])
    moves = 0
    for _ in range(60):
        _, tip = arm.joint_positions(states[:, :2])
        turn = np.sign(tip[:, 0] * states[:, 3] - tip[:, 1] * states[:, 2])
        towards = turn[:, None] * [1.5, 0.7]  # sweeps that meet the puck
        before, states = states, arm_push.step_states(states, towards + rng.normal(size=(300, 2)))
        assert arm_push.gap(states[:, :2], states[:, 2:]).min() >= -1e-6
        radius = np.linalg.norm(states[:, 2:], axis=1)
        assert radius.min() >= PUCK_RANGE[0] - 1e-9
        assert radius.max() <= PUCK_RANGE[1] + 1e-9
        moves += int((np.abs(states[:, 2:] - before[:, 2:]).max(axis=1) > 1e-3).sum())
    assert moves > 1000  # the sweeps did meet it


def test_a_puck_caught_against_the_rim_stops_the_arm() -> None:
    """The second link, across the way out, straightens the arm: the puck ahead of its middle can only go outwards."""
    joints = np.array([[0.0, 2.0]])
    elbow, tip = arm.joint_positions(joints)
    middle = 0.5 * (elbow + tip)[0]
    across = np.array([-(tip - elbow)[0, 1], (tip - elbow)[0, 0]]) / arm.LINK_LENGTHS[1]
    outwards = across if across @ middle > 0 else -across
    state = np.concatenate([joints[0], middle + outwards * CONTACT])[None]
    for _ in range(40):
        state = arm_push.step_states(state, np.array([[0.0, -1.5]]))
        assert arm_push.gap(state[:, :2], state[:, 2:])[0] >= -1e-6
    assert np.linalg.norm(state[0, 2:]) == pytest.approx(PUCK_RANGE[1], abs=1e-3)
    np.testing.assert_array_equal(arm_push.step_states(state, np.array([[0.0, -1.5]])), state)
    backed = arm_push.step_states(state, np.array([[0.0, 1.5]]))
    np.testing.assert_allclose(backed - state, [[0.0, 0.15, 0.0, 0.0]], atol=1e-12)  # and lets it go back


def test_a_batch_moves_each_robot_as_it_would_alone() -> None:
    rng = np.random.default_rng(8)
    states = np.stack([arm_push.random_state(rng) for _ in range(40)])
    actions = rng.uniform(-1.5, 1.5, size=(15, 40, 2))
    together = states
    for action in actions:
        together = arm_push.step_states(together, action)
    for index in range(40):
        alone = states[index : index + 1]
        for action in actions:
            alone = arm_push.step_states(alone, action[index : index + 1])
        np.testing.assert_allclose(alone[0], together[index], atol=1e-9)


def test_success_asks_for_the_puck_alone() -> None:
    goal = np.array([[0.0, 0.0, 0.3, 0.4]])
    assert arm_push.successes(np.array([[2.0, -1.0, 0.34, 0.46]]), goal)[0]  # 0.072 m away
    assert not arm_push.successes(np.array([[0.0, 0.0, 0.3, 0.48]]), goal)[0]


def test_the_puck_is_drawn_where_it_is_and_under_the_arm() -> None:
    image = ArmPush(128).render_state(np.array([0.0, 0.0, -0.2, 0.5]))
    column, row = arm.to_pixels(np.array([[-0.2, 0.5]]), 128)[0]
    assert tuple(image[int(row), int(column)]) == arm_push.PUCK_COLOR
    hidden = ArmPush(128).render_state(np.array([0.0, 2.4, 0.3, 0.0]))  # below the first link, which passes above
    column, row = arm.to_pixels(np.array([[0.3, 0.0]]), 128)[0]
    assert tuple(hidden[int(row), int(column)]) == arm.UPPER_COLOR
    green = hidden[..., 1].astype(int) - hidden.max(axis=2, where=[True, False, True], initial=0) > 30
    assert green[: int(row)].sum() > 8  # and still shows on both sides of it
    assert green[int(row) + 1 :].sum() > 8


def test_reset_to_a_state_is_exact() -> None:
    robot, state = ArmPush(), np.array([1.0123456789, -0.5, 0.4, -0.3])
    observation, _ = robot.reset(options={"state": state})
    np.testing.assert_array_equal(robot.state, state)
    np.testing.assert_array_equal(observation["image"], robot.render())
    assert observation["proprioception"].shape == (2,)


@pytest.mark.parametrize(
    ("state", "rule"),
    [
        ([0.0, 0.0, 0.5], "shape"),
        ([0.0, 0.0, 0.05, 0.05], "from the base"),
        ([0.0, 0.0, 0.0, 0.9], "from the base"),
        ([0.0, 0.0, 0.6, 0.1], "overlap"),
    ],
)
def test_an_impossible_state_is_refused_by_name(state: list[float], rule: str) -> None:
    with pytest.raises(ValueError, match=rf"state: .*{rule}"):
        ArmPush().set_state(np.array(state))


def test_the_environment_keeps_gymnasiums_contract() -> None:
    with warnings.catch_warnings():
        # actions are physical, in rad/s, and not scaled to [-1, 1] as the checker advises
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space.*")
        check_env(ArmPush(32), skip_render_check=True)
