"""The REST gateway over real HTTP, with a real engine behind it. Clips are in test_rest_uploads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from server.errors import Reason
from server.service.application import Application
from server.values import calls
from tests.support.server import linear
from tests.support.server.transports import (
    Service,
    array_of,
    eventually,
    json_image,
    json_observation,
    json_tensor,
    open_service,
    rest_refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIDDLE = linear.frame(0.5, 0.5)
JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(application: Application) -> AsyncIterator[Service]:
    async with open_service(application, limits={"message_bytes": 64 * 1024}) as opened:
        yield opened


async def ok(call: Any, status: int = 200) -> Any:
    reply = await call
    assert reply.status_code == status, reply.text
    return reply.json() if reply.content else None


async def goal(service: Service, right: float, down: float, model: str = "linear") -> str:
    body = {"image": json_image(linear.frame(right, down)), "model": model}
    return str((await ok(service.rest.post("/v1/goals", json=body), 201))["goal_id"])


async def test_models_are_listed_with_what_to_send_them_and_the_limits(service: Service) -> None:
    listed = (await ok(service.rest.get("/v1/models")))["models"]
    assert listed[0]["name"] == "linear"
    assert listed[0]["action"]["units"] == ["m/s", "m/s"]
    assert listed[0]["limits"]["message_bytes"] == 64 * 1024
    assert (await ok(service.rest.get("/v1/models/embedder")))["action"] is None


async def test_a_goal_is_made_once_found_again_and_deleted(service: Service) -> None:
    body = {"image": json_image(linear.frame(0.31, 0.9))}
    first = await ok(service.rest.post("/v1/goals", json=body), 201)
    second = await ok(service.rest.post("/v1/goals", json=body), 201)
    assert (first["cached"], second["cached"]) == (False, True)
    path = f"/v1/goals/{first['goal_id']}"
    assert (await ok(service.rest.get(path)))["create_time"] == first["create_time"]
    await ok(service.rest.delete(path), 204)
    assert (await rest_refusal(service.rest.get(path))).reason == "UNKNOWN_GOAL"


async def test_a_session_counts_its_plans_until_it_is_reset(service: Service) -> None:
    body = {"goal_id": await goal(service, 0.6, 0.4), "seed": 3, "ttl_s": 30}
    made = await ok(service.rest.post("/v1/sessions", json=body), 201)
    path = f"/v1/sessions/{made['session_id']}"
    plan = {"session_id": made["session_id"], "observation": json_observation(MIDDLE, 4)}
    assert (await ok(service.rest.post("/v1/plans", json=plan)))["observation_sequence"] == 4
    seen = await ok(service.rest.get(path))
    assert (seen["plans"], seen["last_sequence"], seen["ttl_s"]) == (1, 4, 30)
    reset = await ok(service.rest.post(f"{path}:reset"))
    assert (reset["plans"], reset["epoch"]) == (0, 1)
    await ok(service.rest.delete(path), 204)
    assert (await rest_refusal(service.rest.get(path))).reason == "UNKNOWN_SESSION"


async def test_a_session_with_stages_goes_on_when_one_is_over(service: Service) -> None:
    first, second = await goal(service, 0.5, 0.5), await goal(service, 0.8, 0.5)
    stages = [{"goal_id": first, "max_actions": 2}, {"goal_id": second}]
    made = await ok(service.rest.post("/v1/sessions", json={"stages": stages}), 201)
    assert (made["goal_id"], made["stage"]) == (first, 0)
    for executed, pursued in ((0, first), (2, second)):
        ask = {"session_id": made["session_id"], "observation": json_observation(MIDDLE), "executed": executed}
        assert (await ok(service.rest.post("/v1/plans", json=ask)))["provenance"]["goal_id"] == pursued
    assert (await ok(service.rest.get(f"/v1/sessions/{made['session_id']}")))["stage"] == 1
    plain = await ok(service.rest.post("/v1/sessions", json={"goal_id": first}), 201)
    assert plain["stage"] is None
    refused = await rest_refusal(service.rest.post("/v1/sessions", json={"stages": [{"goal_id": first}] * 2}))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "stages[0]")


async def test_a_plan_is_the_one_the_application_makes_for_that_seed(service: Service) -> None:
    body = {
        "observation": {**json_observation(MIDDLE, 7), "capture_time": "2026-01-31T12:00:00.000000001Z"},
        "goal_id": await goal(service, 0.8, 0.2),
        "seed": 11,
    }
    plan = await ok(service.rest.post("/v1/plans", json=body))
    here = calls.PlanRequest(calls.Observation((MIDDLE,)), goal_id=str(body["goal_id"]), seed=11)
    expected = await service.gateway.application.plan(here, None, time.monotonic())
    np.testing.assert_array_equal(array_of(plan["actions"]), expected.actions)
    assert (plan["cost"], plan["seed"], plan["observation_sequence"]) == (expected.cost, 11, 7)
    assert plan["capture_time"] == "2026-01-31T12:00:00.000000001Z"
    listed = await ok(service.rest.post("/v1/plans?tensors=lists", json=body))
    np.testing.assert_array_equal(np.float32(listed["actions"]["data"]), expected.actions)


async def test_rollouts_and_scores_take_tensors_and_nested_lists_alike(service: Service) -> None:
    goal_id, actions = await goal(service, 0.5, 0.5), np.full((4, 2), 0.5, np.float32)
    ask = {"observation": json_observation(linear.frame(0.2, 0.2)), "goal_id": goal_id}
    by_tensor = await ok(service.rest.post("/v1/rollouts", json={**ask, "actions": json_tensor(actions)}))
    by_lists = await ok(service.rest.post("/v1/rollouts", json={**ask, "actions": actions.tolist()}))
    assert by_tensor == by_lists
    assert array_of(by_tensor["latents"]).shape == (2, 2)
    candidates = [actions.tolist(), (-actions).tolist()]
    scored = await ok(service.rest.post("/v1/scores", json={**ask, "candidates": candidates}))
    assert scored["costs"][0] < scored["costs"][1]
    assert scored["step_costs"]["shape"] == [2, 2]


async def test_images_are_embedded_and_measured_against_a_goal(service: Service) -> None:
    body = {
        "images": [json_image(linear.frame(0.4, 0.4)), json_image(MIDDLE)],
        "goal_id": await goal(service, 0.4, 0.4),
    }
    embedded = await ok(service.rest.post("/v1/embeddings/images", json=body))
    assert embedded["embedding"]["shape"] == [2, 2]
    assert embedded["goal_distances"][0] == pytest.approx(0)
    assert embedded["goal_distances"][1] > 0.01


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"observation": {"images": []}, "seed": True}, "seed", "integer"),
        ({"observation": {"images": []}, "seed": -1}, "seed", "greater"),
        ({"observation": {"images": []}, "budget_ms": "5"}, "budget_ms", "number"),
        ({"observation": {"images": []}, "plannner": {}}, "plannner", "no such field"),
        ({"observation": {"images": [{}, {"encoded": 1}]}}, "observation.images[1].encoded", "string"),
        ({"observation": {"images": [{}]}}, "observation.images[0]", "encoded or raw"),
        ({"observation": {"images": [], "proprioception": {"dtype": 3}}}, "observation.proprioception.dtype", "int64"),
        ({}, "observation", "must be set"),
    ],
)  # fmt: skip
async def test_a_field_that_breaks_its_rule_is_named(
    service: Service, body: dict[str, Any], field: str, words: str
) -> None:
    refused = await rest_refusal(service.rest.post("/v1/plans", json=body))
    assert refused.status == 422
    assert refused.field == field
    assert words in refused.rule
    assert refused.message.startswith(f"{field} {refused.rule}")


async def test_every_field_at_fault_is_told_at_once(service: Service) -> None:
    reply = await service.rest.post("/v1/sessions", json={"model": 1, "seed": "x", "nonsense": None})
    assert {fault["field"] for fault in reply.json()["errors"]} == {"model", "seed", "nonsense"}


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"{", "application/json"),
        (b"\xff", "application/json"),
        (b"[]", "application/json"),
        (b"", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json"),
        (b"{}", "text/plain"),
        (b"a=b", "application/x-www-form-urlencoded"),
    ],
    ids=["cut", "not utf-8", "a list", "empty", "deep", "a huge number", "text", "a form"],
)
async def test_a_body_that_is_no_json_object_is_refused(service: Service, content: bytes, content_type: str) -> None:
    call = service.rest.post("/v1/plans", content=content, headers={"content-type": content_type})
    refused = await rest_refusal(call)
    assert (refused.status, refused.reason) in {(400, "INVALID_REQUEST"), (413, "TOO_LARGE")}
    assert refused.field == "body"


async def test_a_body_is_counted_as_it_arrives_not_as_it_is_announced(service: Service) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 1
            yield b" " * 8192

    refused = await rest_refusal(service.rest.post("/v1/plans", content=endless(), headers=JSON))
    assert (refused.status, refused.reason, refused.field) == (413, "TOO_LARGE", "body")
    assert str(64 * 1024) in refused.rule


async def test_unknown_paths_and_methods_are_problems_too(service: Service) -> None:
    assert (await rest_refusal(service.rest.get("/v1/nothing"))).status == 404
    assert (await rest_refusal(service.rest.get("/v1/plans/"))).status == 404
    assert (await service.rest.delete("/v1/plans")).headers["allow"] == "POST"
    assert (await service.rest.put("/v1/goals/g")).headers["allow"] == "DELETE, GET"
    assert (await service.rest.put("/v1/sessions/s:reset")).headers["allow"] == "POST"
    assert (await rest_refusal(service.rest.delete("/v1/plans"))).reason == "METHOD_NOT_ALLOWED"


@pytest.mark.parametrize("header", ["0", "-5", "soon", "nan", "inf", "1e300", ""])
async def test_a_deadline_must_be_a_sensible_number(service: Service, header: str) -> None:
    refused = await rest_refusal(
        service.rest.post("/v1/plans", json={"observation": {"images": []}}, headers={"X-Timeout-Ms": header})
    )
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "x-timeout-ms")


async def test_a_plan_comes_before_its_deadline(service: Service) -> None:
    body = {
        "model": "slow",
        "observation": json_observation(MIDDLE),
        "goal_id": await goal(service, 0.5, 0.5, "slow"),
        "planner": {"iterations": 500, "elites": 32},
    }
    plan = await ok(service.rest.post("/v1/plans", json=body, headers={"X-Timeout-Ms": "4000"}))
    assert plan["stop_reason"] == "deadline"
    assert plan["timings"]["total_ms"] <= 4000


async def test_a_caller_that_leaves_frees_the_engine(service: Service) -> None:
    body = {
        "model": "slow",
        "observation": json_observation(MIDDLE),
        "goal_id": await goal(service, 0.5, 0.5, "slow"),
        "planner": {"iterations": 900, "elites": 32},
    }
    call = asyncio.ensure_future(service.rest.post("/v1/plans", json=body))
    await eventually(lambda: service.gateway.application.calls_in_hand == 1)
    call.cancel()
    await eventually(lambda: service.gateway.application.calls_in_hand == 0, patience_s=10)
    await eventually(lambda: service.gateway.lifecycle.in_flight == 0)


async def test_a_request_id_is_echoed_and_a_strange_one_replaced(service: Service) -> None:
    for presented, is_kept in (("robot-7/42", True), ("with space", False), ("x" * 129, False)):
        reply = await service.rest.get("/v1/models", headers={"X-Request-Id": presented})
        assert (reply.headers["x-request-id"] == presented) == is_kept
    refused = await service.rest.get("/v1/nothing", headers={"X-Request-Id": "robot-8"})
    assert refused.headers["x-request-id"] == refused.json()["request_id"] == "robot-8"


async def test_probes_answer_and_draining_shows(application: Application) -> None:
    async with open_service(application) as service:
        assert (await ok(service.rest.get("/livez"))) == {"status": "live"}
        assert (await ok(service.rest.get("/readyz"))) == {"status": "ready"}
        service.gateway.lifecycle.draining.set()
        assert (await ok(service.rest.get("/livez"))) == {"status": "live"}
        assert (await rest_refusal(service.rest.get("/readyz"))).reason == "NOT_READY"
        reply = await service.rest.get("/v1/models")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


async def test_distances_and_surprises_are_told(service: Service) -> None:
    goal_id = await goal(service, 0.5, 0.5)
    near = {"images": [json_image(MIDDLE), json_image(linear.frame(0.9, 0.5))], "goal_id": goal_id}
    first, second = (await ok(service.rest.post("/v1/distances", json=near)))["distances"]
    assert first == pytest.approx(0.0, abs=1e-7)
    assert second > 0.01
    made = await ok(service.rest.post("/v1/sessions", json={}), 201)
    seen = [json_observation(MIDDLE), json_observation(linear.frame(0.9, 0.5))]
    ask = {"observations": seen, "actions": [[0, 0], [0, 0]], "session_id": made["session_id"]}
    told = await ok(service.rest.post("/v1/surprises", json=ask))
    assert told["errors"] == pytest.approx([second], rel=1e-5)
    assert (told["scores"], told["steps_known"]) == ([], 1)
    seen[1]["images"] = []
    refused = await rest_refusal(service.rest.post("/v1/surprises", json=ask))
    assert (refused.reason, refused.field) == ("INVALID_IMAGE", "observations[1].images")


async def test_metrics_count_calls_by_transport_call_and_reason(service: Service) -> None:
    body = {"observation": json_observation(MIDDLE), "goal_id": await goal(service, 0.2, 0.8)}
    before = service.gateway.telemetry.requests.labels("rest", "Planning.Plan", "OK")._value.get()
    await ok(service.rest.post("/v1/plans", json=body))
    await service.rest.get("/v1/goals/none")
    await service.rest.get("/anything/at/all")
    text = (await service.rest.get("/metrics")).text
    assert f'presage_requests_total{{code="OK",rpc="Planning.Plan",transport="rest"}} {before + 1}' in text
    assert 'code="UNKNOWN_GOAL",rpc="Goals.Get",transport="rest"' in text
    assert 'code="UNKNOWN_ROUTE",rpc="unknown",transport="rest"' in text
    for name in ("presage_plan_seconds_bucket", "presage_sessions", "presage_ready 1.0", "presage_build_info"):
        assert name in text
    for name in ("presage_engine_restarts", "presage_records", "presage_records_dropped"):
        assert f"# TYPE {name}_total counter\n{name}_total 0.0" in text
    assert f"presage_goal_bytes {float(service.gateway.application.goal_bytes)}" in text
    assert "/anything" not in text
    assert "none" not in text


async def test_the_document_declares_every_failure_of_the_table(service: Service) -> None:
    document = await ok(service.rest.get("/openapi.json"))
    statuses = {str(reason.fault.http_status) for reason in Reason}
    references = set()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert statuses <= set(operation["responses"]), path
            for status in statuses:
                references |= set(operation["responses"][status]["content"])
    assert references == {"application/problem+json"}
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in text
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas
    clip = document["paths"]["/v1/embeddings/clips"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"clip", "kind", "fps", "frames", "goal_id", "model", "sha256", "step_distances"} == set(clip["properties"])


async def test_a_connection_is_kept_after_a_refusal(service: Service) -> None:
    async with httpx.AsyncClient(
        base_url=service.addresses.rest, trust_env=False, limits=httpx.Limits(max_connections=1)
    ) as one:
        for _ in range(3):
            assert (await rest_refusal(one.post("/v1/plans", content=b" " * 80_000, headers=JSON))).status == 413
            assert (await one.get("/livez")).status_code == 200
