"""Two rooms: walls by hand, speeds that cannot tunnel, pictures, and the gymnasium contract."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from simulation.attempts import attempt
from simulation.manifest import Manifest
from simulation.policies import random_policy, tworoom_oracle
from simulation.robots import tworoom
from simulation.robots.tworoom import DOOR_Y, RADIUS, SIDE, SUCCESS_TOLERANCE, WALL_X, TwoRoom
from simulation.tasks import make

FACE = WALL_X[0] - RADIUS  # the center's x when the robot touches the wall from the left


def moved(place: tuple[float, float], target: tuple[float, float]) -> np.ndarray:
    return tworoom.moved_to(np.array([place]), np.array([target]))[0]


def test_a_free_step_goes_straight_and_its_speed_is_bounded() -> None:
    stepped = tworoom.step_states(np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[0.3, -0.2], [9.0, -9.0]]))
    np.testing.assert_allclose(stepped, [[0.53, 0.48], [0.56, 0.44]])


def test_a_wall_is_touched_and_then_followed() -> None:
    np.testing.assert_allclose(moved((0.7, 1.5), (1.0, 1.8)), [FACE, 1.8])


def test_the_door_lets_through_what_heads_for_it() -> None:
    np.testing.assert_allclose(moved((0.7, 0.7), (1.4, 0.75)), [1.4, 0.75])


def test_a_door_post_stops_what_comes_through_askew() -> None:
    """From inside the door towards the upper post: up to it, and along it out of the door."""
    np.testing.assert_allclose(moved((1.0, 0.7), (1.1, 1.2)), [1.1, DOOR_Y[1] - RADIUS])


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_no_motion_however_long_ends_in_a_wall_or_passes_through_one(scale: float) -> None:
    rng = np.random.default_rng(5)
    places = np.stack([tworoom.random_state(rng) for _ in range(2000)])
    places = places[np.abs(places[:, 0] - 1.0) >= 0.15]  # in a room, not in the door
    targets = np.clip(places + rng.normal(size=places.shape) * scale, RADIUS, SIDE - RADIUS)
    ends = tworoom.moved_to(places, targets)
    assert tworoom.is_free(ends).all()
    crossed = (places[:, 0] < 1.0) != (ends[:, 0] < 1.0)
    face = np.where(places[:, 0] < 1.0, FACE, 2.0 - FACE)
    at_door = places[:, 1] + (targets - places)[:, 1] * (face - places[:, 0]) / (targets - places)[:, 0]
    assert (at_door[crossed] > DOOR_Y[0] + RADIUS - 1e-9).all()
    assert (at_door[crossed] < DOOR_Y[1] - RADIUS + 1e-9).all()
    assert crossed.any() == (scale > 0.05)


def test_success_is_within_sixteen_of_224_pixels() -> None:
    goals = np.array([[0.5, 0.5]] * 2)
    reached = tworoom.successes(np.array([[0.5 + 0.999 * SUCCESS_TOLERANCE, 0.5], [0.5, 0.65]]), goals)
    assert reached.tolist() == [True, False]


def test_the_picture_shows_the_wall_the_door_and_the_robot() -> None:
    image = tworoom.render_states(np.array([[0.5, 1.5]]), 200)[0]  # 0.01 m a pixel, y up
    assert tuple(image[50, 50]) == tworoom.ROBOT_COLOR
    assert tuple(image[20, 100]) == tworoom.WALL_COLOR
    assert tuple(image[180, 100]) == tworoom.WALL_COLOR
    assert tuple(image[130, 100]) == tworoom.BACKGROUND  # y = 0.7, the middle of the door
    assert (image == tworoom.WALL_COLOR).all(axis=2).sum() == 10 * 150


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([1.0, 1.5], "clear of the wall"),
        ([0.05, 1.0], "on the floor"),
        ([np.nan, 1.0], "finite"),
        ([1.0], r"shape \(2,\)"),
    ],
)
def test_an_impossible_state_is_refused(state: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TwoRoom().set_state(np.array(state))


def test_a_state_rounded_into_a_wall_is_put_back_on_it() -> None:
    robot = TwoRoom()
    robot.set_state(np.array([FACE + 4e-5, 1.5]))
    np.testing.assert_array_equal(robot.state, [FACE, 1.5])


def test_the_oracle_solves_every_held_out_pair_and_chance_few() -> None:
    robot, pairs = make("tworoom", 16), Manifest.load("tworoom").pairs(200, 7)
    solved = [attempt(robot, tworoom_oracle, pair.start_state, pair.goal_state, 50).success for pair in pairs]
    lucky = [
        attempt(robot, random_policy(robot, np.random.default_rng([7, p.index])), p.start_state, p.goal_state, 50)
        for p in pairs
    ]
    assert sum(solved) >= 198
    assert sum(one.success for one in lucky) < 60


def test_the_environment_keeps_gymnasiums_contract() -> None:
    with warnings.catch_warnings():
        # actions are physical, in m/s, and not scaled to [-1, 1] as the checker advises
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space.*")
        check_env(TwoRoom(32), skip_render_check=True)
