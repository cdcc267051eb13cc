"""Exploring policies that gather episodes, run on a group of robots side by side.

Every random number of an episode comes from its own generator, seeded with (collection seed, episode index), so an
episode is the same whichever group or process it is gathered in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulation.grasping import carry
from simulation.pushing import PushExplorer, PushingStyle
from simulation.robots import arm, arm_push, cube, pusht, reacher, tworoom


class Group(NamedTuple):
    """The arrays of some episodes, as in ``simulation.episodes.EpisodeBatch``."""

    frames: NDArray[np.uint8]  # [N, steps + 1, size, size, 3]
    actions: NDArray[np.float32]  # [N, steps, A]
    proprioception: NDArray[np.float32]  # [N, steps + 1, P]
    states: NDArray[np.float64]  # [N, steps + 1, S]


def episode_generators(seed: int, indices: Sequence[int]) -> list[np.random.Generator]:
    """One generator for each episode, a function of the collection's seed and the episode's index alone."""
    return [np.random.default_rng([seed, index]) for index in indices]


def smooth_commands(rng: np.random.Generator, steps: int, width: int) -> NDArray[np.float64]:
    """Random commands ``[steps, width]`` in [-1, 1]: held for 3 to 20 steps at a time, with correlated noise on top.

    Each column changes on its own. Holding makes 25 steps lead far; the noise makes the commands differ inside a block
    of a few actions, as a planner's samples do.
    """
    commands = np.empty((steps, width))
    for column in range(width):
        durations = rng.integers(3, 21, size=steps // 3 + 1)
        levels = rng.uniform(-1.0, 1.0, size=steps // 3 + 1)
        commands[:, column] = np.repeat(levels, durations)[:steps]
    noise = np.zeros(width)
    for step, kick in enumerate(rng.normal(size=(steps, width))):
        noise = 0.7 * noise + 0.2 * kick
        commands[step] += noise
    return np.clip(commands, -1.0, 1.0)


def turned_round(
    joints: NDArray[np.float64], commands: NDArray[np.float64], turned: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Signs ``[N, 2]`` for the commands, changed where an elbow presses on its limit: waiting there teaches nothing."""
    elbow = joints[:, 1]
    pressing = (np.abs(elbow) >= arm.ELBOW_LIMIT) & (elbow * commands[:, 1] * turned[:, 1] > 0)
    return turned * np.stack([np.ones(len(joints)), np.where(pressing, -1.0, 1.0)], axis=1)


def explore_arm(seed: int, indices: Sequence[int], steps: int, image_size: int) -> Group:
    """Episodes of the arm moving smoothly at random, starting anywhere in its joint space."""
    generators = episode_generators(seed, indices)
    states = np.empty((len(indices), steps + 1, 2))
    states[:, 0] = [arm.random_state(rng) for rng in generators]
    commands = np.stack([smooth_commands(rng, steps, 2) for rng in generators]) * arm.MAX_JOINT_SPEED
    actions = np.empty((len(indices), steps, 2), dtype=np.float32)
    turned = np.ones((len(indices), 2))
    for step in range(steps):
        turned = turned_round(states[:, step], commands[:, step], turned)
        actions[:, step] = commands[:, step] * turned
        states[:, step + 1] = arm.step_states(states[:, step], actions[:, step])
    frames = arm.render_states(states.reshape(-1, 2), image_size)
    return Group(frames.reshape(*states.shape[:2], *frames.shape[1:]), actions, states.astype(np.float32), states)


# Meters from the base. The tip roams past the table's rim as well as over it.
_PUCK_STYLE = PushingStyle(
    low=(-0.9, -0.9), high=(0.9, 0.9), standoff=0.28, through=(0.0, 0.4), aside=0.1, arrived=0.06, roaming=0.3
)


