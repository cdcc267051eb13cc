"""Policies to compare a planner with: one that acts at random, and oracles that look at the simulator's own state.

An oracle is a ceiling, not a competitor: it is told the states of the robot and of the goal, or even what once led from
one to the other, where a planner is shown two images. Policies that gather episodes are in ``simulation.exploration``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulation.exploration import smooth_commands
from simulation.grasping import carry
from simulation.manifest import OFFSETS, Manifest
from simulation.robots import arm, arm_push, cube, reacher, tworoom
from simulation.tasks import RobotTask

Policy = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float32]]
"""From the state ``[S]`` and the goal state ``[S]`` to the next action ``[A]`` in the task's units."""


def random_policy(robot: RobotTask, rng: np.random.Generator) -> Policy:
    """Actions drawn uniformly from within the robot's bounds, each on its own."""
    low, high = robot.action_low, robot.action_high

    def act(state: NDArray[np.float64], goal_state: NDArray[np.float64]) -> NDArray[np.float32]:
        return rng.uniform(low, high).astype(np.float32)

    return act


def oracle_policy(robot: RobotTask, rng: np.random.Generator) -> Policy | None:
    """The oracle of a task, for one episode; None for a robot of another name, which has none."""
    match robot.name:
        case "arm":
            return arm_oracle
        case "arm-push":
            return ArmPushOracle(rng)
        case "cube":
            return cube_oracle(robot)
        case "pusht":
            return PushTReplay()
        case "reacher":
            return reacher_oracle
        case "tworoom":
            return tworoom_oracle
        case _:
            return None


def arm_oracle(state: NDArray[np.float64], goal_state: NDArray[np.float64]) -> NDArray[np.float32]:
    """Turns each joint straight to its goal, as fast as the bounds allow; the shoulder goes the shorter way round."""
    remaining = np.array([arm.wrap_angle(goal_state[:1] - state[:1])[0], goal_state[1] - state[1]])
    return np.clip(remaining * arm.RATE_HZ, -arm.MAX_JOINT_SPEED, arm.MAX_JOINT_SPEED).astype(np.float32)


def cube_oracle(robot: RobotTask) -> Policy:
    """Takes hold of the cube and carries it to its goal; ``robot`` tells where its gripper is."""

    def act(state: NDArray[np.float64], goal_state: NDArray[np.float64]) -> NDArray[np.float32]:
        action = carry(robot.proprioception, state[cube.CUBE], state[cube.QUATERNION], goal_state[cube.CUBE])
        return np.clip(action, robot.action_low, robot.action_high).astype(np.float32)

    return act


class PushTReplay:
    """Repeats the actions of the held-out episode that the goal was taken from, then stays where it is.

    ValueError for a goal that is in none of the manifests.
    """

    def __init__(self) -> None:
        self._remaining: list[NDArray[np.float32]] | None = None

    def __call__(self, state: NDArray[np.float64], goal_state: NDArray[np.float64]) -> NDArray[np.float32]:
        if self._remaining is None:
            self._remaining = list(_recorded_pushes(goal_state)[::-1])
        return self._remaining.pop() if self._remaining else np.zeros(2, np.float32)


def _recorded_pushes(goal_state: NDArray[np.float64]) -> NDArray[np.float32]:
    """The actions ``[steps, 2]`` that led to a held-out goal of Push-T."""
    for offset in OFFSETS:
        manifest = Manifest.load("pusht", offset)
        assert manifest.actions is not None
        found = np.flatnonzero((manifest.goals == goal_state).all(axis=1))
        if len(found):
            return manifest.actions[found[0]].astype(np.float32)
    raise ValueError(f"goal_state: must be one of the manifests of pusht, got {goal_state.tolist()}")


# Of a spring and a damper at each joint of Reacher, in N m per rad and per rad/s: the shoulder, which swings both
# links, comes to rest soonest with a damper beside its own friction; the wrist's friction is enough.
_REACHER_SPRING = np.array([0.08, 0.05])
_REACHER_DAMPER = np.array([0.009, 0.0])


