"""What both transports must mean alike: commitments, settings, and the instant at which a budget begins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import fields

import numpy as np
import presage
import pytest
from presage.v1 import planning_pb2

from tests.server.transport.grpc.test_service import goal, session
from tests.support.server import linear
from tests.support.server.transports import (
    Service,
    array_of,
    grpc_refusal,
    json_observation,
    proto_observation,
    rest_refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIDDLE = linear.frame(0.5, 0.5)


async def test_committed_actions_head_the_next_plan_over_grpc_rest_and_the_client(service: Service) -> None:
    goal_id = await goal(service, 0.8, 0.2)
    body = {"observation": json_observation(MIDDLE), "executed": 1, "committed": 2}

    async def by_grpc(name: str) -> np.ndarray:
        ask = planning_pb2.PlanRequest(session_id=name, observation=proto_observation(MIDDLE), executed=1, committed=2)
        return array_of((await service.planning.Plan(ask)).plan.actions)

    async def by_rest(name: str) -> np.ndarray:
        return array_of((await service.rest.post("/v1/plans", json={"session_id": name, **body})).json()["actions"])

    async def by_client(name: str) -> np.ndarray:
        async with presage.AsyncClient(service.addresses.grpc) as client:
            resumed = await client.resume_session(name)
            return (await resumed.plan(MIDDLE, executed=1, committed=2)).actions

    for ask_again in (by_grpc, by_rest, by_client):
        name = await session(service, goal_id)
        ask = planning_pb2.PlanRequest(session_id=name, observation=proto_observation(MIDDLE))
        first = array_of((await service.planning.Plan(ask)).plan.actions)
        second = await ask_again(name)
        np.testing.assert_array_equal(second[:2], first[1:3])


async def test_more_than_the_plan_has_left_cannot_be_committed(service: Service) -> None:
    name = await session(service, await goal(service, 0.8, 0.2))
    ask = planning_pb2.PlanRequest(session_id=name, observation=proto_observation(MIDDLE), committed=1)
    refused = await grpc_refusal(service.planning.Plan(ask))
    assert (refused.field, refused.rule) == ("committed", "must be 0 while the session has no plan")
    body = {"session_id": name, "observation": json_observation(MIDDLE), "committed": 1}
    again = await rest_refusal(service.rest.post("/v1/plans", json=body))
    assert (again.field, again.rule, again.message) == (refused.field, refused.rule, refused.message)


async def test_a_plan_names_every_setting_of_its_search_on_both_transports(service: Service) -> None:
    goal_id = await goal(service, 0.8, 0.2)
    ask = planning_pb2.PlanRequest(goal_id=goal_id, observation=proto_observation(MIDDLE), seed=1)
    by_grpc = (await service.planning.Plan(ask)).plan.provenance.planner
    body = {"goal_id": goal_id, "observation": json_observation(MIDDLE), "seed": 1}
    by_rest = (await service.rest.post("/v1/plans", json=body)).json()["provenance"]["planner"]
    known = {field.name for field in fields(presage.PlannerSettings)}
    assert set(by_rest) == {field.name for field in by_grpc.DESCRIPTOR.fields} == known
    for name in known - {"dimensions"}:
        assert (getattr(by_grpc, name) if by_grpc.HasField(name) else None) == by_rest[name], name


async def test_a_slow_upload_does_not_eat_the_budget(service: Service) -> None:
    """Time to think begins when the request is here as a whole, as it does over gRPC."""
    upload_s = 1.0
    body = {
        "goal_id": await goal(service, 0.5, 0.5, "slow"),
        "model": "slow",
        "observation": json_observation(MIDDLE),
        "planner": {"iterations": 500, "elites": 32},
        "budget_ms": 700.0,
        "seed": 3,
    }

    async def slowly() -> AsyncIterator[bytes]:
        content = json.dumps(body).encode()
        yield content[:100]
        await asyncio.sleep(upload_s)
        yield content[100:]

    reply = await service.rest.post("/v1/plans", content=slowly(), headers={"content-type": "application/json"})
    plan = reply.json()
    assert plan["stop_reason"] == "budget"
    assert plan["iterations_done"] > 1, "the budget was over before the search began"
    assert plan["timings"]["total_ms"] < 1e3 * upload_s + 700
