"""Errors are told alike on both transports: the whole table, bad input of every kind, and what was not foreseen."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
import structlog
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, planning_pb2, sessions_pb2
from presage.values import SessionStatus

from server.config import Settings
from server.errors import Reason, ServiceError
from server.service.application import Application
from server.transport.error_replies import to_problem, to_status
from tests.server.conftest import START_S, changed, start
from tests.support.server import linear
from tests.support.server.transports import (
    Refusal,
    Service,
    clip_messages,
    eventually,
    grpc_refusal,
    json_image,
    json_observation,
    json_tensor,
    open_service,
    proto_image,
    proto_observation,
    proto_tensor,
    rest_refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

SEEN = linear.frame(0.5, 0.5)
TOO_TALL = np.zeros((linear.SIDE + 1, linear.SIDE, 3), np.uint8)
SMALL_LIMITS = {"message_bytes": 32 * 1024, "clip_bytes": 200_000}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(application: Application) -> AsyncIterator[Service]:
    async with open_service(application, limits=SMALL_LIMITS) as opened:
        yield opened


async def both(by_grpc: Awaitable[Any], by_rest: Awaitable[httpx.Response]) -> Refusal:
    """The refusal of a request, which both transports must tell in the same words."""
    one, other = await grpc_refusal(by_grpc), await rest_refusal(by_rest)
    reason = Reason[one.reason]
    assert (one.status, other.status) == (reason.fault.grpc_code, reason.fault.http_status)
    assert one.reason == other.reason
    assert (one.message, one.field, one.rule, one.value) == (other.message, other.field, other.rule, other.value)
    assert one.retry_after_s == other.retry_after_s
    for each in (one, other):
        assert "Traceback" not in each.whole
        assert ".py" not in each.whole
    return one


async def still_serves(service: Service) -> None:
    goal = await service.goals.Create(goals_pb2.GoalsCreateRequest(image=proto_image(linear.frame(0.6, 0.5))))
    ask = planning_pb2.PlanRequest(observation=proto_observation(SEEN), goal_id=goal.goal.goal_id)
    assert (await service.planning.Plan(ask)).plan.iterations_done > 0
    body = {"observation": json_observation(SEEN), "goal_id": goal.goal.goal_id}
    assert (await service.rest.post("/v1/plans", json=body)).status_code == 200


# The table


class Refusing(Application):
    """Fails every look at a session with the reason that is the session's name."""

    @property
    def ready(self) -> bool:
        return True

    async def get_session(self, session_id: str) -> SessionStatus:
        if session_id == "UNFORESEEN":
            raise ZeroDivisionError("the secret is s3cret in /etc/passwd")
        raise ServiceError(
            Reason[session_id], "field must rule, got value", field="field", rule="must rule", value="value",
            retry_after_s=1.5 if session_id == "OVERLOADED" else None,
        )  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def refusing() -> AsyncIterator[Service]:
    async with open_service(Refusing(Settings())) as opened:
        yield opened


def look(service: Service, session_id: str) -> tuple[Awaitable[Any], Awaitable[httpx.Response]]:
    ask = sessions_pb2.SessionsGetRequest(session_id=session_id)
    return service.sessions.Get(ask), service.rest.get(f"/v1/sessions/{session_id}")


@pytest.mark.parametrize("reason", Reason)
async def test_every_reason_comes_through_both_transports_alike(refusing: Service, reason: Reason) -> None:
    refused = await both(*look(refusing, reason.name))
    assert refused.reason == reason.name
    assert (refused.field, refused.rule, refused.value) == ("field", "must rule", "value")
    assert refused.retry_after_s == (1.5 if reason is Reason.OVERLOADED else None)


async def test_every_reason_has_its_own_name_and_a_title() -> None:
    assert len({reason.name for reason in Reason}) == len(Reason)
    problems = [to_problem(ServiceError(reason, "why"), "id") for reason in Reason]
    assert len({problem["type"] for problem in problems}) == len(Reason)
    assert len({problem["title"] for problem in problems}) == len(Reason)
    for reason, problem in zip(Reason, problems, strict=True):
        assert 400 <= problem["status"] <= 599
        assert to_status(ServiceError(reason, "why"), "id").code != grpc.StatusCode.OK.value[0]
        assert "errors" in problem
        assert problem["errors"] == []


async def test_waiting_time_is_told_in_the_retry_after_header_too(refusing: Service) -> None:
    assert (await refusing.rest.get("/v1/sessions/OVERLOADED")).headers["retry-after"] == "2"


async def test_what_was_not_foreseen_leaves_as_an_id_alone_and_is_logged_whole(refusing: Service) -> None:
    with structlog.testing.capture_logs() as logs:
        by_grpc, by_rest = look(refusing, "UNFORESEEN")
        for refused in (await grpc_refusal(by_grpc), await rest_refusal(by_rest)):
            assert refused.reason == "INTERNAL"
            assert refused.request_id in refused.message
            assert "s3cret" not in refused.whole
            assert "ZeroDivision" not in refused.whole
            (logged,) = [
                entry for entry in logs if entry.get("request_id") == refused.request_id and "exc_info" in entry
            ]
            assert isinstance(logged["exc_info"], ZeroDivisionError)


