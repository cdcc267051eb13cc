"""Iterations that never wait for the device, but for the one reading of costs at their end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

from planner.anytime import Optimizer
from planner.cost import ActionCost, GoalDistance, WeightedSum
from planner.noise import ColoredNoise
from planner.optimizers.cem import CEM
from planner.optimizers.hybrid import Hybrid
from planner.transfer import to_device
from planner.types import ActionSpace, Problem
from planner.world_model import CostFunction
from tests.support.planner.every_optimizer import OPTIMIZERS, SMALL, changed
from tests.support.planner.pretended import DEVICE, over, pretended_device
from tests.support.planner.problems import integrator

CPU = torch.device("cpu")
EVERYTHING = WeightedSum(
    (
        (1.0, GoalDistance("l1", over="discounted", discount=0.9)),
        (1.0, GoalDistance("cosine")),
        (0.1, ActionCost((0.5, 1.0))),
    )
)
PER_DIMENSION = replace(SMALL, momentum_mean=(0.1, 0.2), momentum_std=(0.1, 0.2), result="mean", kept=0.0)
SEARCHES: dict[str, Optimizer] = {
    **OPTIMIZERS,
    "per dimension": PER_DIMENSION,
    "colored": replace(SMALL, noise=ColoredNoise(2.0, fade=0.5)),
    "every cost": changed(OPTIMIZERS["hybrid"], cost=EVERYTHING),
    "published": replace(CEM.vjepa2_ac_paper(), samples=64, iterations=3, horizon=4),
}
FREE = ActionSpace(("a", "b"), ("m", "m"), (-1.0, -1.0), (1.0, 1.0), rate_hz=10.0)
BOUND = replace(FREE, slew=(0.5, 0.5), dwell=(1, 2), max_norm=1.0, norm_of=("a",))


def iterate(optimizer: Optimizer, space: ActionSpace, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Iterations of two searches side by side, to their end on the pretended device, and how often the host waited."""
    problems = [Problem((torch.zeros(1, 2),), torch.ones(2), space, seed) for seed in (1, 2)]
    searches = [optimizer.start(problem, block=1) for problem in problems]
    iterations = 0
    with pretended_device(monkeypatch) as waits:
        world, running = over(integrator()), [over(search) for search in searches]
        while optimizer.stopped(running[0]) is None:
            running = optimizer.improve(world, running)
            iterations += 1
        assert running[0].best_actions.device == DEVICE
    return iterations, waits.count


@pytest.mark.parametrize("space", [FREE, BOUND], ids=["free", "bound"])
@pytest.mark.parametrize("optimizer", SEARCHES.values(), ids=SEARCHES.keys())
def test_an_iteration_waits_for_the_device_once(
    optimizer: Optimizer, space: ActionSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterations, waits = iterate(optimizer, space, monkeypatch)
    assert iterations == optimizer.iterations
    assert waits == iterations


def test_a_search_at_another_iteration_than_its_company_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = OPTIMIZERS["hybrid"]
    assert isinstance(optimizer, Hybrid)
    searches = [optimizer.start(Problem((torch.zeros(1, 2),), torch.ones(2), FREE, seed), 1) for seed in (1, 2)]
    for _ in range(optimizer.search.iterations):
        (searches[0],) = optimizer.improve(integrator(), [searches[0]])
    with pretended_device(monkeypatch) as waits:
        optimizer.improve(over(integrator()), [over(search) for search in searches])
    assert waits.count == 2  # one still samples, the other descends


def reads(predicted: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    return GoalDistance()(predicted, goal, actions) * predicted.sum().item()


def branches(predicted: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    costs = GoalDistance()(predicted, goal, actions)
    return costs if bool((costs > 0).all()) else -costs


def mixes(predicted: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    return GoalDistance()(predicted, goal, actions) * torch.ones(4)


def sends(predicted: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    return GoalDistance()(predicted, goal, actions) * torch.ones(4).to(predicted.device)


def copies(predicted: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
    return GoalDistance()(predicted, goal, actions) * torch.tensor([1.0, 1.0, 1.0, 1.0], device=predicted.device)


@pytest.mark.parametrize(
    ("cost", "error"),
    [
        (reads, DataDependentOutputException),
        (branches, DataDependentOutputException),
        (mixes, RuntimeError),
        (copies, AssertionError),
        (sends, AssertionError),
    ],
)
def test_a_cost_that_would_make_the_host_wait_is_found(
    cost: CostFunction, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(error):
        iterate(replace(SMALL, cost=cost), FREE, monkeypatch)


def test_values_arrive_as_they_were() -> None:
    values = torch.randn(3, 4)
    assert to_device(values, CPU) is values
    assert to_device(values, "cpu") is values


@pytest.mark.gpu
def test_values_arrive_on_a_cuda_device_as_they_were() -> None:
    values = torch.randn(1000, 1000)
    sent = [to_device(values + number, torch.device("cuda")) for number in range(8)]
    for number, arrived in enumerate(sent):
        assert torch.equal(arrived.cpu(), values + number)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", SEARCHES.values(), ids=SEARCHES.keys())
def test_plans_on_a_cuda_device_come_near_those_of_the_host(optimizer: Optimizer) -> None:
    from planner.anytime import plan_in_time

    device = torch.device("cuda")
    world = integrator()
    there = replace(world, transition=world.transition.to(device), effect=world.effect.to(device))
    costs = []
    for where, each in ((CPU, world), (device, there)):
        problem = Problem((torch.zeros(1, 2, device=where),), torch.full((2,), 0.2, device=where), BOUND, seed=1)
        costs.append(plan_in_time(optimizer, each, problem).cost)
    assert costs[1] == pytest.approx(costs[0], rel=0.5, abs=1e-3)
