"""Reacher: exact resets, torques, pictures and the success rule by hand. Needs the extra ``mujoco`` and OpenGL."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from simulation.attempts import attempt
from simulation.exploration import explore_reacher
from simulation.extras import MissingSimulator, package_folder
from simulation.manifest import Manifest
from simulation.policies import random_policy, reacher_oracle
from simulation.robots import mujoco_stage, reacher
from simulation.robots.reacher import MAX_TORQUE, WRIST_LIMIT, Reacher
from tests.support.simulation.simulators import require

STATE = np.array([2.9, -1.2, 3.0, -2.0])
LINKS = (0.12, 0.12)  # meters, from joint to joint and from the wrist to the fingertip's center


@pytest.fixture
def robot() -> Reacher:
    require("reacher")
    return Reacher(64)


def pixel_at(image: np.ndarray, meters: np.ndarray) -> tuple[int, ...]:
    """The color where the camera, 0.74 m above the arm and 45 degrees wide, sees a point beside the base."""
    size = len(image)
    across, down = (0.5 + meters * np.array([1.0, -1.0]) / (2 * 0.74 * np.tan(np.pi / 8))) * size
    return tuple(int(value) for value in image[int(down), int(across)])


def test_success_is_less_than_a_twentieth_of_a_radian_at_each_joint_at_any_speed() -> None:
    goal = np.array([[3.1, -1.0, 0.0, 0.0]])

    def moved(shoulder: float, wrist: float) -> bool:
        return bool(reacher.successes(goal + np.array([[shoulder, wrist, 4.0, -4.0]]), goal)[0])

    assert moved(0.049, -0.049)
    assert not moved(0.051, 0.0)
    assert not moved(0.0, -0.051)
    assert moved(0.04 - 2 * np.pi, 0.0)  # the shoulder counts the shorter way round
    assert not moved(0.0, 2 * np.pi)
    np.testing.assert_array_equal(goal, [[3.1, -1.0, 0.0, 0.0]])


def test_what_follows_a_state_is_told_by_the_state_alone(robot: Reacher) -> None:
    actions = np.random.default_rng(0).uniform(-MAX_TORQUE, MAX_TORQUE, size=(40, 2))
    robot.set_state(STATE)
    np.testing.assert_array_equal(robot.state, STATE)
    np.testing.assert_array_equal(robot.proprioception, STATE.astype(np.float32))
    passed = []
    for action in actions:
        passed.append(robot.state)
        robot.act(action)
    for step in (0, 13, 39):
        other = Reacher(64)
        other.set_state(passed[step])
        for action in actions[step:]:
            other.act(action)
        np.testing.assert_array_equal(other.state, robot.state)
    assert np.abs(np.diff([state[0] for state in passed])).max() > np.pi  # it went past the wrap on the way


def test_a_torque_held_against_the_damping_ends_at_their_quotient(robot: Reacher) -> None:
    robot.set_state(np.zeros(4))
    for _ in range(100):
        robot.act(np.array([0.02, 0.0]))
    np.testing.assert_allclose(robot.state[2], 0.02 / 0.01, rtol=0.01)  # the suite's damping is 0.01 N m s
    resting = Reacher(64)
    resting.set_state(np.array([1.0, 0.5, 0.0, 0.0]))
    resting.act(np.zeros(2))
    np.testing.assert_allclose(resting.state, [1.0, 0.5, 0.0, 0.0], atol=1e-12)  # it lies flat: nothing falls


def test_torques_past_the_bounds_act_like_the_bounds(robot: Reacher) -> None:
    ends = []
    for torque in (0.05, 7.0):
        robot.set_state(STATE)
        robot.act(np.array([-torque, torque]))
        ends.append(robot.state)
    np.testing.assert_array_equal(ends[0], ends[1])


def test_the_links_are_drawn_where_they_are_and_the_suites_target_is_not(robot: Reacher) -> None:
    image = Reacher(256).render_state(np.array([0.7, 1.2, 0.0, 0.0]))
    elbow = LINKS[0] * np.array([np.cos(0.7), np.sin(0.7)])
    tip = elbow + LINKS[1] * np.array([np.cos(1.9), np.sin(1.9)])
    for link in (elbow * 0.6, elbow + 0.5 * (tip - elbow)):
        red, green, blue = pixel_at(image, link)
        assert red > green > blue  # the suite's wood
    floor = pixel_at(image, np.array([-0.15, -0.15]))
    assert floor[2] > floor[1] > floor[0]
    assert pixel_at(image, np.array([-0.03, -0.03])) == floor  # the target would lie around the base


@pytest.mark.parametrize("size", [16, 64, 224])
def test_a_picture_is_a_function_of_the_joints(robot: Reacher, size: int) -> None:
    seen = Reacher(size)
    seen.set_state(STATE)
    seen.act(np.array([0.03, -0.03]))
    image, before = seen.render(), seen.state
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert not np.array_equal(seen.render_state(np.array([-1.0, 0.3, 0.0, 0.0])), image)
    np.testing.assert_array_equal(seen.state, before)
    np.testing.assert_array_equal(seen.render(), image)
    np.testing.assert_array_equal(robot.render_state(before), Reacher(64).render_state([*before[:2], 0.0, 0.0]))


def test_turning_a_joint_by_the_success_tolerance_changes_the_image(robot: Reacher) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        state = reacher.random_state(rng)
        image = robot.render_state(state).astype(int)
        for turn in ([0.05, 0.0, 0.0, 0.0], [0.0, 0.05 * -np.sign(state[1]), 0.0, 0.0]):
            assert np.abs(robot.render_state(state + turn) - image).max() > 15


def test_exploring_covers_the_joint_space_and_follows_its_seed(robot: Reacher) -> None:
    group = explore_reacher(3, range(24), 50, 16)
    states = group.states.reshape(-1, 4)
    cells, _, _ = np.histogram2d(
        states[:, 0], states[:, 1], bins=4, range=[[-np.pi, np.pi], [-WRIST_LIMIT, WRIST_LIMIT]]
    )
    assert cells.min() > 0.2 * len(states) / 16
    assert (np.abs(states[:, 1]) > WRIST_LIMIT).mean() < 0.1  # it does not wait at the wrist's limit
    robot.set_state(group.states[7, 20])
    robot.act(group.actions[7, 20])
    np.testing.assert_array_equal(robot.state, group.states[7, 21])
    np.testing.assert_array_equal(Reacher(16).render_state(group.states[7, 21]), group.frames[7, 21])
    again = explore_reacher(3, [7], 50, 16)
    for one, other in zip(again, group, strict=True):
        np.testing.assert_array_equal(one[0], other[7])


def test_the_oracle_solves_held_out_pairs_and_chance_does_not(robot: Reacher) -> None:
    pairs = Manifest.load("reacher").pairs(100, 0)
    tries = [attempt(robot, reacher_oracle, pair.start_state, pair.goal_state, 50) for pair in pairs]
    assert sum(one.success for one in tries) >= 99
    solved = 0
    for pair in pairs:
        policy = random_policy(robot, np.random.default_rng([1, pair.index]))
        solved += attempt(robot, policy, pair.start_state, pair.goal_state, 50).success
    assert solved < 15


@pytest.mark.parametrize(
    ("state", "rule"),
    [
        (np.zeros(2), "shape"),
        (np.array([np.nan, 0.0, 0.0, 0.0]), "finite"),
        (np.array([0.0, 3.2, 0.0, 0.0]), "wrist must be within 2.793 rad"),
        (np.array([0.0, 0.0, 90.0, 0.0]), "velocities must be within 50 rad/s"),
    ],
)
def test_an_impossible_state_is_refused_by_name(robot: Reacher, state: np.ndarray, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"state: .*{rule}"):
        robot.set_state(state)


@pytest.mark.parametrize("size", [8, 5000])
def test_an_image_that_cannot_be_drawn_is_refused_by_name(robot: Reacher, size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size: must be within 16 and 1024 pixels, got {size}"):
        Reacher(size)


def test_the_environment_keeps_gymnasiums_contract(robot: Reacher) -> None:
    with warnings.catch_warnings():
        # actions are physical, in N m, and velocities have no bounds; the checker advises otherwise
        warnings.filterwarnings("ignore", ".*we recommend using a symmetric and normalized space.*")
        warnings.filterwarnings("ignore", ".*A Box observation space (min|max)imum value is.*infinity.*")
        check_env(robot, skip_render_check=True)


def test_without_mujoco_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_stage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingSimulator, match=r"^reacher: needs MuJoCo; install the extra 'mujoco'"):
        Reacher(64)
    with pytest.raises(MissingSimulator, match="^what to install$"):
        package_folder("dm_control", "what to install")


@pytest.mark.parametrize("chosen", ["disabled", "moonlight"])
def test_without_opengl_the_error_names_the_libraries(robot: Reacher, chosen: str) -> None:
    """In a process of its own: MuJoCo chooses its OpenGL library once, when it is imported."""
    command = [sys.executable, "-m", "cli", "data", "collect", "--task", "reacher", "--out", "nowhere"]
    environment = {"PATH": "", "PYTHONPATH": ":".join(path or "." for path in sys.path), "MUJOCO_GL": chosen}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 1
    (error,) = (line for line in ended.stderr.splitlines() if line.startswith("presage: "))
    assert error.startswith(f"presage: reacher: MuJoCo has no OpenGL to draw with (MUJOCO_GL={chosen}: ")
    assert "apt-get install libegl1 libgl1-mesa-dri, or libosmesa6" in error
    assert ended.stderr.endswith(f"{error}\n")


def test_what_draws_is_closed_before_the_process_ends(robot: Reacher) -> None:
    program = "from simulation.tasks import make; robots = [make('reacher', size) for size in (16, 32, 16)]"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
