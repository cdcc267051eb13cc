"""Ways to ask an application, shared by the tests of each of its nouns."""

from __future__ import annotations

import time
from collections.abc import Awaitable

import pytest
from presage.values import Plan, PlannerSettings

from server.errors import Reason, ServiceError
from server.service.application import Application
from server.values.calls import GoalRequest, Observation, PlanRequest, SessionRequest
from tests.support.server.linear import frame

HERE = Observation((frame(0.2, 0.4),))
QUICK = PlannerSettings(samples=16, iterations=2)
ENDLESS = PlannerSettings(samples=33, iterations=1000, elites=32)  # hardly selects, so it never converges


async def goal_at(application: Application, right: float, down: float = 0.4, model: str = "") -> str:
    return (await application.create_goal(GoalRequest(model, image=frame(right, down)))).goal_id


async def session_toward(application: Application, goal_id: str, model: str = "", seed: int = 7) -> str:
    return (await application.create_session(SessionRequest(model, goal_id, seed=seed))).session_id


async def plan(application: Application, request: PlanRequest, left_s: float | None = None) -> Plan:
    now = time.monotonic()
    return await application.plan(request, None if left_s is None else now + left_s, now)


async def refused(call: Awaitable[object], reason: Reason, field: str = "") -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call
    assert caught.value.reason is reason, caught.value.message
    assert caught.value.field == field, caught.value.message
    return caught.value
