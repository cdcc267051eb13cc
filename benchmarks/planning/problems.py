"""Held-out problems of the built-in arm, as images and as planner problems."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.interface import LoadedModel
from planner.cost import GoalDistance
from planner.types import ActionSpace, Problem
from server.worker import precision as tuning
from server.worker.process import own_search
from simulation.manifest import Manifest, Pair
from simulation.tasks import make
from training.evaluation.closed_loop import action_space


@dataclass(frozen=True, eq=False)
class Served:
    """A model as an engine on this machine would serve it, beside its float32 self, which prices all plans."""

    exact: LoadedModel
    fast: LoadedModel
    why: str

    @classmethod
    def choose(cls, exact: LoadedModel) -> Served:
        fast, verdict = tuning.with_best_precision(exact, own_search(exact.package.config.planner))
        return cls(exact, fast, verdict.why)

    @property
    def precision(self) -> str:
        return str(self.fast.dtype).removeprefix("torch.")

    @torch.no_grad()
    def price(self, problem: Problem, actions: Tensor, cost: GoalDistance) -> float:
        """What a plan costs by the float32 model."""
        candidate = actions[None, None]
        return float(cost(self.exact.rollout(problem.context, candidate), problem.goal[None], candidate).sum())


@dataclass(frozen=True, eq=False)
class ArmProblem:
    pair: Pair
    image: Tensor  # uint8 [height, width, 3]
    goal_image: Tensor
    problem: Problem


def arm_problems(model: LoadedModel, count: int) -> list[ArmProblem]:
    """The first `count` pairs of the committed manifest in a fixed random order."""
    robot, space = make("arm"), action_space(model)
    problems = []
    for seed, pair in enumerate(Manifest.load("arm").pairs(count, seed=0)):
        image, goal_image = (_picture(robot.render_state(state)) for state in (pair.start_state, pair.goal_state))
        problem = problem_of(model, space, image, goal_image, seed)
        problems.append(ArmProblem(pair, image, goal_image, problem))
    return problems


def problem_of(model: LoadedModel, space: ActionSpace, image: Tensor, goal_image: Tensor, seed: int) -> Problem:
    here, goal = model.encode(torch.stack([image, goal_image]))
    return Problem(model.context([here], None), goal, space, seed)


def _picture(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image))