def explore_arm_push(seed: int, indices: Sequence[int], steps: int, image_size: int) -> Group:
    """Episodes of the arm pushing the puck about, from every side, between stretches of smooth free motion."""
    generators = episode_generators(seed, indices)
    states = np.empty((len(indices), steps + 1, 4))
    states[:, 0] = [arm_push.random_state(rng) for rng in generators]
    explorer = PushExplorer(_PUCK_STYLE, generators, steps)
    commands = np.stack([smooth_commands(rng, steps, 2) for rng in generators]) * arm.MAX_JOINT_SPEED
    noise = np.stack([rng.normal(scale=0.15, size=(steps, 2)) for rng in generators])
    actions = np.empty((len(indices), steps, 2), dtype=np.float32)
    turned = np.ones((len(indices), 2))
    for step in range(steps):
        joints, puck = states[:, step, :2], states[:, step, 2:]
        stuck = (joints == states[:, max(step - 1, 0), :2]).all(axis=1) & (step > 0)
        turned = turned_round(joints, commands[:, step], np.where(stuck[:, None], -turned, turned))
        _, tip = arm.joint_positions(joints)
        target, haste, roaming = explorer.targets(tip, puck, stuck)
        reaching = tip_velocity_to_joints(joints, (target - tip) * arm.RATE_HZ, haste * arm.MAX_JOINT_SPEED)
        velocity = np.where(roaming[:, None], commands[:, step] * turned, reaching + noise[:, step])
        actions[:, step] = np.clip(velocity, -arm.MAX_JOINT_SPEED, arm.MAX_JOINT_SPEED)
        states[:, step + 1] = arm_push.step_states(states[:, step], actions[:, step])
    frames = arm_push.render_states(states.reshape(-1, 4), image_size)
    proprioception = states[..., :2].astype(np.float32)
    return Group(frames.reshape(*states.shape[:2], *frames.shape[1:]), actions, proprioception, states)


def _unfilled(robot: pusht.PushT | reacher.Reacher, episodes: int, steps: int, drawn: bool) -> Group:
    """Room for episodes of a robot that is simulated alone, one episode after another."""
    size = robot.image_size if drawn else 0
    return Group(
        np.empty((episodes, steps + 1, size, size, 3), dtype=np.uint8),
        np.empty((episodes, steps, len(robot.action_names)), dtype=np.float32),
        np.empty((episodes, steps + 1, len(robot.proprioception_names)), dtype=np.float32),
        np.empty((episodes, steps + 1, len(robot.state))),
    )


def _note(group: Group, number: int, step: int, robot: pusht.PushT | reacher.Reacher) -> NDArray[np.float64]:
    """Write down what a robot shows, measures and is at a step of an episode; its state."""
    if group.frames.size:
        group.frames[number, step] = robot.render()
    group.proprioception[number, step] = robot.proprioception
    group.states[number, step] = state = robot.state
    return state


# Pixels. The block reaches 77 px from its center and the pusher's radius is 15.
_BLOCK_STYLE = PushingStyle(
    low=(45.0, 45.0), high=(467.0, 467.0), standoff=105.0, through=(0.0, 120.0), aside=60.0, arrived=15.0, roaming=0.25
)
_BLOCK_OUTWARDS = 190.0  # of the block's center from the table's middle, along either axis: a corner is at the wall


def explore_pusht(seed: int, indices: Sequence[int], steps: int, image_size: int, drawn: bool = True) -> Group:
    """Episodes of Push-T in which the pusher pushes the block from every side, or moves about freely."""
    robot = pusht.PushT(image_size)
    group = _unfilled(robot, len(indices), steps, drawn)
    for number, rng in enumerate(episode_generators(seed, indices)):
        robot.set_state(pusht.random_state(rng))
        explorer = PushExplorer(_BLOCK_STYLE, [rng], steps)
        noise = rng.normal(scale=8.0, size=(steps, 2))
        outwards = 0.0
        for step in range(steps + 1):
            state = _note(group, number, step, robot)
            if step == steps:
                break
            block = pusht.block_centers(state[None])
            before, outwards = outwards, float(np.abs(block - pusht.SIDE / 2).max())
            pinned = np.array([outwards > max(before, _BLOCK_OUTWARDS)])  # the pusher could press it through the wall
            target, haste, _ = explorer.targets(state[None, :2], block, pinned)
            ahead = np.clip(target[0], 45.0, pusht.SIDE - 45.0) - state[:2]
            most = haste[0] * pusht.MAX_DISPLACEMENT
            displacement = ahead * min(1.0, most / max(float(np.linalg.norm(ahead)), 1e-9)) + noise[step]
            action = np.clip(displacement, -pusht.MAX_DISPLACEMENT, pusht.MAX_DISPLACEMENT).astype(np.float32)
            group.actions[number, step] = action
            robot.act(action)
    return group


