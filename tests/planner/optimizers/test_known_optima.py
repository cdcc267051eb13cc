"""Every optimizer on systems whose optimum is known, at equal cost, and where each of them wins.

Cost is counted in model steps, of one candidate each; a step that is also differentiated counts three.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch

from planner.anytime import Optimizer, plan_in_time
from planner.cost import ActionCost, GoalDistance, WeightedSum
from planner.noise import WhiteNoise
from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import GaussNewton
from planner.optimizers.gradient import Gradient
from planner.optimizers.hybrid import Hybrid
from planner.optimizers.mppi import MPPI
from planner.types import Problem
from planner.world_model import Actions, Context, CostFunction, Latents, StepCosts, WorldModel
from tests.support.planner.problems import FunctionWorld, LinearWorld, integrator, least_squares, reach, space


@dataclass(frozen=True)
class System:
    """A world, what is asked of it, and the lowest cost there is for that."""

    world: WorldModel
    problem: Problem
    cost: CostFunction
    horizon: int
    optimum: float


def bowl(seed: int) -> System:
    """A damped spring under goal distance and effort: linear and quadratic, so its optimum is a least-squares fit."""
    spring = LinearWorld(torch.tensor([[1.0, 0.1], [-0.05, 0.95]]), torch.tensor([[0.0, 0.05], [0.2, 0.0]]), block=2)
    problem = reach((0.3, -0.2), seed=seed, space=space(bound=3.0))
    actions, optimum = least_squares(spring, problem, horizon=4, effort=0.02)
    assert actions.abs().max() < 3.0  # the bounds are no part of this problem
    return System(spring, problem, WeightedSum(((1.0, GoalDistance()), (0.02, ActionCost()))), 4, optimum)


@dataclass(frozen=True)
class Disc:
    """Goal distance, and a price that rises inside a disc on the straight way."""

    def __call__(self, predicted: Latents, goal: torch.Tensor, actions: Actions) -> StepCosts:
        inside = (0.25 - (predicted - torch.tensor([0.5, 0.0])).norm(dim=-1)).clamp(min=0)
        return GoalDistance()(predicted, goal, actions) + 50 * inside.square()


@cache
def least_round_the_disc() -> float:
    """By brute force: descent from 100 starts on both sides, at two step sizes, ten times as long as a search."""
    slow = [Gradient(100, 300, 12, step, initial_std=1.0, cost=Disc()) for step in (0.1, 0.3)]
    return min(each.plan(integrator(2), reach((1.0, 0.0))).cost for each in slow)


def obstacle(seed: int) -> System:
    """A point that has to go round a disc: two valleys, 48 numbers to choose."""
    return System(integrator(2), reach((1.0, 0.0), seed=seed), Disc(), 12, least_round_the_disc())


def ripples(seed: int) -> System:
    """A goal among many local minima in each dimension, which only its own place brings to zero."""

    def rippled(latent: torch.Tensor) -> torch.Tensor:
        return torch.cat([latent, torch.sin(15 * latent)], dim=-1)

    place = 1.2 * torch.rand(2, generator=torch.Generator().manual_seed(seed)) - 0.6
    problem = replace(reach((0.0, 0.0), seed=seed), goal=rippled(place))
    return System(FunctionWorld(integrator(2), rippled), problem, GoalDistance(over="last"), 4, 0.0)


def stairs(seed: int) -> System:
    """A point seen on a coarse grid only: the cost is flat between its steps, and descent has nothing to go by."""

    def rounded(latent: torch.Tensor) -> torch.Tensor:
        return (20 * latent).round() / 20

    place = 1.2 * torch.rand(4, generator=torch.Generator().manual_seed(seed)) - 0.6
    problem = replace(reach((0.0,) * 4, seed=seed), goal=rounded(place))
    return System(FunctionWorld(integrator(2, dimensions=4), rounded), problem, GoalDistance(over="last"), 4, 0.0)


SYSTEMS = {"bowl": (bowl, 5), "obstacle": (obstacle, 4), "ripples": (ripples, 12), "stairs": (stairs, 5)}


def optimizers(system: System) -> dict[str, Optimizer]:
    """All of them, each with about the model steps that 8 iterations of 200 samples take."""
    horizon, cost = system.horizon, system.cost
    entries = horizon * system.world.block * system.problem.space.dimensions
    return {
        "cem": CEM(horizon=horizon, cost=cost),
        "white cem": CEM(horizon=horizon, cost=cost, kept=0.0, noise=WhiteNoise()),
        "icem": replace(CEM.icem(), horizon=horizon, cost=cost),
        "adaptive": CEM(samples=100, iterations=20, full_above=0.15, horizon=horizon, cost=cost),
        "mppi": MPPI(horizon=horizon, cost=cost),
        "gradient": Gradient(starts=8, iterations=66, horizon=horizon, cost=cost),
        "hybrid": Hybrid(
            CEM(iterations=5, horizon=horizon, cost=cost),
            Gradient(starts=5, iterations=30, step=0.1, horizon=horizon, cost=cost),
        ),
        "gauss-newton": Hybrid(
            CEM(iterations=4, horizon=horizon, cost=cost),
            GaussNewton(starts=2, iterations=700 // (entries + 6), horizon=horizon, cost=cost),
        ),
    }


@dataclass
class Counting:
    """A world that counts the steps asked of it."""

    inner: WorldModel
    steps: list[int] = field(default_factory=list)

    @property
    def block(self) -> int:
        return self.inner.block

    def rollout(self, context: Context, actions: Actions) -> Latents:
        batch, samples, time, _ = actions.shape
        self.steps.append(batch * samples * (time // self.block) * (3 if actions.requires_grad else 1))
        return self.inner.rollout(context, actions)


@dataclass(frozen=True)
class Outcome:
    """Of one optimizer on one system, over its seeds."""

    excess: torch.Tensor  # cost above the optimum, of every seed
    steps: int  # model steps in all

    @property
    def median(self) -> float:
        return self.excess.median().item()

    @property
    def worst(self) -> float:
        return self.excess.max().item()

    @property
    def solved(self) -> int:
        return int((self.excess < 1e-3).sum())


@cache
def outcomes(name: str) -> dict[str, Outcome]:
    make, seeds = SYSTEMS[name]
    systems = [make(seed) for seed in range(seeds)]
    found = {}
    for kind in optimizers(systems[0]):
        worlds = [Counting(system.world) for system in systems]
        costs = [
            plan_in_time(optimizers(system)[kind], world, system.problem).cost - system.optimum
            for system, world in zip(systems, worlds, strict=True)
        ]
        found[kind] = Outcome(torch.tensor(costs), sum(sum(world.steps) for world in worlds))
    return found


@pytest.mark.parametrize("name", SYSTEMS)
def test_nobody_beats_the_optimum_or_takes_more_than_its_share_of_steps(name: str) -> None:
    found = outcomes(name)
    for outcome in found.values():
        assert outcome.excess.min() > -1e-5
        assert outcome.steps <= found["cem"].steps


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("cem", 0.08),
        ("white cem", 0.15),
        ("icem", 0.25),
        ("adaptive", 0.1),
        ("mppi", 0.05),
        ("gradient", 1e-4),
        ("hybrid", 1e-3),
        ("gauss-newton", 1e-6),
    ],
)
def test_everyone_comes_near_the_floor_of_a_bowl(kind: str, share: float) -> None:
    assert outcomes("bowl")[kind].worst <= share * bowl(0).optimum


@pytest.mark.parametrize("kind", ["cem", "icem", "adaptive", "mppi", "gradient", "hybrid", "gauss-newton"])
def test_everyone_gets_round_an_obstacle(kind: str) -> None:
    assert outcomes("obstacle")[kind].median <= 0.25 * least_round_the_disc()


def test_gauss_newton_wins_in_a_bowl_and_descent_comes_next() -> None:
    found = dict(outcomes("bowl"))
    for kind in ("gauss-newton", "gradient"):
        winner = found.pop(kind)
        assert winner.worst < min(outcome.median for outcome in found.values())


def test_of_the_samplers_mppi_wins_in_a_bowl() -> None:
    found = outcomes("bowl")
    assert found["mppi"].median < 0.8 * min(found[kind].median for kind in ("cem", "white cem", "icem"))


def test_the_hybrid_wins_round_an_obstacle() -> None:
    found = outcomes("obstacle")
    for kind in ("cem", "white cem", "icem", "adaptive", "mppi", "gradient"):
        assert found["hybrid"].worst < found[kind].worst
        assert found["hybrid"].median < found[kind].median


def test_icem_gets_as_far_round_an_obstacle_as_the_cross_entropy_method_with_fewer_steps() -> None:
    found = outcomes("obstacle")
    assert found["icem"].median < 1.1 * found["cem"].median
    assert found["icem"].steps < 0.6 * found["cem"].steps


def test_correlated_noise_wins_over_white_noise() -> None:
    for name in ("bowl", "obstacle", "ripples"):
        assert outcomes(name)["cem"].median < outcomes(name)["white cem"].median


def test_gauss_newton_wins_among_many_valleys_where_descent_alone_is_lost() -> None:
    found = outcomes("ripples")
    for winner, others in (("gauss-newton", found), ("hybrid", found.keys() - {"gauss-newton"})):
        assert found[winner].worst < min(found[kind].worst for kind in others if kind != winner)
    assert found["gradient"].solved < found["cem"].solved <= found["hybrid"].solved <= found["gauss-newton"].solved


def test_samplers_win_where_there_is_no_slope() -> None:
    found = outcomes("stairs")
    for kind in ("cem", "white cem", "icem", "adaptive", "mppi"):
        assert found[kind].worst == 0
    assert found["gradient"].median > 0


def test_adaptive_sample_counts_save_steps_in_a_bowl_and_find_better_elsewhere() -> None:
    found = {name: outcomes(name) for name in ("bowl", "obstacle", "ripples")}
    assert found["bowl"]["adaptive"].steps < 0.6 * found["bowl"]["cem"].steps
    for name in ("obstacle", "ripples"):
        assert found[name]["adaptive"].steps < found[name]["cem"].steps
        assert found[name]["adaptive"].median < found[name]["cem"].median
