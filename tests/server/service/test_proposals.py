"""Proposals, costs of one step and arrivals, from a plan request to its reply and to the session's next plan."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from presage.values import Plan, PlannerSettings

from server.service.application import Application
from server.values.calls import Observation, PlanRequest
from tests.support.server.linear import GAIN, frame, latent
from tests.support.server.requests import HERE, goal_at, plan, session_toward

pytestmark = pytest.mark.asyncio(loop_scope="session")


def after(reply: Plan, actions: int) -> Observation:
    """What is seen once so many of a plan's actions are executed from `HERE`."""
    place = latent(0.2, 0.4) + GAIN * reply.actions[:actions].sum(axis=0)
    return Observation((frame(*place.clip(0, 1)),))


async def test_a_models_proposer_competes_and_its_share_is_told(application: Application) -> None:
    goal = await goal_at(application, 0.45, model="guided")
    request = PlanRequest(HERE, model="guided", goal_id=goal, seed=1)
    reply = await plan(application, request)
    assert 0 < reply.proposal_share <= 1
    assert reply.provenance.planner.cost == "least"
    assert reply.arrival is not None
    place = latent(0.2, 0.4) + GAIN * reply.actions[: reply.arrival].sum(axis=0)
    np.testing.assert_allclose(place, latent(0.45, 0.4), atol=0.02)
    plain = await plan(application, PlanRequest(HERE, goal_id=await goal_at(application, 0.45), seed=1))
    assert (plain.proposal_share, plain.kept, plain.arrival) == (0.0, False, 6)


async def test_a_policy_answers_without_a_search(application: Application) -> None:
    goal = await goal_at(application, 0.45, model="guided")
    settings = PlannerSettings(optimizer="policy")
    reply = await plan(application, PlanRequest(HERE, model="guided", goal_id=goal, planner=settings))
    assert (reply.iterations_done, reply.proposal_share, reply.arrival) == (1, 1.0, 6)
    push = (latent(0.45, 0.4) - latent(0.2, 0.4)) / GAIN / 6
    np.testing.assert_allclose(reply.actions, np.broadcast_to(push, (6, 2)), atol=1e-5)


async def test_a_session_carries_a_plans_arrival_on(application: Application) -> None:
    goal = await goal_at(application, 0.45, model="guided")
    session = await session_toward(application, goal, model="guided", seed=3)
    policy = PlannerSettings(optimizer="policy")
    first = await plan(application, PlanRequest(HERE, session, planner=policy))
    later = PlanRequest(after(first, 2), session, planner=policy, executed=2)
    second = await plan(application, later)
    assert (first.arrival, second.arrival) == (6, 4)
    assert (second.actions[4:] == 0).all(), "it has arrived by then"


async def test_a_plan_is_kept_until_another_is_clearly_better(application: Application) -> None:
    goal = await goal_at(application, 0.45, model="guided")
    session = await session_toward(application, goal, model="guided", seed=3)
    first = await plan(application, PlanRequest(HERE, session))
    assert first.arrival is not None
    second = await plan(application, PlanRequest(after(first, 1), session, executed=1))
    if second.kept:
        np.testing.assert_allclose(second.actions[:-1], first.actions[1:], atol=1e-6)
        assert second.arrival == first.arrival - 1
    pushed = await plan(application, PlanRequest(Observation((frame(0.9, 0.9),)), session, executed=1))
    assert not pushed.kept


async def test_a_session_that_changes_its_optimizer_is_told_what_is_not_carried_on(application: Application) -> None:
    goal = await goal_at(application, 0.45, model="guided")
    session = await session_toward(application, goal, model="guided", seed=3)
    first = await plan(application, PlanRequest(HERE, session, planner=PlannerSettings(optimizer="policy")))
    request = PlanRequest(after(first, 2), session, planner=PlannerSettings(optimizer="cem"), executed=2)
    second = await plan(application, request)
    assert "the last plan is of policy, and cem chooses its own time of arrival" in second.warnings
    assert second.warm_started


@pytest.mark.parametrize("cost", ["sum", "last", "least"])
async def test_a_request_names_the_steps_that_count(application: Application, cost: str) -> None:
    goal = await goal_at(application, 0.45)
    request = PlanRequest(HERE, goal_id=goal, planner=PlannerSettings(cost=cost), seed=5)
    reply = await application.plan(request, None, time.monotonic())
    assert reply.provenance.planner.cost == cost
    assert reply.objective is not None
    if cost == "sum":
        assert reply.objective == pytest.approx(reply.cost)  # the model's own
    else:
        assert reply.objective < reply.cost
    other = replace(request, planner=PlannerSettings(cost=cost, discount=None))
    np.testing.assert_array_equal((await plan(application, other)).actions, reply.actions)