def explore_reacher(seed: int, indices: Sequence[int], steps: int, image_size: int, drawn: bool = True) -> Group:
    """Episodes of Reacher under smooth random torques, starting at rest anywhere in its joint space."""
    robot = reacher.Reacher(image_size)
    group = _unfilled(robot, len(indices), steps, drawn)
    for number, rng in enumerate(episode_generators(seed, indices)):
        robot.set_state(reacher.random_state(rng))
        torques = smooth_commands(rng, steps, 2) * reacher.MAX_TORQUE
        turned = 1.0  # the wrist's sign, changed where it presses on its limit: waiting there teaches nothing
        for step in range(steps + 1):
            state = _note(group, number, step, robot)
            if step == steps:
                break
            if abs(state[1]) >= reacher.WRIST_LIMIT and state[1] * torques[step, 1] * turned > 0:
                turned = -turned
            group.actions[number, step] = torques[step] * np.array([1.0, turned])
            robot.act(group.actions[number, step])
    return group


# Meters: where the cube is carried to, and where the gripper roams.
_CARRIED = np.array([[0.3, -0.3, 0.02], [0.55, 0.3, 0.15]])
_ROAMED = np.array([[0.25, -0.35, 0.03], [0.6, 0.35, 0.3]])
_CARRYING, _ROAMING = 40, 15  # most steps of each


