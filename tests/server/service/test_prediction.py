"""Rollouts, scores, distances and surprises of an application."""

from __future__ import annotations

import numpy as np
import pytest

from server.engine.messages import Floats
from server.errors import Reason
from server.service.application import Application
from server.values.calls import (
    DistanceRequest,
    GoalRequest,
    Observation,
    PlanRequest,
    RolloutRequest,
    ScoreRequest,
    SurpriseRequest,
)
from tests.support.server.linear import GAIN, frame, latent
from tests.support.server.requests import HERE, goal_at, plan, refused, session_toward

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_rollout_and_score_are_the_models(application: Application) -> None:
    goal = await goal_at(application, 0.5)
    candidates = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 4, 2)).astype(np.float32)
    expected = latent(0.2, 0.4) + GAIN * candidates.reshape(3, 2, 2, 2).sum(2).cumsum(1)
    costs = np.square(expected - latent(0.5, 0.4)).mean(-1)
    scored = await application.score(ScoreRequest(HERE, candidates, goal_id=goal))
    np.testing.assert_allclose(scored.step_costs, costs, rtol=1e-5)
    np.testing.assert_allclose(scored.costs, costs.sum(1), rtol=1e-5)
    rolled = await application.rollout(RolloutRequest(HERE, candidates[1], goal_id=goal))
    np.testing.assert_allclose(rolled.latents, expected[1], rtol=1e-5)
    np.testing.assert_allclose(rolled.goal_distances, costs[1], rtol=1e-5)
    assert (await application.rollout(RolloutRequest(HERE, candidates[1]))).goal_distances == ()


async def test_a_plan_costs_what_its_score_says(application: Application) -> None:
    goal = await goal_at(application, 0.45)
    reply = await plan(application, PlanRequest(HERE, goal_id=goal))
    scored = await application.score(ScoreRequest(HERE, reply.actions[None], goal_id=goal))
    np.testing.assert_allclose(scored.step_costs[0], reply.step_costs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "value", "reason"),
    [
        ((2, 3), 0.0, Reason.ACTION_SHAPE),
        ((3, 2), 0.0, Reason.ACTION_SHAPE),
        ((0, 2), 0.0, Reason.ACTION_SHAPE),
        ((2,), 0.0, Reason.ACTION_SHAPE),
        ((2, 2), float("nan"), Reason.INVALID_TENSOR),
    ],
)
async def test_bad_actions_are_refused_by_name(
    application: Application, shape: tuple[int, ...], value: float, reason: Reason
) -> None:
    actions = np.full(shape, value, np.float32)
    goal = await goal_at(application, 0.5)
    await refused(application.rollout(RolloutRequest(HERE, actions)), reason, "actions")
    await refused(application.score(ScoreRequest(HERE, actions[None], goal_id=goal)), reason, "candidates")


async def test_a_score_needs_a_goal(application: Application) -> None:
    await refused(
        application.score(ScoreRequest(HERE, np.zeros((1, 2, 2), np.float32))), Reason.GOAL_REQUIRED, "goal_id"
    )


# Distance


async def test_distances_are_those_to_the_calls_goal_or_the_sessions(application: Application) -> None:
    goal, other = await goal_at(application, 0.5), await goal_at(application, 0.0)
    images = (frame(0.5, 0.4), frame(0.2, 0.4))
    expected = [0.0, float(np.square(latent(0.2, 0.4) - latent(0.5, 0.4)).mean())]
    named = await application.distance(DistanceRequest(images, goal_id=goal))
    assert named.distances == pytest.approx(expected, abs=1e-7)
    session = await session_toward(application, goal)
    assert (await application.distance(DistanceRequest(images, session))).distances == named.distances
    elsewhere = await application.distance(DistanceRequest(images, session, goal_id=other))
    assert elsewhere.distances != named.distances
    embedder = (await application.create_goal(GoalRequest("embedder", image=images[0]))).goal_id
    assert (await application.distance(DistanceRequest(images, model="embedder", goal_id=embedder))).distances[0] == 0.0


async def test_a_distance_needs_a_goal_and_images_of_the_models_size(application: Application) -> None:
    await refused(application.distance(DistanceRequest((frame(0, 0),))), Reason.GOAL_REQUIRED, "goal_id")
    goal = await goal_at(application, 0.5)
    await refused(application.distance(DistanceRequest((), goal_id=goal)), Reason.INVALID_FIELD, "images")
    small = (frame(0, 0), frame(0, 0)[1:])
    await refused(application.distance(DistanceRequest(small, goal_id=goal)), Reason.IMAGE_SIZE, "images[1]")


