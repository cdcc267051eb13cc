"""Limits on actions through both transports: what holds, what is refused, and where a session's slew begins."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import presage
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from presage import ActionLimits
from presage.limits import fault, held_for
from presage.v1 import models_pb2, planning_pb2, sessions_pb2

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
NAMES, REST = linear.ACTION.names, linear.ACTION.at_rest
OPTIMIZERS = (
    *("cem", "icem", "mppi", "gradient", "hybrid", "gauss_newton", "real_time_iteration", "vjepa2_ac"),
    *("lewm", "dino_wm", "jepa_wms", "jepa_wms_droid", "policy"),
)


def sent(limits: ActionLimits) -> dict[str, Any]:
    return {name: value for name, value in asdict(limits).items() if value not in (None, ())}


def message(limits: ActionLimits) -> models_pb2.ActionLimits:
    return models_pb2.ActionLimits(**sent(limits))


@st.composite
def narrower(draw: st.DrawFn) -> ActionLimits:
    """Any limits that a session of `linear` may be opened with."""
    held = [draw(st.sampled_from([None, -0.25, 0.25])) for _ in NAMES]
    norm = draw(st.sampled_from([None, 0.6, 0.9]))
    return ActionLimits(
        low=tuple(-0.5 if value is None else value for value in held),
        high=tuple(0.375 if value is None else value for value in held),
        slew=draw(st.sampled_from([(), (0.1, 0.3), (0.05, 5.0)])),
        max_norm=norm,
        norm_order=None if norm is None else draw(st.sampled_from([None, 1, 2])),
        norm_of=() if norm is None else draw(st.sampled_from([(), ("right",)])),
        frozen=tuple(name for name, value in zip(NAMES, held, strict=True) if value is None and draw(st.booleans())),
        dwell=draw(st.sampled_from([(), (1, 3), (2, 2)])),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(narrower(), st.sampled_from(OPTIMIZERS), st.integers(0, 1000))
async def test_both_transports_give_the_same_plans_within_all_limits_across_chunks(
    service: Service, limits: ActionLimits, optimizer: str, seed: int
) -> None:
    model = "guided" if optimizer == "policy" else "linear"
    goal_id = await goal(service, 0.9, 0.1, model)
    created = sessions_pb2.SessionsCreateRequest(model=model, goal_id=goal_id, seed=seed, limits=message(limits))
    by_grpc = (await service.sessions.Create(created)).session.session_id
    body = {"model": model, "goal_id": goal_id, "seed": seed, "limits": sent(limits)}
    by_rest = (await service.rest.post("/v1/sessions", json=body)).json()["session_id"]
    actions = np.zeros((0, 2), np.float32)
    before: list[float] | None = None
    held: tuple[float, ...] | None = None
    planner = {"optimizer": optimizer, "samples": 24, "iterations": 3, "elites": 6}
    for executed in (0, 1, 3):
        if executed:
            done = actions[:executed].tolist()
            before, held = done[-1], held_for(done, before, held)
        ask = planning_pb2.PlanRequest(
            session_id=by_grpc, observation=proto_observation(MIDDLE), executed=executed,
            planner=models_pb2.PlannerSettings(**planner),
        )  # fmt: skip
        plan = (await service.planning.Plan(ask)).plan
        actions = array_of(plan.actions)
        told = {"session_id": by_rest, "observation": json_observation(MIDDLE), "executed": executed}
        reply = (await service.rest.post("/v1/plans", json={**told, "planner": planner})).json()
        np.testing.assert_array_equal(array_of(reply["actions"]), actions)
        assert fault(actions, NAMES, limits, REST, before, held) == ""
        assert not plan.provenance.unbounded_search
        assert list(plan.provenance.limits.low) == reply["provenance"]["limits"]["low"] == list(limits.low)


WIDER = [
    ({"low": [-2.0, 0.0]}, "low[0]"),
    ({"high": [0.5, 0.6]}, "high[1]"),
    ({"low": [0.5, 0.0], "high": [0.25, 0.5]}, "low[0]"),
    ({"slew": [0.1]}, "slew"),
    ({"slew": [0.1, 0.0]}, "slew[1]"),
    ({"slew": [-0.1, 0.1]}, "slew[0]"),
    ({"dwell": [1, 2, 3]}, "dwell"),
    ({"dwell": [0, 1]}, "dwell[0]"),
    ({"max_norm": 0.0}, "max_norm"),
    ({"max_norm": -1.0}, "max_norm"),
    ({"max_norm": 1.0, "norm_order": 3}, "norm_order"),
    ({"norm_of": ["right"]}, "norm_of"),
    ({"frozen": ["up"]}, "frozen[0]"),
    ({"frozen": ["down", "down"]}, "frozen[1]"),
    ({"frozen": ["down", "right"], "low": [0.25, -0.5]}, "frozen[1]"),
    ({"max_norm": 0.2, "low": [0.25, -0.5]}, "max_norm"),
]


@pytest.mark.parametrize(("wrong", "field"), WIDER, ids=[f"{field} {wrong}" for wrong, field in WIDER])
async def test_limits_that_no_session_and_no_plan_can_have_are_refused_by_name_alike(
    service: Service, wrong: dict[str, Any], field: str
) -> None:
    goal_id = await goal(service, 0.8, 0.2)
    limits = models_pb2.ActionLimits(**wrong)
    ask = planning_pb2.PlanRequest(goal_id=goal_id, observation=proto_observation(MIDDLE), limits=limits)
    refused = await grpc_refusal(service.planning.Plan(ask))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", f"limits.{field}"), refused.message
    body = {"goal_id": goal_id, "observation": json_observation(MIDDLE), "limits": wrong}
    again = await rest_refusal(service.rest.post("/v1/plans", json=body))
    assert (again.reason, again.field, again.message) == (refused.reason, refused.field, refused.message)
    opening = sessions_pb2.SessionsCreateRequest(limits=limits)
    opened = await grpc_refusal(service.sessions.Create(opening))
    assert (opened.field, opened.message) == (refused.field, refused.message)
    opened = await rest_refusal(service.rest.post("/v1/sessions", json={"limits": wrong}))
    assert (opened.field, opened.message) == (refused.field, refused.message)


async def test_a_limit_that_is_no_number_is_refused(service: Service) -> None:
    for name in ("low", "high", "slew"):
        limits = models_pb2.ActionLimits(**{name: [0.1, float("nan")]})
        refused = await grpc_refusal(service.sessions.Create(sessions_pb2.SessionsCreateRequest(limits=limits)))
        assert (refused.field, refused.value) == (f"limits.{name}[1]", "nan")
        content = f'{{"limits": {{"{name}": [0.1, NaN]}}}}'
        again = await rest_refusal(
            service.rest.post("/v1/sessions", content=content, headers={"content-type": "application/json"})
        )
        assert (again.field, again.message) == (refused.field, refused.message)
    limits = models_pb2.ActionLimits(max_norm=float("inf"))
    refused = await grpc_refusal(service.sessions.Create(sessions_pb2.SessionsCreateRequest(limits=limits)))
    assert refused.field == "limits.max_norm"


async def test_a_request_narrows_its_sessions_limits_and_never_widens_them(service: Service) -> None:
    goal_id = await goal(service, 0.9, 0.5)
    held = ActionLimits(slew=(0.2, 0.2), max_norm=0.5, dwell=(2, 1))
    async with presage.AsyncClient(service.addresses.grpc) as client:
        opened = await client.session(goal=goal_id, limits=held)
        status = await opened.status()
        assert status.limits is not None
        assert (status.limits.slew, status.limits.high) == ((0.2, 0.2), (1.0, 0.5))
        plan = await opened.plan(MIDDLE, limits=ActionLimits(slew=(0.1, 0.2), frozen=("down",)))
        assert plan.provenance.limits is not None
        assert (plan.provenance.limits.slew, plan.provenance.limits.dwell) == ((0.1, 0.2), (2, 1))
        assert not plan.actions[:, 1].any()
        for wider, field in (
            (ActionLimits(slew=(0.3, 0.2)), "slew[0]"),
            (ActionLimits(max_norm=0.6), "max_norm"),
            (ActionLimits(max_norm=0.4, norm_order=1), "norm_order"),
            (ActionLimits(max_norm=0.4, norm_of=("down",)), "norm_of"),
            (ActionLimits(dwell=(1, 1)), "dwell[0]"),
        ):
            with pytest.raises(presage.InvalidRequest) as caught:
                await opened.plan(MIDDLE, limits=wider)
            assert caught.value.field == f"limits.{field}"
            body = {"session_id": opened.session_id, "observation": json_observation(MIDDLE), "limits": sent(wider)}
            assert (await rest_refusal(service.rest.post("/v1/plans", json=body))).field == f"limits.{field}"


async def test_a_packages_own_limits_are_described_and_hold_on_both_transports(service: Service) -> None:
    own = linear.CONFIGS["limited"].action
    assert own is not None
    described = (await service.rest.get("/v1/models/limited")).json()["action"]
    assert (described["limits"]["slew"], described["limits"]["dwell"]) == ([0.25, 0.5], [2, 1])
    assert described["rest"] == [0.0, 0.0]
    async with presage.AsyncClient(service.addresses.grpc) as client:
        spec = (await client.model("limited")).action
        assert spec is not None
        assert spec.limits == own.limits
    goal_id = await goal(service, 0.9, 0.1, "limited")
    for optimizer in ("cem", "lewm", "gauss_newton"):
        planner = models_pb2.PlannerSettings(optimizer=optimizer)
        ask = planning_pb2.PlanRequest(
            model="limited", goal_id=goal_id, observation=proto_observation(MIDDLE), planner=planner, seed=3
        )
        actions = array_of((await service.planning.Plan(ask)).plan.actions)
        assert actions.any()
        assert own.limits is not None
        assert fault(actions, NAMES, own.limits, REST) == ""
        body = {"model": "limited", "goal_id": goal_id, "observation": json_observation(MIDDLE), "seed": 3}
        reply = await service.rest.post("/v1/plans", json={**body, "planner": {"optimizer": optimizer}})
        np.testing.assert_array_equal(array_of(reply.json()["actions"]), actions)
    wider = models_pb2.ActionLimits(slew=[0.5, 0.5])
    refused = await grpc_refusal(
        service.sessions.Create(sessions_pb2.SessionsCreateRequest(model="limited", limits=wider))
    )
    assert (refused.field, refused.rule) == ("limits.slew[0]", "must be at most 0.25, which holds")


async def test_a_plan_is_refused_where_one_step_of_the_slew_cannot_reach_the_bounds(service: Service) -> None:
    """The robot moves right at full speed, and is to move left from one action to the next."""
    name = await session(service, await goal(service, 1.0, 0.5))
    first = planning_pb2.PlanRequest(session_id=name, observation=proto_observation(MIDDLE))
    actions = array_of((await service.planning.Plan(first)).plan.actions)
    assert actions[0, 0] > 0.5
    limits = {"high": [-0.5, 0.5], "slew": [0.1, 0.1]}
    ask = planning_pb2.PlanRequest(
        session_id=name, observation=proto_observation(MIDDLE), executed=1, limits=models_pb2.ActionLimits(**limits)
    )
    refused = await grpc_refusal(service.planning.Plan(ask))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "previous_action.right")
    body = {"session_id": name, "observation": json_observation(MIDDLE), "executed": 1, "limits": limits}
    again = await rest_refusal(service.rest.post("/v1/plans", json=body))
    assert (again.field, again.message) == (refused.field, refused.message)


async def test_the_slew_begins_at_the_last_action_where_it_was_none_of_a_plans(service: Service) -> None:
    goal_id = await goal(service, 1.0, 0.5)
    limits = {"slew": [0.1, 0.1], "dwell": [3, 1]}
    name = await session(service, goal_id)
    first = planning_pb2.PlanRequest(session_id=name, observation=proto_observation(MIDDLE))
    assert array_of((await service.planning.Plan(first)).plan.actions)[0, 0] > 0.5
    ask = planning_pb2.PlanRequest(
        session_id=name, observation=proto_observation(MIDDLE), executed=1, seed=3, previous_action=[0.0, 0.0],
        limits=models_pb2.ActionLimits(**limits),
    )  # fmt: skip
    after_a_stop = array_of((await service.planning.Plan(ask)).plan.actions)
    assert 0 < after_a_stop[0, 0] <= 0.1
    asked = {"goal_id": goal_id, "observation": json_observation(MIDDLE), "seed": 3, "limits": limits}
    reply = await service.rest.post("/v1/plans", json={**asked, "previous_action": [-0.5, 0.25]})
    assert fault(array_of(reply.json()["actions"]), NAMES, ActionLimits(slew=(0.1, 0.1)), REST, (-0.5, 0.25)) == ""
    for wrong in ([0.5], [0.5, 0.1, 0.1], [float("nan"), 0.0]):
        alone = planning_pb2.PlanRequest(goal_id=goal_id, observation=proto_observation(MIDDLE), previous_action=wrong)
        refused = await grpc_refusal(service.planning.Plan(alone))
        assert refused.field == "previous_action"
        content = json.dumps({**asked, "previous_action": wrong})
        again = await rest_refusal(
            service.rest.post("/v1/plans", content=content, headers={"content-type": "application/json"})
        )
        assert again.field.startswith("previous_action")
        assert again.reason in ("ACTION_SHAPE", "INVALID_FIELD")


async def test_a_control_loop_keeps_to_its_limits_from_plan_to_plan(service: Service) -> None:
    goal_id = await goal(service, 1.0, 0.5)
    limits = ActionLimits(slew=(0.05, 0.05), frozen=("down",))
    async with presage.AsyncClient(service.addresses.grpc) as client:
        opened = await client.session(goal=goal_id)
        async with opened.control(limits=limits) as loop:
            actions = np.zeros((0, 2), np.float32)
            before: list[float] | None = None
            for executed in (0, 2, 2):
                sequence = loop.send(MIDDLE, executed=executed)
                found = await loop.wait(20.0, sequence)
                assert found is not None, loop.errors()
                if executed:
                    before = actions[executed - 1].tolist()
                actions = found.plan.actions
                assert fault(actions, NAMES, limits, REST, before) == ""


async def test_a_robot_that_is_run_is_told_no_change_above_its_slew_but_its_stops(service: Service) -> None:
    """Plans come late and run out in between: the robot holds, and goes on from there."""
    limits = ActionLimits(slew=(0.05, 0.05))
    told: list[np.ndarray] = []

    class Recorder:
        def observe(self) -> tuple[np.ndarray, None]:
            return MIDDLE, None

        def act(self, action: np.ndarray) -> None:
            told.append(np.array(action))

    held: list[bool] = []
    async with presage.AsyncClient(service.addresses.grpc) as client:
        opened = await client.session(goal=await goal(service, 1.0, 0.0), limits=limits)
        async with opened.control() as loop:
            report = await presage.run_control_async(
                loop, Recorder(), 50.0, (0.0, 0.0), ticks=60, max_open_loop=3,
                until=lambda tick: bool(held.append(tick.held)),
            )  # fmt: skip
    assert report.plans > 3
    assert not all(held)
    for number in range(1, len(held)):
        if not held[number]:
            assert (np.abs(told[number].astype(float) - told[number - 1]) <= 0.05).all(), number