# Bad input, on both transports

Asks = Callable[[Service], tuple[Awaitable[Any], Awaitable[httpx.Response]]]


def plans(**fields: Any) -> Asks:
    """A plan for an image, with other fields as they are on either wire."""
    frame = fields.pop("frame", SEEN)

    def ask(service: Service) -> tuple[Awaitable[Any], Awaitable[httpx.Response]]:
        by_grpc = planning_pb2.PlanRequest(observation=proto_observation(frame), **fields)
        return service.planning.Plan(by_grpc), service.rest.post(
            "/v1/plans", json={"observation": json_observation(frame), **fields}
        )

    return ask


def rollouts(actions: Any) -> Asks:
    def ask(service: Service) -> tuple[Awaitable[Any], Awaitable[httpx.Response]]:
        by_grpc = planning_pb2.RolloutRequest(observation=proto_observation(SEEN), actions=proto_tensor(actions))
        body = {"observation": json_observation(SEEN), "actions": json_tensor(actions)}
        return service.planning.Rollout(by_grpc), service.rest.post("/v1/rollouts", json=body)

    return ask


def forged_rollouts(shape: list[int], size: int) -> Asks:
    def ask(service: Service) -> tuple[Awaitable[Any], Awaitable[httpx.Response]]:
        actions = proto_tensor(np.zeros(size // 4, np.float32))
        actions.shape[:] = shape
        by_grpc = planning_pb2.RolloutRequest(observation=proto_observation(SEEN), actions=actions)
        forged = {**json_tensor(np.zeros(size // 4, np.float32)), "shape": shape}
        body = {"observation": json_observation(SEEN), "actions": forged}
        return service.planning.Rollout(by_grpc), service.rest.post("/v1/rollouts", json=body)

    return ask


def clips_of(content: bytes) -> Asks:
    def ask(service: Service) -> tuple[Awaitable[Any], Awaitable[httpx.Response]]:
        files = {"clip": ("clip.mp4", content)}
        return service.embeddings.EmbedClip(clip_messages(content)), service.rest.post(
            "/v1/embeddings/clips", files=files
        )

    return ask


def goals_of(encoded: bytes) -> Asks:
    def ask(service: Service) -> tuple[Awaitable[Any], Awaitable[httpx.Response]]:
        by_grpc = goals_pb2.GoalsCreateRequest(image={"encoded": encoded})
        body = {"image": {"encoded": base64.b64encode(encoded).decode()}}
        return service.goals.Create(by_grpc), service.rest.post("/v1/goals", json=body)

    return ask


CASES: dict[str, tuple[Asks, str, str]] = {
    "image of the wrong size": (plans(frame=TOO_TALL), "IMAGE_SIZE", "observation.images[0]"),
    "no goal": (plans(), "GOAL_REQUIRED", "goal_id"),
    "unknown goal": (plans(goal_id="no such goal"), "UNKNOWN_GOAL", "goal_id"),
    "unknown session": (plans(session_id="nobody"), "UNKNOWN_SESSION", "session_id"),
    "unknown model": (plans(model="gpt"), "UNKNOWN_MODEL", "model"),
    "budget that is none": (plans(budget_ms=-1.0, goal_id="g"), "INVALID_FIELD", "budget_ms"),
    "actions of the wrong width": (rollouts(np.zeros((2, 3), np.float32)), "ACTION_SHAPE", "actions"),
    "actions of the wrong type": (rollouts(np.zeros((2, 2), np.int32)), "INVALID_TENSOR", "actions.dtype"),
    "actions that are not finite": (rollouts(np.full((2, 2), np.nan, np.float32)), "INVALID_TENSOR", "actions"),
    "too few bytes": (forged_rollouts([2, 2], 12), "INVALID_TENSOR", "actions.data"),
    "a negative size": (forged_rollouts([-2, 2], 16), "INVALID_TENSOR", "actions.shape"),
    "a size past all memory": (forged_rollouts([2**62, 8], 16), "INVALID_TENSOR", "actions.shape"),
    "a clip that is not a video": (clips_of(b"not a video" * 99), "INVALID_CLIP", "clip"),
    "an image that is none": (goals_of(b"not an image"), "INVALID_IMAGE", "image"),
}


@pytest.mark.parametrize("case", CASES)
async def test_bad_input_is_refused_by_field_rule_and_value_and_the_service_goes_on(
    service: Service, case: str
) -> None:
    asks, reason, field = CASES[case]
    refused = await both(*asks(service))
    assert (refused.reason, refused.field) == (reason, field)
    assert refused.message
    assert refused.rule
    await still_serves(service)


async def test_bytes_of_another_kind_are_refused_on_both_transports(service: Service) -> None:
    garbage = b"\xff\xfe{[not a request"
    by_grpc = service.channel.unary_unary("/presage.v1.Planning/Plan")(garbage)
    by_rest = service.rest.post("/v1/plans", content=garbage, headers={"content-type": "application/json"})
    assert (await grpc_refusal(by_grpc)).reason == (await rest_refusal(by_rest)).reason == "INVALID_REQUEST"
    await still_serves(service)


async def test_an_oversize_message_is_refused_with_the_limit(service: Service) -> None:
    limit = SMALL_LIMITS["message_bytes"]
    image = np.zeros((120, 120, 3), np.uint8)
    by_grpc = service.goals.Create(goals_pb2.GoalsCreateRequest(image=proto_image(image)))
    by_rest = service.rest.post("/v1/goals", json={"image": json_image(image)})
    for refused in (await grpc_refusal(by_grpc), await rest_refusal(by_rest)):
        assert refused.reason == "TOO_LARGE"
        assert refused.field in {"message", "body"}
        assert str(limit) in refused.rule
        assert int(refused.value.split()[0]) > limit
    await still_serves(service)


async def test_a_message_far_past_the_limit_is_refused_before_it_is_read(service: Service) -> None:
    huge = np.zeros((1500, 1000, 3), np.uint8)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.goals.Create(goals_pb2.GoalsCreateRequest(image=proto_image(huge)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in str(caught.value.details())
    by_rest = await rest_refusal(service.rest.post("/v1/goals", json={"image": json_image(huge)}))
    assert by_rest.reason == "TOO_LARGE"
    await still_serves(service)


async def test_an_oversize_clip_is_refused_on_both_transports(service: Service) -> None:
    content = bytes(SMALL_LIMITS["clip_bytes"] + 100_000)
    by_grpc, by_rest = clips_of(content)(service)
    for refused in (await grpc_refusal(by_grpc), await rest_refusal(by_rest)):
        assert refused.reason == "TOO_LARGE"
        assert refused.field
        assert refused.rule
    await still_serves(service)


async def test_an_unknown_call_is_refused_on_both_transports(service: Service) -> None:
    by_grpc = service.channel.unary_unary("/presage.v1.Planning/Reboot")(b"")
    by_rest = service.rest.post("/v1/reboot")
    for refused in (await grpc_refusal(by_grpc), await rest_refusal(by_rest)):
        assert refused.reason == "UNKNOWN_ROUTE"


async def test_a_model_that_only_embeds_says_so_on_both_transports(service: Service) -> None:
    refused = await both(
        service.sessions.Create(sessions_pb2.SessionsCreateRequest(model="embedder")),
        service.rest.post("/v1/sessions", json={"model": "embedder"}),
    )
    assert refused.reason == "UNSUPPORTED"


async def test_a_deadline_that_cannot_be_kept_is_an_error_not_a_late_plan(service: Service) -> None:
    goal = await service.goals.Create(goals_pb2.GoalsCreateRequest(image=proto_image(SEEN), model="slow"))
    body = {"model": "slow", "observation": json_observation(SEEN), "goal_id": goal.goal.goal_id}
    begun = time.monotonic()
    refused = await rest_refusal(service.rest.post("/v1/plans", json=body, headers={"X-Timeout-Ms": "30"}))
    assert (refused.status, refused.reason) == (504, "DEADLINE")
    assert time.monotonic() - begun < 10


async def test_requests_before_readiness_are_refused_and_afterwards_served() -> None:
    application = await start(changed(models=("linear",)))
    try:
        async with open_service(application) as service:
            assert not application.ready
            for call in (
                lambda: service.models.List(models_pb2.ModelsListRequest()),
                lambda: service.embeddings.EmbedImages(embeddings_pb2.EmbedImagesRequest()),
            ):
                refused = await grpc_refusal(call())
                assert (refused.status, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
                assert refused.retry_after_s is not None
            assert (await rest_refusal(service.rest.get("/v1/models"))).reason == "NOT_READY"
            assert (await rest_refusal(service.rest.get("/readyz"))).status == 503
            assert (await service.rest.get("/livez")).status_code == 200
            await application.wait_ready(START_S)
            assert (await service.rest.get("/readyz")).status_code == 200
            await still_serves(service)
    finally:
        await application.stop(shutdown_grace_s=0.0)


async def test_calls_past_the_limit_are_refused_but_probes_are_answered(application: Application) -> None:
    async with open_service(application, limits={"concurrent_calls": 1}) as service:
        waiting = service.planning.Control()  # a stream that nobody speaks on is a call in progress
        await eventually(lambda: service.gateway.lifecycle.in_flight == 1)
        refused = await both(service.models.List(models_pb2.ModelsListRequest()), service.rest.get("/v1/models"))
        assert refused.reason == "OVERLOADED"
        assert (await service.rest.get("/livez")).status_code == 200
        waiting.cancel()
