"""Push-T: exact resets, relative actions, pictures, and the success rule by hand. Needs the extra ``sim``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from simulation.attempts import attempt
from simulation.extras import MissingSimulator
from simulation.manifest import OFFSETS, Manifest
from simulation.policies import PushTReplay, oracle_policy
from simulation.robots import pusht
from simulation.robots.pusht import PushT

needs_simulator = pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="gym-pusht is not installed")
pytestmark = [  # pygame reads its resources through pkg_resources where setuptools still has it
    pytest.mark.filterwarnings("ignore:.*pkg_resources:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pkg_resources:UserWarning"),
]
STATE = np.array([120.5, 300.25, 260.0, 240.0, 0.8, 30.0, -12.0])


def test_success_is_a_joint_distance_below_20_px_and_an_angle_below_20_degrees() -> None:
    goal = np.array([[100.0, 100.0, 200.0, 200.0, 3.1, 0.0, 0.0]])

    def moved(pusher: float, block: float, degrees: float) -> bool:
        change = np.array([[pusher, 0.0, 0.0, block, np.deg2rad(degrees), 500.0, 500.0]])
        return bool(pusht.successes(goal + change, goal)[0])

    assert moved(0.0, 0.0, 0.0)
    assert moved(14.0, 14.0, 19.9)  # 19.8 px together
    assert not moved(14.2, 14.2, 0.0)  # 20.1 px together, though each is near
    assert not moved(20.0, 0.0, 0.0)  # less than, not at most
    assert not moved(0.0, 0.0, 20.1)
    assert moved(0.0, 0.0, 355.0)  # the shorter way round


def test_the_blocks_center_turns_with_it() -> None:
    states = np.array([[0, 0, 200, 200, 0, 0, 0], [0, 0, 200, 200, np.pi / 2, 0, 0]], dtype=float)
    np.testing.assert_allclose(pusht.block_centers(states), [[200, 245], [155, 200]])


@needs_simulator
def test_reset_to_a_state_is_exact() -> None:
    robot = PushT(64)
    robot.reset(options={"state": STATE})
    np.testing.assert_allclose(robot.state, STATE, rtol=0, atol=1e-10)
    np.testing.assert_allclose(robot.proprioception, [120.5, 300.25, 30.0, -12.0])


@needs_simulator
def test_the_same_state_and_actions_give_the_same_states() -> None:
    robot, actions = PushT(64), np.random.default_rng(0).uniform(-60, 100, size=(12, 2))
    runs = []
    for _ in range(2):
        robot.set_state(STATE)
        for action in actions:
            robot.act(action)
        runs.append(robot.state)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.linalg.norm(runs[0][2:4] - STATE[2:4]) > 5.0  # the block was met


@needs_simulator
def test_an_action_draws_the_pusher_to_where_it_points_from_itself() -> None:
    robot = PushT(64)
    robot.set_state(np.array([100.0, 400.0, 400.0, 100.0, 0.0, 0.0, 0.0]))
    first = robot.state[:2]
    robot.act(np.array([40.0, -20.0]))
    way, speed = 0.0, 0.0  # the simulator's own controller, 10 steps of 0.01 s
    for _ in range(10):
        speed += (100.0 * (1.0 - way) - 20.0 * speed) * 0.01
        way += speed * 0.01
    np.testing.assert_allclose(robot.state[:2] - first, [40.0 * way, -20.0 * way], atol=1e-9)
    for _ in range(40):
        robot.act(np.zeros(2))
    np.testing.assert_allclose(robot.state[5:], 0.0, atol=1.0)


@needs_simulator
def test_actions_past_the_bounds_act_like_the_bounds() -> None:
    places = []
    for action in ([900.0, 0.0], [100.0, 0.0]):
        robot = PushT(64)
        robot.set_state(STATE)
        robot.act(np.array(action))
        places.append(robot.state)
    np.testing.assert_array_equal(places[0], places[1])


@needs_simulator
@pytest.mark.parametrize("size", [64, 96, 224])
def test_a_picture_is_a_function_of_the_state(size: int) -> None:
    robot = PushT(size)
    robot.set_state(STATE)
    for action in np.random.default_rng(0).uniform(-60, 100, size=(8, 2)):
        robot.act(action)
    image, before = robot.render(), robot.state
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert not np.array_equal(robot.render_state(STATE), image)
    np.testing.assert_array_equal(robot.state, before)
    np.testing.assert_array_equal(PushT(size).render_state(before), image)


@needs_simulator
@pytest.mark.parametrize(
    ("change", "rule"), [({0: np.nan}, "finite"), ({1: -5.0}, "pusher must be within"), ({2: 700.0}, "block's center")]
)
def test_an_impossible_state_is_refused_by_name(change: dict[int, float], rule: str) -> None:
    state = STATE.copy()
    for index, value in change.items():
        state[index] = value
    with pytest.raises(ValueError, match=rule):
        PushT(64).set_state(state)


@needs_simulator
def test_the_environment_keeps_gymnasiums_contract() -> None:
    with warnings.catch_warnings():
        # actions are physical, in px, and velocities have no bounds; the checker advises otherwise
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space.*")
        warnings.filterwarnings("ignore", ".*A Box observation space (min|max)imum value is.*infinity.*")
        check_env(PushT(32), skip_render_check=True)


def test_without_gym_pusht_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(MissingSimulator, match=r"install the extra 'sim'"):
        PushT(64)


def test_importing_the_simulation_loads_no_simulator_and_sets_no_video_driver() -> None:
    program = (
        "import os, sys; import simulation.tasks, simulation.episodes, simulation.manifest\n"
        "assert not {'pygame', 'pymunk', 'gym_pusht', 'cv2', 'torch'} & sys.modules.keys()\n"
        "assert 'SDL_VIDEODRIVER' not in os.environ\n"
    )
    environment = {"PATH": "", "PYTHONPATH": ":".join(path or "." for path in sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@needs_simulator
@pytest.mark.parametrize("offset", OFFSETS)
def test_the_oracle_repeats_what_led_to_held_out_goals_and_then_stays(offset: int) -> None:
    robot, manifest = PushT(16), Manifest.load("pusht", offset)
    pairs = manifest.pairs(10, 0)
    tries = []
    for pair in pairs:
        policy = oracle_policy(robot, np.random.default_rng(0))
        assert policy is not None
        tries.append(attempt(robot, policy, pair.start_state, pair.goal_state, offset + 1))
    assert all(one.success for one in tries)
    assert manifest.actions is not None
    repeated = oracle_policy(robot, np.random.default_rng(0))
    assert repeated is not None
    first = [repeated(robot.state, pairs[0].goal_state) for _ in range(offset + 1)]
    np.testing.assert_array_equal(first, [*manifest.actions[pairs[0].index].astype(np.float32), [0.0, 0.0]])


def test_the_oracle_knows_no_goals_but_the_held_out_ones() -> None:
    with pytest.raises(ValueError, match="goal_state: must be one of the manifests of pusht"):
        PushTReplay()(STATE, STATE)
