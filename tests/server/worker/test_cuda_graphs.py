"""Engines that capture their rollouts: the same plans, and a model that says how it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.registry import load
from model.runtime.cuda_graphs import Graphed
from server.engine.messages import SearchSize
from server.service.application import Application
from server.values.calls import GoalRequest, Observation, PlanRequest
from server.worker import cuda_graphs
from server.worker.process import own_search
from tests.server.conftest import START_S, changed, start
from tests.support.server.linear import CONFIGS, Linear
from tests.support.server.requests import plan

SIZE = SearchSize(samples=64, iterations=6, elites=8, horizon=3)


def test_what_is_captured_is_what_the_models_own_search_can_ask_for() -> None:
    model = Linear(CONFIGS["historian"])
    world, told = cuda_graphs.searched(model, SIZE, "on", max_batch=5, max_steps=1000)
    assert isinstance(world, Graphed)
    assert world.sizes == tuple((robots, 64) for robots in (1, 2, 3, 4, 5))
    assert told == "graphs of 64 samples for 1, 2, 3, 4, 5 robots"
    world, _ = cuda_graphs.searched(model, SIZE, "on", max_batch=64, max_steps=3 * SIZE.steps_per_iteration)
    assert isinstance(world, Graphed)
    assert len(world.sizes) == 3


@pytest.mark.parametrize(
    ("name", "setting", "told"),
    [
        ("linear", "off", "no graphs: they are off"),
        ("linear", "auto", "no graphs: cpu has none"),
        ("embedder", "on", "no graphs: it only embeds"),
    ],
)
def test_where_nothing_is_captured_it_is_said_why(name: str, setting: cuda_graphs.Graphs, told: str) -> None:
    world, words = cuda_graphs.searched(Linear(CONFIGS[name]), SIZE, setting, max_batch=4, max_steps=1000)
    assert not isinstance(world, Graphed)
    assert words == told


def test_a_model_that_cannot_be_captured_plans_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(function: object, inputs: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "rehearsed", none)
    model = Linear(CONFIGS["linear"])
    world, told = cuda_graphs.searched(model, SIZE, "on", max_batch=4, max_steps=1000)
    assert world is model
    assert told == "no graphs: 1 x 64 samples: operation not permitted when stream is capturing"


@pytest.mark.asyncio(loop_scope="session")
async def test_an_engine_with_graphs_finds_the_plans_of_one_without(
    application: Application, compact_folder: Path
) -> None:
    models = ("linear", str(compact_folder))
    other = await start(changed(models=models, graphs="on"), max_batch=2)
    try:
        await other.wait_ready(START_S)
        assert other.model("tiny").computes.startswith("float32 on cpu; graphs of 32 samples for 1, 2 robots;")
        assert application.model("tiny").computes.startswith("float32 on cpu; no graphs: cpu has none;")
        for name in ("linear", "tiny"):
            side = other.model(name).image.height
            image = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
            found = []
            for each in (application, other):
                goal = (await each.create_goal(GoalRequest(name, image=image[0]))).goal_id
                request = PlanRequest(Observation((image[1],)), goal_id=goal, model=name, seed=1)
                found.append(await plan(each, request))
            np.testing.assert_allclose(found[0].actions, found[1].actions, atol=1e-4)
    finally:
        await other.stop(shutdown_grace_s=0.0)


@pytest.mark.gpu
def test_the_built_in_models_search_is_captured_on_an_accelerator() -> None:
    arm = load("arm", torch.device("cuda"))
    world, told = cuda_graphs.searched(
        arm, own_search(arm.package.config.planner), "auto", max_batch=32, max_steps=65_536
    )
    assert isinstance(world, Graphed)
    assert told.endswith("28, 32 robots")