def reacher_oracle(state: NDArray[np.float64], goal_state: NDArray[np.float64]) -> NDArray[np.float32]:
    """Draws each joint to its goal like a damped spring; the shoulder goes the shorter way round."""
    remaining = np.array([arm.wrap_angle(goal_state[:1] - state[:1])[0], goal_state[1] - state[1]])
    torque = _REACHER_SPRING * remaining - _REACHER_DAMPER * state[2:]
    return np.clip(torque, -reacher.MAX_TORQUE, reacher.MAX_TORQUE).astype(np.float32)


def tworoom_oracle(state: NDArray[np.float64], goal_state: NDArray[np.float64]) -> NDArray[np.float32]:
    """Goes straight to the goal or to the door on the way there, each axis as fast as the bounds allow."""
    ahead = tworoom.waypoints(state[None], goal_state[None])[0] - state
    return np.clip(ahead * tworoom.RATE_HZ, -tworoom.MAX_SPEED, tworoom.MAX_SPEED).astype(np.float32)


@dataclass(frozen=True)
class ArmPushSearch:
    """How hard ``ArmPushOracle`` searches."""

    samples: int = 128
    iterations: int = 3
    elites: int = 12
    horizon: int = 20  # control steps
    executed: int = 4  # actions taken before the next search


class ArmPushOracle:
    """Pushes the puck by searching action sequences in the true simulator.

    A sequence costs the puck's distance to its place, and, while that is far, the link's distance to the spot behind
    the puck from which to push it there: so it goes round the puck first.
    """

    def __init__(self, rng: np.random.Generator, search: ArmPushSearch | None = None) -> None:
        self._rng = rng
        self._search = search or ArmPushSearch()
        self._mean = np.zeros((self._search.horizon, 2))
        self._taken = self._search.executed

    def __call__(self, state: NDArray[np.float64], goal_state: NDArray[np.float64]) -> NDArray[np.float32]:
        if self._taken >= self._search.executed:
            shifted = np.concatenate([self._mean[self._taken :], np.zeros((self._taken, 2))])
            self._mean = self._improved(state, goal_state, shifted)
            self._taken = 0
        self._taken += 1
        return self._mean[self._taken - 1].astype(np.float32)

    def _improved(
        self, state: NDArray[np.float64], goal_state: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        search, spread = self._search, np.full(mean.shape, arm.MAX_JOINT_SPEED)
        best, lowest = mean, np.inf
        for _ in range(search.iterations):
            noise = np.stack([smooth_commands(self._rng, search.horizon, 2) for _ in range(search.samples)])
            samples = np.clip(mean + spread * noise, -arm.MAX_JOINT_SPEED, arm.MAX_JOINT_SPEED)
            samples[0] = best
            costs = push_costs(state, goal_state, samples)
            order = np.argsort(costs, kind="stable")
            if costs[order[0]] < lowest:
                best, lowest = samples[order[0]], costs[order[0]]
            elites = samples[order[: search.elites]]
            mean, spread = elites.mean(axis=0), elites.std(axis=0) + 0.1
        return best


def push_costs(
    state: NDArray[np.float64], goal_state: NDArray[np.float64], actions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What each sequence ``[N, steps, 2]`` from ``state`` costs ``[N]``, summed over its steps, in meters."""
    states = np.repeat(state[None], len(actions), axis=0)
    costs = np.zeros(len(actions))
    for step in range(actions.shape[1]):
        states = arm_push.step_states(states, actions[:, step])
        joints, puck = states[:, :2], states[:, 2:]
        ahead = goal_state[2:] - puck
        remaining = np.linalg.norm(ahead, axis=1)
        behind = puck - ahead / np.maximum(remaining, 1e-6)[:, None] * arm_push.CONTACT
        reach = np.linalg.norm(behind - arm_push.nearest_on_link(joints, behind), axis=1)
        costs += remaining + 0.3 * reach * (remaining > 0.5 * arm_push.SUCCESS_TOLERANCE)
    return costs
