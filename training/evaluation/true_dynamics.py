"""The true dynamics as a world model: what a search reaches that knows what its actions do.

The ceiling of a search. Where a model reaches fewer goals, the model is at fault; where this reaches few, the search or
its cost is. A rollout puts the robot at a state and lets it act, one candidate after another: slow, and exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from presage.limits import held_for
from torch import Tensor

from model.package import PlannerDefaults
from planner.anytime import Optimizer, plan_in_time
from planner.receding import warm_start
from planner.types import ActionSpace, Plan, Problem
from training.evaluation.closed_loop import Episode, Pair, Robot, State
from training.evaluation.statistics import plan_seed

Features = Callable[[State], NDArray[np.float64]]


@dataclass(frozen=True)
class TrueDynamics:
    """A robot of its own as `planner.WorldModel`: a latent is the features of a state, a context the state itself."""

    robot: Robot
    features: Features  # states [N, S] to [N, F]
    block: int

    def latent(self, state: State) -> Float[Tensor, " features"]:
        """The features of one state."""
        return torch.from_numpy(self.features(state[None])[0].astype(np.float32))

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon features"]:
        """The features after every block of actions. A state that the robot cannot be put at again ends a candidate."""
        batch, samples, time, _ = actions.shape
        told = []
        for start, candidates in zip(context[0].numpy(), actions.numpy(), strict=True):
            for candidate in candidates:
                self.robot.set_state(start)
                for step, action in enumerate(candidate, start=1):
                    self.robot.act(action)
                    if step % self.block == 0:
                        told.append(self.robot.state)
        features = self.features(np.stack(told)).astype(np.float32)
        return torch.from_numpy(features).view(batch, samples, time // self.block, -1)


def run_ceiling(
    dynamics: TrueDynamics,
    optimizer: Optimizer,
    settings: PlannerDefaults,
    space: ActionSpace,
    robot: Robot,
    pair: Pair,
    seed: int,
    budget_steps: int,
) -> Episode:
    """`closed_loop.run_episode` with the true state in the place of images and the true dynamics in that of a model."""
    robot.set_state(pair.start_state)
    goal = dynamics.latent(pair.goal_state)
    plan: Plan | None = None
    held: tuple[float, ...] | None = None
    executed = steps = plans = 0
    states = [robot.state]
    while steps < budget_steps:
        problem = Problem(
            context=(torch.from_numpy(robot.state.copy()).unsqueeze(0),),
            goal=goal,
            space=space,
            seed=plan_seed(seed, plans),
            warm_start=None if plan is None else warm_start(plan, executed, space),
            previous_action=None if plan is None else plan.actions[executed - 1],
            held=held,
            arrival=None if plan is None else plan.arrival_after(executed),
            replace_margin=settings.replace_margin,
        )
        before = None if plan is None else plan.actions[executed - 1].tolist()
        plan, plans = plan_in_time(optimizer, dynamics, problem), plans + 1
        for executed, action in enumerate(plan.actions.numpy()[: min(settings.execute, budget_steps - steps)], start=1):
            robot.act(action)
            states.append(robot.state)
            if robot.is_success(pair.goal_state):
                return Episode(pair.index, True, steps + executed, states=tuple(states))
        held = held_for(plan.actions[:executed].tolist(), before, held)
        steps += executed
    return Episode(pair.index, False, steps, states=tuple(states))
