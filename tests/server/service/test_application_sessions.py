"""Models, goals and sessions of an application, in process, with every refusal by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from presage.values import ImageSpec, PlannerSettings

from server.errors import Reason, ServiceError
from server.service.application import Application
from server.values.calls import GoalRequest, PlanRequest, SessionRequest
from tests.support.server.linear import ACTION, SIDE, frame, latent
from tests.support.server.requests import HERE, goal_at, plan, refused

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_models_say_what_they_need_and_the_default_comes_first(application: Application) -> None:
    names = [model.name for model in application.models()]
    assert names == ["linear", "slow", "nan", "embedder", "historian", "table", "guided", "limited", "tiny"]
    model = application.model("")
    assert model == application.models()[0]
    assert model.image == ImageSpec(SIDE, SIDE, "exact", 1)
    assert model.action is not None
    assert (model.action.names, model.action.low, model.action.high) == (ACTION.names, ACTION.low, ACTION.high)
    assert (model.action.rate_hz, model.action.block, model.latent_shape) == (10.0, 2, (2,))
    assert model.planner == PlannerSettings(64, 6, 8, 3, "cem", discount=1.0)
    assert model.execute == 5
    assert application.model("embedder").action is None
    assert (model.history, application.model("historian").history, model.past_actions) == (1, 3, False)
    assert application.model("tiny").card.startswith("# tiny")
    with pytest.raises(ServiceError) as caught:
        application.model("nobody")
    assert (caught.value.reason, caught.value.value) == (Reason.UNKNOWN_MODEL, "nobody")


async def test_a_goal_is_embedded_once_and_found_again(application: Application) -> None:
    image = frame(0.123, 0.456)
    first = await application.create_goal(GoalRequest(image=image))
    second = await application.create_goal(GoalRequest("linear", image=image.copy()))
    assert (first.cached, second.cached) == (False, True)
    assert (second.goal_id, second.create_time_ns) == (first.goal_id, first.create_time_ns)
    assert (await application.get_goal(first.goal_id)).model == "linear"
    await application.delete_goal(first.goal_id)
    await refused(application.get_goal(first.goal_id), Reason.UNKNOWN_GOAL, "goal_id")


async def test_a_goal_can_be_a_latent(application: Application) -> None:
    by_image = await goal_at(application, 0.6)
    by_latent = (await application.create_goal(GoalRequest(latent=latent(0.6, 0.4)))).goal_id
    replies = [await plan(application, PlanRequest(HERE, goal_id=goal, seed=1)) for goal in (by_image, by_latent)]
    np.testing.assert_array_equal(replies[0].actions, replies[1].actions)
    assert by_image != by_latent


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (GoalRequest(), Reason.INVALID_FIELD, "source"),
        (GoalRequest(image=frame(0, 0), latent=latent(0, 0)), Reason.INVALID_FIELD, "source"),
        (GoalRequest(image=frame(0, 0)[1:]), Reason.IMAGE_SIZE, "image"),
        (GoalRequest(image=frame(0, 0)[:, :, 0]), Reason.INVALID_IMAGE, "image"),
        (GoalRequest(latent=np.zeros(3, np.float32)), Reason.INVALID_TENSOR, "latent"),
        (GoalRequest(latent=np.array([np.nan, 0], np.float32)), Reason.INVALID_TENSOR, "latent"),
        (GoalRequest("nobody", image=frame(0, 0)), Reason.UNKNOWN_MODEL, "model"),
    ],
)
async def test_a_bad_goal_is_refused_by_name(
    application: Application, request_: GoalRequest, reason: Reason, field: str
) -> None:
    await refused(application.create_goal(request_), reason, field)


async def test_a_session_from_its_creation_to_its_end(application: Application) -> None:
    goal = await goal_at(application, 0.5)
    created = await application.create_session(SessionRequest(goal_id=goal, ttl_s=60, seed=7))
    assert (created.model, created.goal_id, created.ttl_s, created.epoch, created.plans) == ("linear", goal, 60, 0, 0)
    await plan(application, PlanRequest(replace(HERE, sequence=5), session_id=created.session_id))
    told = await application.get_session(created.session_id)
    assert (told.plans, told.last_sequence) == (1, 5)
    reset = await application.reset_session(created.session_id)
    assert (reset.epoch, reset.plans, reset.last_sequence, reset.goal_id) == (1, 0, 0, goal)
    await application.delete_session(created.session_id)
    await refused(application.get_session(created.session_id), Reason.UNKNOWN_SESSION, "session_id")


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (SessionRequest("nobody"), Reason.UNKNOWN_MODEL, "model"),
        (SessionRequest("embedder"), Reason.UNSUPPORTED, ""),
        (SessionRequest(goal_id="none"), Reason.UNKNOWN_GOAL, "goal_id"),
        (SessionRequest(ttl_s=-1.0), Reason.INVALID_FIELD, "ttl_s"),
        (SessionRequest(ttl_s=float("nan")), Reason.INVALID_FIELD, "ttl_s"),
        (SessionRequest(ttl_s=1e9), Reason.INVALID_FIELD, "ttl_s"),
        (SessionRequest(seed=-1), Reason.INVALID_FIELD, "seed"),
    ],
)
async def test_a_bad_session_is_refused_by_name(
    application: Application, request_: SessionRequest, reason: Reason, field: str
) -> None:
    await refused(application.create_session(request_), reason, field)


async def test_a_goal_of_another_model_is_refused(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    await refused(application.create_session(SessionRequest(goal_id=goal)), Reason.INVALID_FIELD, "goal_id")
    await refused(plan(application, PlanRequest(HERE, goal_id=goal)), Reason.INVALID_FIELD, "goal_id")