# Surprise


def walk(steps: int, push: float = 0.0) -> tuple[tuple[Observation, ...], Floats]:
    """What is seen on the way right at full speed, and the actions said to be taken; `push` moves the last step."""
    places = [0.1 + 2 * GAIN * step for step in range(steps + 1)]
    places[-1] += push
    return tuple(Observation((frame(at, 0.4),)) for at in places), np.tile(np.float32([1.0, 0.0]), (2 * steps, 1))


async def test_surprise_is_how_far_each_observation_is_from_the_one_predicted(application: Application) -> None:
    seen, actions = walk(4, push=0.3)
    reply = await application.surprise(SurpriseRequest(seen, actions))
    latents = np.stack([latent(0.1 + 2 * GAIN * step, 0.4) for step in range(4)] + [latent(0.1 + 8 * GAIN + 0.3, 0.4)])
    predicted = latents[:-1] + np.float32([2 * GAIN, 0.0])
    np.testing.assert_allclose(reply.errors, np.square(predicted - latents[1:]).mean(1), atol=1e-7)
    assert reply.errors[-1] > 1000 * max(reply.errors[:-1])
    assert (reply.scores, reply.steps_known) == ((), 0)


async def test_a_session_learns_what_is_usual_and_judges_by_it_over_resets(application: Application) -> None:
    session = await session_toward(application, await goal_at(application, 0.5))
    usual, actions = walk(4)
    for known in (4, 8):
        reply = await application.surprise(SurpriseRequest(usual, actions, session))
        assert (reply.scores, reply.steps_known) == ((), known)
    await application.reset_session(session)
    calm = await application.surprise(SurpriseRequest(usual, actions, session))
    assert calm.steps_known == 12
    assert max(calm.scores) < 3
    pushed = await application.surprise(SurpriseRequest(*walk(4, push=0.3), session))
    assert pushed.scores[-1] > 100 > 3 > max(pushed.scores[:-1])


async def test_surprise_looks_back_as_far_as_the_model_does(application: Application) -> None:
    places = [0.1, 0.2, 0.4, 0.8]
    seen = tuple(Observation((frame(at, 0.4),), np.array([at], np.float32)) for at in places)
    reply = await application.surprise(SurpriseRequest(seen, np.zeros((6, 2), np.float32), model="historian"))
    latents = np.stack([latent(at, 0.4) for at in places])
    means = [latents[max(0, step - 2) : step + 1].mean(0) for step in range(3)]  # what the historian starts from
    np.testing.assert_allclose(reply.errors, np.square(means - latents[1:]).mean(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "actions", "reason", "field"),
    [
        (1, 0, Reason.INVALID_FIELD, "observations"),
        (257, 512, Reason.TOO_LARGE, "observations"),
        (3, 2, Reason.ACTION_SHAPE, "actions"),
        (3, 5, Reason.ACTION_SHAPE, "actions"),
    ],
)
async def test_surprise_needs_a_block_of_actions_between_observations(
    application: Application, count: int, actions: int, reason: Reason, field: str
) -> None:
    asked = SurpriseRequest((HERE,) * count, np.zeros((actions, 2), np.float32))
    await refused(application.surprise(asked), reason, field)


async def test_what_is_no_surprise_is_refused_by_name(application: Application) -> None:
    still = np.zeros((2, 2), np.float32)
    small = Observation((frame(0, 0)[1:],))
    await refused(
        application.surprise(SurpriseRequest((HERE, small), still)), Reason.IMAGE_SIZE, "observations[1].images[0]"
    )
    asked = SurpriseRequest((HERE, HERE), np.full((2, 2), np.nan, np.float32))
    await refused(application.surprise(asked), Reason.INVALID_TENSOR, "actions")
    await refused(application.surprise(SurpriseRequest((HERE, HERE), still, model="embedder")), Reason.UNSUPPORTED)
    edge = Observation((frame(1.0, 0.4),))
    await refused(application.surprise(SurpriseRequest((edge, edge), still, model="nan")), Reason.PLAN_FAILED)
