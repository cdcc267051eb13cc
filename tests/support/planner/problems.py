"""Small systems with known optima, problems on them, and a cost that breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from planner.cost import GoalDistance
from planner.types import ActionSpace, Problem
from planner.world_model import Actions, Context, Latents, StepCosts


@dataclass(frozen=True, eq=False)
class LinearWorld:
    """z' = z @ A.T + a @ B.T for each robot action; the latent is what `block` actions make of it."""

    transition: Tensor  # [latent, latent]
    effect: Tensor  # [latent, action]
    block: int = 1

    def rollout(self, context: Context, actions: Actions) -> Latents:
        (start,) = context
        latent = start.unsqueeze(1).expand(-1, actions.shape[1], -1)
        latents = []
        for action in actions.unbind(2):
            latent = latent @ self.transition.T + action @ self.effect.T
            latents.append(latent)
        return torch.stack(latents[self.block - 1 :: self.block], dim=2)


def integrator(block: int = 1, dimensions: int = 2) -> LinearWorld:
    """A point that each action moves by 0.1 of itself."""
    return LinearWorld(torch.eye(dimensions), 0.1 * torch.eye(dimensions), block)


@dataclass(frozen=True)
class FunctionWorld:
    """A linear world whose latents pass through a function."""

    inner: LinearWorld
    function: Callable[[Tensor], Tensor]

    @property
    def block(self) -> int:
        return self.inner.block

    def rollout(self, context: Context, actions: Actions) -> Latents:
        return self.function(self.inner.rollout(context, actions))


def space(dimensions: int = 2, bound: float = 1.0, slew: float | None = None, **rest: object) -> ActionSpace:
    return ActionSpace(
        names=tuple("xyzuvw"[:dimensions]),
        units=("m/s",) * dimensions,
        low=(-bound,) * dimensions,
        high=(bound,) * dimensions,
        rate_hz=10.0,
        slew=None if slew is None else (slew,) * dimensions,
        **rest,  # type: ignore[arg-type]
    )


def reach(goal: tuple[float, ...] = (0.3, -0.2), seed: int = 0, **rest: object) -> Problem:
    """Move the point of `integrator` from the origin to `goal`."""
    settings: dict[str, object] = {"space": space(len(goal)), **rest}
    return Problem(
        context=(torch.zeros(1, len(goal)),),
        goal=torch.tensor(goal),
        seed=seed,
        **settings,  # type: ignore[arg-type]
    )


def least_squares(world: LinearWorld, problem: Problem, horizon: int, effort: float) -> tuple[Tensor, float]:
    """The best actions [time, action] and their cost, in closed form: summed l2 goal distance + effort * ActionCost."""
    exact = LinearWorld(world.transition.double(), world.effect.double(), world.block)
    (start,) = problem.context
    latent, dimensions = world.effect.shape
    time = horizon * world.block
    unknowns = time * dimensions
    units = torch.eye(unknowns, dtype=torch.float64).reshape(1, unknowns, time, dimensions)
    nothing = torch.zeros(1, 1, time, dimensions, dtype=torch.float64)
    still = exact.rollout((start.double(),), nothing)[0, 0]
    response = (exact.rollout((start.double(),), units)[0] - still).reshape(unknowns, -1).T
    missing = (problem.goal.double() - still).flatten()
    system = torch.cat([response / latent**0.5, (effort / dimensions) ** 0.5 * torch.eye(unknowns).double()])
    wanted = torch.cat([missing / latent**0.5, torch.zeros(unknowns, dtype=torch.float64)])
    actions = torch.linalg.lstsq(system, wanted.unsqueeze(-1)).solution.squeeze(-1)
    return actions.reshape(time, dimensions), (system @ actions - wanted).square().sum().item()


def cost_of(actions: Tensor, world: LinearWorld, problem: Problem) -> float:
    """Summed l2 distance to the goal under these actions [time, action]."""
    candidates = actions.reshape(1, 1, *actions.shape)
    predicted = world.rollout(problem.context, candidates)
    return GoalDistance()(predicted, problem.goal.unsqueeze(0), candidates).sum().item()


@dataclass(frozen=True)
class Broken:
    """A cost that is NaN for every candidate whose first action points the wrong way, or for all."""

    everywhere: bool = False

    def __call__(self, predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
        wrong = (actions[:, :, 0, 0] > 0) | self.everywhere
        return torch.where(wrong.unsqueeze(-1), torch.nan, GoalDistance()(predicted, goal, actions))
