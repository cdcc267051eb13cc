"""Rollouts and scores of an application."""

from __future__ import annotations

import numpy as np
import pytest

from server.app import Application
from server.errors import Reason
from server.messages import PlanRequest, RolloutRequest, ScoreRequest
from tests.server.asking import HERE, goal_at, plan, refused
from tests.server.linear import GAIN, latent

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
