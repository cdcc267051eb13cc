"""The same request and seed give the same plan, alone and in company."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from model.built_in import built_in
from model.interface import LoadedModel
from model.registry import load
from server.engine.messages import Done, FromEngine, PlanDone, PlanJob, SearchSize, Start
from server.worker import model_adapter
from server.worker.batch_invariance import BatchSizes, measured
from server.worker.process import own_search
from server.worker.scheduling.plan_scheduler import PlanScheduler
from tests.support.server.linear import CONFIGS, Linear

CPU = torch.device("cpu")
OPTIMIZERS = ("cem", "mppi", "gradient", "gauss_newton", "lewm")
REQUESTS = 3
GRADIENT_BOUND = 1e-4  # of an action's range: PyTorch's backward pass sums in an order that depends on the batch
needs_arm = pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def arm(request: pytest.FixtureRequest) -> LoadedModel:
    model = load("arm", CPU)
    dtype: torch.dtype = request.param
    return model if dtype == torch.float32 else model.to_precision(dtype)


def jobs(model: LoadedModel, size: SearchSize) -> list[PlanJob]:
    """Plans from one noisy picture to another."""
    image = model.package.config.image
    pictures = np.random.default_rng(0).integers(0, 256, (REQUESTS + 1, image.height, image.width, 3), dtype=np.uint8)
    goals = [model_adapter.to_host(model_adapter.encode_frames(model, [each])[0]) for each in pictures]
    name = model.package.config.name
    return [PlanJob(name, Start((pictures[at],), (), None), goals[at + 1], size, seed=at) for at in range(REQUESTS)]


def plans(model: LoadedModel, wanted: list[PlanJob], sizes: BatchSizes) -> list[np.ndarray]:
    """The actions of each, of jobs that all arrive at once."""
    said: list[FromEngine] = []
    name = model.package.config.name
    scheduler = PlanScheduler({name: model}, 8, 65_536, said.append, lambda: 0.0, sizes={name: sizes})
    for number, job in enumerate(wanted, start=1):
        scheduler.add(number, job)
    while scheduler.busy:
        scheduler.step()
    found = {m.number: m.result for m in said if isinstance(m, Done) and isinstance(m.result, PlanDone)}
    return [found[number].plan.actions for number in range(1, len(wanted) + 1)]


@needs_arm
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_company_changes_no_plan(arm: LoadedModel, optimizer: str) -> None:
    count = 6 if optimizer == "gradient" else 32
    size = SearchSize(samples=count, iterations=3, elites=6, horizon=3, optimizer=optimizer)
    wanted = jobs(arm, size)
    sizes = measured(arm, model_adapter.world_model(arm), size, most=8)
    alone = [plans(arm, [job], sizes)[0] for job in wanted]
    together = plans(arm, wanted, sizes)
    space = model_adapter.action_space(arm)
    assert space is not None
    span = np.array(space.high) - np.array(space.low)
    for own, other in zip(alone, together, strict=True):
        if optimizer == "gradient":
            assert (np.abs(own - other) / span).max() <= GRADIENT_BOUND
        else:
            np.testing.assert_array_equal(own, other)


class Crowded(Linear):
    """A model that counts who is beside whom: encodings, rollouts, or both depend on it."""

    def __init__(self, encodes: bool, rolls_out: bool) -> None:
        super().__init__(CONFIGS["linear"])
        self.encodes, self.rolls_out = encodes, rolls_out

    def encode(self, frames: Tensor) -> Tensor:
        return super().encode(frames) + self._crowd(frames, self.encodes)

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        return super().rollout(context, actions) + self._crowd(actions, self.rolls_out)

    @staticmethod
    def _crowd(rows: Tensor, counts: bool) -> float:
        return 1e-3 * len(rows) if counts else 0.0


@pytest.mark.parametrize("encodes", [False, True])
@pytest.mark.parametrize("rolls_out", [False, True])
def test_what_company_would_change_is_computed_one_by_one(encodes: bool, rolls_out: bool) -> None:
    model = Crowded(encodes, rolls_out)
    sizes = measured(model, model, replace(own_search(model.package.config.planner), samples=8), most=8)
    assert sizes == BatchSizes(encoded=1 if encodes else 8, searched=1 if rolls_out else 8)
    said: Callable[[], str] = sizes.described
    assert ("encodings" in said()) == encodes
    assert ("searches" in said()) == rolls_out
