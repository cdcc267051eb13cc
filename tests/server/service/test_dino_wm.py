"""A planner of jepa-wms behind the service, with tiny random weights: plans, rollouts, and what is refused."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import presage
import pytest
import pytest_asyncio
import torch
from presage.v1 import goals_pb2
from presage.values import PlannerSettings

from model.checkpoints.families import ImportOptions
from model.checkpoints.foreign import Foreign
from model.dino_wm import DinoWorldModel, importing
from model.registry import load
from server.engine.messages import PlanDone, PlanJob, SearchSize, Start
from server.errors import Reason
from server.service.application import Application
from server.values.calls import (
    EmbedImagesRequest,
    Frame,
    GoalRequest,
    Observation,
    PlanRequest,
    RolloutRequest,
)
from server.worker.replay import _planned as planned
from tests.server.conftest import START_S, changed, start
from tests.support.model.dino_files import TINY, files
from tests.support.server.requests import refused
from tests.support.server.transports import json_image, open_service, proto_image, proto_tensor

RNG = np.random.default_rng(0)
SEEN: Frame = RNG.integers(0, 256, (28, 28, 3), dtype=np.uint8)
GOAL: Frame = RNG.integers(0, 256, (28, 28, 3), dtype=np.uint8)
MEASURED = np.array([230.0, 250.0, 1.0, -2.0], np.float32)
QUICK = PlannerSettings(samples=16, iterations=3, elites=4, horizon=2)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    held = files(folder)
    importing.import_weights(
        Foreign(held.predictor), folder / "package", ImportOptions(encoder_weights=held.encoder), TINY
    )
    return folder / "package"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def application(package: Path) -> AsyncIterator[Application]:
    started = await start(changed(models=(str(package),)))
    await started.wait_ready(START_S)
    yield started
    await started.stop(shutdown_grace_s=0.0)


@pytest.fixture(scope="module")
def model(package: Path) -> DinoWorldModel:
    loaded = load(str(package), torch.device("cpu"))
    assert isinstance(loaded, DinoWorldModel)
    return loaded


def seen(measured: np.ndarray | None = MEASURED) -> Observation:
    return Observation((SEEN,), measured)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_plan_is_within_the_bounds_and_costs_what_the_model_says(
    application: Application, model: DinoWorldModel
) -> None:
    goal = await application.create_goal(GoalRequest(image=GOAL))
    asked = PlanRequest(seen(), goal_id=goal.goal_id, planner=QUICK, seed=3)
    plan = await application.plan(asked, None, time.monotonic())
    assert plan.actions.shape == (10, 2)
    assert (np.abs(plan.actions) <= 1.0).all()
    assert plan.provenance.planner.optimizer == "jepa_wms"
    latents = model.encode(torch.from_numpy(np.stack([SEEN, GOAL])))
    context = model.context([latents[0]], torch.from_numpy(MEASURED[None]))
    predicted = model.rollout(context, torch.from_numpy(plan.actions)[None, None])[0, 0, -1]
    assert plan.cost == pytest.approx(float((predicted - latents[1]).square().mean()), rel=1e-4)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_goal_may_say_what_the_robot_should_measure_there(
    application: Application, model: DinoWorldModel
) -> None:
    wanted = np.array([300.0, 200.0, 0.0, 0.0], np.float32)
    plain = await application.create_goal(GoalRequest(image=GOAL))
    goal = await application.create_goal(GoalRequest(image=GOAL, proprioception=wanted))
    assert goal.goal_id != plain.goal_id
    assert (await application.create_goal(GoalRequest(image=GOAL, proprioception=wanted))).cached
    asked = PlanRequest(seen(), goal_id=goal.goal_id, planner=QUICK, seed=3)
    plan = await application.plan(asked, None, time.monotonic())
    latents = model.encode(torch.from_numpy(np.stack([SEEN, GOAL])))
    context = model.context([latents[0]], torch.from_numpy(MEASURED[None]))
    whole = model.measuring().rollout(context, torch.from_numpy(plan.actions)[None, None])[0, 0, -1]
    aim = model.goal(latents[1], torch.from_numpy(wanted))
    apart = (whole - aim).square()
    expected = apart[:, :64].mean() + 0.1 * apart[:, 64:].mean()
    assert plan.objective == pytest.approx(float(expected), rel=1e-4)
    assert plan.cost == pytest.approx(float(apart[:, :64].mean()), rel=1e-4)  # as `Score` prices it, by what is seen
    assert plan.goal_distance == pytest.approx(float((latents[0] - latents[1]).square().mean()), rel=1e-4)
    other = PlanRequest(seen(), goal_id=plain.goal_id, planner=QUICK, seed=3)
    assert (await application.plan(other, None, time.monotonic())).objective < plan.objective


@pytest.mark.asyncio(loop_scope="session")
async def test_distances_to_such_a_goal_are_of_what_is_seen(application: Application) -> None:
    wanted = np.array([300.0, 200.0, 0.0, 0.0], np.float32)
    goals = [
        (await application.create_goal(GoalRequest(image=GOAL, proprioception=measured))).goal_id
        for measured in (None, wanted)
    ]
    found = [await application.embed_images(EmbedImagesRequest((SEEN,), goal_id=goal)) for goal in goals]
    assert found[0].goal_distances == found[1].goal_distances
    rolled = [
        await application.rollout(RolloutRequest(seen(), np.zeros((10, 2), np.float32), goal_id=goal), None)
        for goal in goals
    ]
    assert rolled[0].goal_distances == pytest.approx(rolled[1].goal_distances)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (np.zeros(3, np.float32), "must have 4 entries"),
        (np.array([np.nan, 0, 0, 0], np.float32), "must be finite"),
    ],
)
@pytest.mark.asyncio(loop_scope="session")
async def test_what_a_goal_cannot_say_is_refused(application: Application, measured: np.ndarray, said: str) -> None:
    asked = application.create_goal(GoalRequest(image=GOAL, proprioception=measured))
    assert said in (await refused(asked, Reason.INVALID_FIELD, "proprioception")).message
    latent = GoalRequest(latent=np.zeros((4, 64), np.float32), proprioception=np.zeros(4, np.float32))
    await refused(application.create_goal(latent), Reason.INVALID_FIELD, "proprioception")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_goal_is_made_alike_by_both_transports(application: Application) -> None:
    wanted = [300.0, 200.0, 0.0, 0.0]
    async with open_service(application) as service:
        measured = proto_tensor(np.array(wanted, np.float32))
        asked = goals_pb2.GoalsCreateRequest(image=proto_image(GOAL), proprioception=measured)
        over_grpc = await service.goals.Create(asked)
        body = {"image": json_image(GOAL), "proprioception": wanted}
        reply = await service.rest.post("/v1/goals", json=body)
        assert reply.json()["goal_id"] == over_grpc.goal.goal_id
        async with presage.AsyncClient(service.addresses.grpc) as client:
            assert (await client.goal(GOAL, proprioception=wanted)).goal_id == over_grpc.goal.goal_id
            assert (await client.model()).measures_goals


@pytest.mark.asyncio(loop_scope="session")
async def test_a_rollout_shows_the_patches_of_every_step(application: Application) -> None:
    rolled = await application.rollout(RolloutRequest(seen(), np.zeros((15, 2), np.float32)), None)
    assert rolled.latents.shape == (3, 4, 64)


@pytest.mark.asyncio(loop_scope="session")
async def test_what_a_robot_measures_is_needed_and_has_a_width(application: Application) -> None:
    goal = await application.create_goal(GoalRequest(image=GOAL))
    for measured in (None, MEASURED[:2]):
        asked = PlanRequest(seen(measured), goal_id=goal.goal_id, planner=QUICK)
        await refused(
            application.plan(asked, None, time.monotonic()), Reason.INVALID_FIELD, "observation.proprioception"
        )


@pytest.mark.asyncio(loop_scope="session")
async def test_the_service_says_whose_license_the_weights_are_under(application: Application) -> None:
    (told,) = application.models()
    assert told.license.startswith("CC-BY-NC 4.0")
    assert told.proprioception_names == ("x", "y", "x velocity", "y velocity")


def test_a_recorded_plan_toward_such_a_goal_is_made_again_without_its_picture(model: DinoWorldModel) -> None:
    latents = model.encode(torch.from_numpy(np.stack([SEEN, GOAL])))
    aim = model.goal(latents[1], torch.tensor([300.0, 200.0, 0.0, 0.0])).numpy()
    size = SearchSize(samples=16, iterations=3, elites=4, horizon=2, optimizer="jepa_wms")
    job = PlanJob("tiny", Start((SEEN,), proprioception=MEASURED[None]), aim, size, seed=5)
    recorded = cast(
        PlanDone, SimpleNamespace(plan=SimpleNamespace(iterations_done=3), size=size, latent=latents[0].numpy())
    )
    first = planned(job, recorded, model)
    again = planned(replace(job, start=replace(job.start, frames=())), recorded, model)
    assert isinstance(first, PlanDone)
    assert isinstance(again, PlanDone)
    np.testing.assert_allclose(again.plan.actions, first.plan.actions, atol=1e-6)
    assert again.plan.cost == pytest.approx(first.plan.cost, rel=1e-6)
