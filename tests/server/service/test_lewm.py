"""LeWM behind the service: planned, embedded and predicted with, from one image or from several and what was done."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import presage
import pytest
import pytest_asyncio
from presage.values import PlannerSettings

from model.checkpoints.action_statistics import ActionStatistics
from model.checkpoints.families import ImportOptions, import_weights
from server.engine.messages import Floats
from server.errors import ServiceError
from server.service.application import Application
from server.values.calls import (
    EmbedImagesRequest,
    Frame,
    GoalRequest,
    Observation,
    PlanRequest,
    ScoreRequest,
    SessionRequest,
    SurpriseRequest,
)
from tests.server.conftest import START_S, changed, start
from tests.support.model.lewm import write_folder
from tests.support.server.transports import json_image, open_service

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUICK = PlannerSettings(samples=16, iterations=3, elites=4, horizon=2)
RNG = np.random.default_rng(0)
FRAMES: list[Frame] = [RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(4)]
GOALS: list[Frame] = [RNG.integers(0, 256, (60, 60, 3), dtype=np.uint8) for _ in range(2)]
BLOCK = 5


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def application(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Application]:
    folder = tmp_path_factory.mktemp("lewm")
    statistics = ActionStatistics(mean=(0.1, -0.2), std=(0.4, 0.5), source="a test")
    import_weights(write_folder(folder / "downloaded"), folder / "tiny", ImportOptions(statistics=statistics))
    started = await start(changed(models=(str(folder / "tiny"),)))
    await started.wait_ready(START_S)
    yield started
    await started.stop(shutdown_grace_s=0.0)


async def goals(application: Application) -> list[str]:
    return [(await application.create_goal(GoalRequest(image=image))).goal_id for image in GOALS]


async def actions_of(application: Application, request: PlanRequest) -> Floats:
    return (await application.plan(request, None, time.monotonic())).actions


async def test_a_plan_names_its_search_and_keeps_the_bounds(application: Application) -> None:
    (goal, _) = await goals(application)
    asked = PlanRequest(Observation((FRAMES[0],)), goal_id=goal, planner=QUICK, seed=1)
    plan = await application.plan(asked, None, time.monotonic())
    assert plan.actions.shape == (2 * BLOCK, 2)
    assert (np.abs(plan.actions) <= 1).all()
    assert (plan.provenance.planner.optimizer, plan.provenance.crop_policy) == ("lewm", "short_side")
    assert plan.provenance.unbounded_search
    assert plan.step_costs[0] == 0
    assert plan.warnings == ()


async def test_a_frame_that_is_not_square_is_planned_with_and_warned_of(application: Application) -> None:
    (goal, _) = await goals(application)
    wide: Frame = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    asked = PlanRequest(Observation((wide,)), goal_id=goal, planner=QUICK, seed=1)
    (warning,) = (await application.plan(asked, None, time.monotonic())).warnings
    assert warning.startswith("frames: 60 x 80 pixels are not square")


async def test_a_session_looks_back_as_a_request_does_that_says_what_was(application: Application) -> None:
    first, second = await goals(application)
    session = await application.create_session(SessionRequest(goal_id=first, seed=3))
    name = session.session_id
    done: list[Floats] = []
    for step in range(3):
        asked = PlanRequest(Observation((FRAMES[step],)), name, planner=QUICK, seed=1, executed=BLOCK if step else 0)
        done.append((await actions_of(application, asked))[:BLOCK])
    inside = await actions_of(
        application,
        PlanRequest(Observation((FRAMES[3],)), name, goal_id=second, planner=QUICK, seed=1, executed=BLOCK),
    )
    past = Observation((FRAMES[3],), past_images=tuple(FRAMES[1:3]), past_actions=np.concatenate(done[1:]))
    alone = await actions_of(application, PlanRequest(past, goal_id=second, planner=QUICK, seed=1))
    np.testing.assert_allclose(inside, alone, atol=1e-5)
    forgetful = PlanRequest(Observation((FRAMES[3],)), goal_id=second, planner=QUICK, seed=1)
    assert np.abs(inside - await actions_of(application, forgetful)).max() > 1e-3


async def test_between_whole_steps_a_session_looks_back_on_nothing(application: Application) -> None:
    first, second = await goals(application)
    session = await application.create_session(SessionRequest(goal_id=first, seed=3))
    start = PlanRequest(Observation((FRAMES[0],)), session_id=session.session_id, planner=QUICK, seed=1)
    alone = PlanRequest(Observation((FRAMES[0],)), goal_id=first, planner=QUICK, seed=1)
    assert np.array_equal(await actions_of(application, start), await actions_of(application, alone))
    later = replace(start, observation=Observation((FRAMES[1],)), goal_id=second, executed=3)
    alone = PlanRequest(Observation((FRAMES[1],)), goal_id=second, planner=QUICK, seed=1)
    assert np.array_equal(await actions_of(application, later), await actions_of(application, alone))


async def test_scores_take_the_past_too(application: Application) -> None:
    (goal, _) = await goals(application)
    candidates = RNG.uniform(-1, 1, (3, BLOCK, 2)).astype(np.float32)
    forward = np.ones((BLOCK, 2), np.float32)
    past = Observation((FRAMES[1],), past_images=(FRAMES[0],), past_actions=forward)
    other = replace(past, past_actions=-forward)
    costs = [
        (await application.score(ScoreRequest(seen, candidates, goal_id=goal), None)).costs for seen in (past, other)
    ]
    assert np.abs(costs[0] - costs[1]).max() > 1e-6


@pytest.mark.parametrize(
    ("images", "actions", "field", "rule"),
    [
        (3, 15, "past_images", "must be 1 to 2"),
        (1, 4, "past_actions", r"must be \[5, 2\]"),
        (0, 5, "past_images", "must be 1 to 2"),
        (2, 0, "past_actions", r"must be \[10, 2\]"),
    ],
)
async def test_a_past_that_cannot_be_is_refused(
    application: Application, images: int, actions: int, field: str, rule: str
) -> None:
    (goal, _) = await goals(application)
    seen = Observation(
        (FRAMES[0],), past_images=tuple(FRAMES[1 : 1 + images]), past_actions=np.zeros((actions, 2), np.float32)
    )
    with pytest.raises(ServiceError, match=rule) as raised:
        await application.plan(PlanRequest(seen, goal_id=goal, planner=QUICK), None, time.monotonic())
    assert raised.value.field == f"observation.{field}"


async def test_a_session_takes_no_past(application: Application) -> None:
    (goal, _) = await goals(application)
    session = await application.create_session(SessionRequest(goal_id=goal))
    seen = Observation((FRAMES[0],), past_images=(FRAMES[1],), past_actions=np.zeros((BLOCK, 2), np.float32))
    with pytest.raises(ServiceError, match="must be left out in a session"):
        await application.plan(PlanRequest(seen, session_id=session.session_id), None, time.monotonic())


async def test_images_are_embedded_and_surprises_measured(application: Application) -> None:
    embedded = await application.embed_images(EmbedImagesRequest(tuple(FRAMES)), None)
    assert embedded.embedding.shape == (4, 24)
    seen = tuple(Observation((frame,)) for frame in FRAMES)
    found = await application.surprise(SurpriseRequest(seen, np.zeros((3 * BLOCK, 2), np.float32)), None)
    assert len(found.errors) == 3
    assert all(error > 0 for error in found.errors)


async def test_a_request_names_its_distance_and_its_rates(application: Application) -> None:
    (goal, _) = await goals(application)
    asked = PlanRequest(Observation((FRAMES[0],)), goal_id=goal, planner=QUICK, seed=1)
    costs = []
    for settings in (QUICK, replace(QUICK, metric="rms"), replace(QUICK, metric="l1")):
        plan = await application.plan(replace(asked, planner=settings), None, time.monotonic())
        assert plan.provenance.planner.metric == settings.metric
        costs.append(plan.objective)
    assert costs[1] == pytest.approx(costs[0] ** 0.5, rel=1e-5)  # the same order of candidates, and so the same plan
    assert costs[2] <= costs[1]
    every = replace(QUICK, optimizer="icem", sample_decay=1.0)
    plan = await application.plan(replace(asked, planner=every), None, time.monotonic())
    assert plan.provenance.planner.sample_decay == 1.0
    assert not plan.provenance.unbounded_search


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"metric": "l3"}, "metric"),
        ({"narrowing": 0.5}, "narrowing"),
        ({"optimizer": "mppi", "narrowing": 0.0}, "narrowing"),
        ({"optimizer": "mppi", "sample_decay": 0.5}, "sample_decay"),
        ({"sample_decay": float("nan")}, "sample_decay"),
    ],
)
async def test_settings_that_cannot_be_are_refused(
    application: Application, settings: dict[str, Any], field: str
) -> None:
    (goal, _) = await goals(application)
    asked = PlanRequest(Observation((FRAMES[0],)), goal_id=goal, planner=replace(QUICK, **settings))
    with pytest.raises(ServiceError) as raised:
        await application.plan(asked, None, time.monotonic())
    assert raised.value.field == f"planner.{field}"


async def test_clients_say_what_was_over_either_transport(application: Application) -> None:
    (goal, _) = await goals(application)
    executed = np.full((BLOCK, 2), 0.5, np.float32)
    seen = Observation((FRAMES[1],), past_images=(FRAMES[0],), past_actions=executed)
    wanted = await actions_of(application, PlanRequest(seen, goal_id=goal, planner=QUICK, seed=1))
    async with open_service(application) as service:
        asked = presage.Observation((FRAMES[1],), past_images=(FRAMES[0],), past_actions=executed)
        async with presage.AsyncClient(service.addresses.grpc) as client:
            plan = await client.plan(asked, goal, settings=QUICK, seed=1)
        body = {
            "observation": {
                "images": [json_image(FRAMES[1])],
                "past_images": [json_image(FRAMES[0])],
                "past_actions": executed.tolist(),
            },
            "goal_id": goal,
            "planner": {"samples": 16, "iterations": 3, "elites": 4, "horizon": 2},
            "seed": 1,
        }
        reply = await service.rest.post("/v1/plans", json=body)
    assert reply.status_code == 200, reply.text
    assert plan.provenance.unbounded_search
    assert reply.json()["provenance"]["unbounded_search"] is True
    np.testing.assert_allclose(plan.actions, wanted, atol=1e-6)
    told = reply.json()["actions"]
    over_rest = np.frombuffer(base64.b64decode(told["data"]), "<f4").reshape(told["shape"])
    np.testing.assert_allclose(over_rest, wanted, atol=1e-6)