def explore_cube_unseen(
    seed: int, indices: Sequence[int], steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Actions, proprioception and states of episodes in which the gripper carries the cube about, or lets it go and
    roams; without pictures, which take far longer than all the rest."""
    robot = cube.Cube(16)
    actions = np.empty((len(indices), steps, 5), dtype=np.float32)
    proprioception = np.empty((len(indices), steps + 1, 5), dtype=np.float32)
    states = np.empty((len(indices), steps + 1, cube.WIDTH))
    for number, rng in enumerate(episode_generators(seed, indices)):
        robot.set_state(robot.random_state(rng))
        noise = rng.normal(scale=0.2, size=(steps, 5)) * np.array([1.0, 1.0, 1.0, 1.0, 0.3])
        drawn = rng.uniform(size=(steps + 1, 6))  # of each stretch: whether it roams, two places
        stretch, left, roams, goal = -1, 0, False, np.zeros(3)
        for step in range(steps + 1):
            proprioception[number, step] = robot.proprioception
            states[number, step] = state = robot.state
            if step == steps:
                break
            if left == 0 or (not roams and np.linalg.norm(goal - state[cube.CUBE]) < 0.02):
                stretch += 1
                roams = bool(drawn[stretch, 0] < 0.3)
                low, high = _ROAMED if roams else _CARRIED
                goal, left = low + (high - low) * drawn[stretch, 1:4], _ROAMING if roams else _CARRYING
                if not roams and drawn[stretch, 4] < 0.5:
                    goal[2] = low[2]  # on the table
            left -= 1
            if roams:
                action = np.array([*(goal - proprioception[number, step, :3]), 0.5 - drawn[stretch, 5], -1.0])
            else:
                action = carry(proprioception[number, step], state[cube.CUBE], state[cube.QUATERNION], goal)
            limited = np.clip(action / cube.ACTION_HIGH, -1.0, 1.0) + noise[step]
            actions[number, step] = np.clip(limited, -1.0, 1.0) * cube.ACTION_HIGH
            robot.act(actions[number, step])
    return actions, proprioception, states


def explore_cube(seed: int, indices: Sequence[int], steps: int, image_size: int) -> Group:
    """Episodes in which the gripper carries the cube about, or lets it go and roams."""
    actions, proprioception, states = explore_cube_unseen(seed, indices, steps)
    robot = cube.Cube(image_size)
    frames = np.stack([[robot.render_state(state) for state in episode] for episode in states])
    return Group(frames, actions, proprioception, states)


def explore_tworoom(seed: int, indices: Sequence[int], steps: int, image_size: int) -> Group:
    """Episodes of a robot that wanders smoothly, or heads with some noise for a place in either room."""
    generators = episode_generators(seed, indices)
    states = np.empty((len(indices), steps + 1, 2))
    states[:, 0] = [tworoom.random_state(rng) for rng in generators]
    targets = np.stack([[tworoom.random_state(rng) for _ in range(steps + 1)] for rng in generators])  # [N, steps+1, 2]
    haste = np.stack([rng.uniform(0.4, 1.0, size=steps + 1) for rng in generators])
    wander = np.stack([smooth_commands(rng, steps, 2) for rng in generators]) * tworoom.MAX_SPEED
    noise = np.stack([rng.normal(scale=0.08, size=(steps, 2)) for rng in generators])
    wanders = np.stack([np.repeat(rng.uniform(size=steps // 10 + 1) < 0.4, 10)[:steps] for rng in generators])
    actions = np.empty((len(indices), steps, 2), dtype=np.float32)
    rows, aim = np.arange(len(indices)), np.zeros(len(indices), dtype=np.int64)
    for step in range(steps):
        place = states[:, step]
        aim += np.linalg.norm(targets[rows, aim] - place, axis=1) < tworoom.RADIUS
        ahead = (tworoom.waypoints(place, targets[rows, aim]) - place) * tworoom.RATE_HZ
        fastest = haste[rows, aim] * tworoom.MAX_SPEED
        heading = ahead * np.minimum(1.0, fastest / np.maximum(np.abs(ahead).max(axis=1), 1e-9))[:, None]
        velocity = np.where(wanders[:, step, None], wander[:, step], heading + noise[:, step])
        actions[:, step] = np.clip(velocity, -tworoom.MAX_SPEED, tworoom.MAX_SPEED)
        states[:, step + 1] = tworoom.step_states(place, actions[:, step])
    frames = tworoom.render_states(states.reshape(-1, 2), image_size)
    return Group(frames.reshape(*states.shape[:2], *frames.shape[1:]), actions, states.astype(np.float32), states)


def tip_velocity_to_joints(
    joints: NDArray[np.float64], velocity: NDArray[np.float64], most: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Joint velocities ``[N, 2]`` (rad/s) that move the tip at ``velocity`` ``[N, 2]`` (m/s), or slower.

    Damped least squares, then scaled so that no joint turns faster than ``most`` ``[N]``.
    """
    elbow, tip = arm.joint_positions(joints)
    columns = (tip, tip - elbow)  # each joint moves the tip at right angles to its distance from it
    jacobian = np.stack([np.stack([-lever[:, 1], lever[:, 0]], axis=1) for lever in columns], axis=2)  # [N, 2, 2]
    transposed = np.swapaxes(jacobian, 1, 2)
    damped = jacobian @ transposed + 0.01 * np.eye(2)
    speeds = (transposed @ np.linalg.solve(damped, velocity[:, :, None]))[:, :, 0]
    fastest = np.abs(speeds).max(axis=1)
    return np.asarray(speeds * np.minimum(1.0, most / np.maximum(fastest, 1e-9))[:, None])


def explore(task: str, seed: int, indices: Sequence[int], steps: int, image_size: int) -> Group:
    """Gathers the episodes ``indices`` of ``task``; a plain function, so that a fresh process can run it."""
    match task:
        case "arm":
            return explore_arm(seed, indices, steps, image_size)
        case "arm-push":
            return explore_arm_push(seed, indices, steps, image_size)
        case "cube":
            return explore_cube(seed, indices, steps, image_size)
        case "pusht":
            return explore_pusht(seed, indices, steps, image_size)
        case "reacher":
            return explore_reacher(seed, indices, steps, image_size)
        case "tworoom":
            return explore_tworoom(seed, indices, steps, image_size)
        case _:
            raise ValueError(f"task: no exploring policy for {task!r}")


def explore_unseen(
    task: str, seed: int, indices: Sequence[int], steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Actions, proprioception and states of the same episodes; pictures only where drawing them costs next to nothing.

    For those who look at some of the frames and draw them from the states, which a picture is a function of.
    """
    match task:
        case "cube":
            return explore_cube_unseen(seed, indices, steps)
        case "pusht":
            group = explore_pusht(seed, indices, steps, 16, drawn=False)
        case "reacher":
            group = explore_reacher(seed, indices, steps, 16, drawn=False)
        case _:
            group = explore(task, seed, indices, steps, 16)
    return group.actions, group.proprioception, group.states
