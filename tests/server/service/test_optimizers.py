"""Which search a plan is made with, and over which entries of the action."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from presage.optimizers import LAST_STEP_ALONE, OPTIMIZERS, PROPOSER_ALONE, UNBOUNDED
from presage.values import Plan, PlannerSettings

from planner import registry
from server.service.application import Application
from server.values.calls import (
    GoalRequest,
    Observation,
    PlanRequest,
)
from tests.support.server.linear import frame, latent

pytestmark = pytest.mark.asyncio(loop_scope="session")

HERE = Observation((frame(0.2, 0.4),))


async def plan(application: Application, settings: PlannerSettings, model: str = "", seed: int = 1) -> Plan:
    goal = await application.create_goal(GoalRequest(model, latent=latent(0.5, 0.3) if not model else None))
    request = PlanRequest(HERE, goal_id=goal.goal_id, planner=settings, seed=seed, model=model)
    return await application.plan(request, None, time.monotonic())


async def test_the_planner_makes_what_the_service_offers() -> None:
    made = {name: registry.optimizer(name, 64, 4, 8, 2) for name in OPTIMIZERS}
    assert set(registry.PUBLISHED) == set(LAST_STEP_ALONE)
    assert {name for name, search in made.items() if getattr(search, "unbounded", False)} == set(UNBOUNDED)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != PROPOSER_ALONE])
async def test_every_optimizer_plans_toward_the_goal_and_is_named(application: Application, name: str) -> None:
    iterations = 40 if name == "jepa_wms_droid" else 6  # its samples are drawn within a tenth of a std
    reply = await plan(application, PlannerSettings(samples=24, iterations=iterations, elites=6, optimizer=name))
    assert reply.provenance.planner.optimizer == name
    assert reply.step_costs[-1] < reply.goal_distance / 2


async def test_costs_and_the_goals_distance_are_the_models_own_whatever_the_search_minimized(
    application: Application,
) -> None:
    quick = PlannerSettings(samples=8, iterations=1)
    squared = await plan(application, quick)
    absolute = await plan(application, replace(quick, optimizer="vjepa2_ac"))
    away = latent(0.2, 0.4) - latent(0.5, 0.3)
    assert squared.goal_distance == pytest.approx(float(np.square(away).mean()))
    assert absolute.goal_distance == pytest.approx(squared.goal_distance)
    assert sum(absolute.step_costs) == pytest.approx(absolute.cost)
    assert min(absolute.step_costs) > 0  # of every step, though the search counts the last alone
    assert absolute.objective is not None
    assert absolute.objective < float(np.abs(away).mean())  # its own: mean absolute difference after the last step


async def test_a_discount_weighs_later_steps_and_is_named(application: Application) -> None:
    quick = PlannerSettings(samples=48, iterations=8, elites=6)
    plain, ending = await plan(application, quick), await plan(application, replace(quick, discount=10.0))
    assert (plain.provenance.planner.discount, ending.provenance.planner.discount) == (1.0, 10.0)
    last = len(ending.step_costs) - 1
    assert ending.step_costs[last] / 10.0**last <= plain.step_costs[last]
    assert ending.goal_distance == pytest.approx(plain.goal_distance)  # of now, which nothing weighs


async def test_entries_that_are_not_searched_rest(application: Application) -> None:
    reply = await plan(application, PlannerSettings(dimensions=("down",)))
    assert (reply.actions[:, 0] == 0).all()
    assert np.abs(reply.actions[:, 1]).max() > 0.1
    assert reply.provenance.planner.dimensions == ("down",)
