"""Callers without a key, and pages in browsers: what they send takes nothing from anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from presage.v1 import models_pb2, observation_pb2, planning_pb2, sessions_pb2

from server.service.application import Application
from server.transport.callers.places import Places, Strangers
from tests.support.server import linear
from tests.support.server.transports import (
    Service,
    eventually,
    grpc_refusal,
    json_observation,
    open_service,
    proto_observation,
    rest_refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = {"authorization": "Bearer open-sesame"}
SEEN = linear.frame(0.2, 0.4)
CHECK = "/grpc.health.v1.Health/Check"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(application: Application) -> AsyncIterator[Service]:
    async with open_service(application, api_keys="open-sesame,another-one") as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def keyless(application: Application) -> AsyncIterator[Service]:
    async with open_service(application) as opened:
        yield opened


async def served(service: Service) -> None:
    """Probes and a caller with a key are answered."""
    health = health_pb2_grpc.HealthStub(service.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1
    assert (await service.rest.get("/livez")).status_code == 200
    assert (await service.rest.get("/v1/models", headers=KEY)).status_code == 200


# Health


async def test_watchers_of_health_keep_nobody_out(service: Service) -> None:
    health = health_pb2_grpc.HealthStub(service.channel)
    watchers = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(90)]
    firsts = await asyncio.gather(*(watcher.read() for watcher in watchers))
    assert sum(getattr(first, "status", 0) == 1 for first in firsts) >= 64
    await served(service)
    await service.models.List(models_pb2.ModelsListRequest(), metadata=tuple(KEY.items()))
    assert service.gateway.lifecycle.in_flight == 0
    assert len(service.gateway.places.watchers) <= 64
    for watcher in watchers:
        watcher.cancel()
    await eventually(lambda: len(service.gateway.places.watchers) == 0)


async def test_half_sent_requests_for_health_keep_nobody_out(service: Service) -> None:
    silent = [service.channel.stream_unary(CHECK)() for _ in range(40)]
    await eventually(lambda: len(service.gateway.places.probes) > 0)
    await served(service)
    assert len(service.gateway.places.probes) <= 17
    codes = await asyncio.gather(*(call.code() for call in silent))
    assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert len(service.gateway.places.probes) == 0


@pytest.mark.parametrize(
    ("method", "streams"),
    [
        (CHECK, False),
        ("/grpc.health.v1.Health/List", False),
        ("/grpc.health.v1.Health/Watch", True),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True),
    ],
)
async def test_bytes_that_are_no_message_are_refused_by_name_on_public_calls(
    service: Service, method: str, streams: bool
) -> None:
    call: Any = service.channel.stream_stream(method)(iter([b"\xff\xff\xff"]), metadata=tuple(KEY.items()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "must be protobuf" in str(caught.value.details())


async def test_an_unknown_service_is_not_found_as_the_protocol_of_health_has_it(service: Service) -> None:
    health = health_pb2_grpc.HealthStub(service.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_an_oversize_request_for_health_is_refused(service: Service) -> None:
    refused = await grpc_refusal(service.channel.unary_unary(CHECK)(b"\x0a" + bytes(9000)))
    assert refused.reason == "TOO_LARGE"


async def test_the_newest_comer_always_gets_a_place() -> None:
    places = Places("things", 3)
    ended: list[int] = []

    async def stay(number: int) -> None:
        try:
            with places.one():
                await asyncio.sleep(60)
        except Exception as error:
            assert "a newer one took this place" in str(error)
            ended.append(number)

    tasks = [asyncio.create_task(stay(number)) for number in range(5)]
    await eventually(lambda: ended == [0, 1])
    assert len(places) == 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(places) == 0


async def test_a_message_that_is_long_in_coming_makes_room_but_a_quick_one_stays(service: Service) -> None:
    arriving = Strangers().arriving
    assert arriving.patience_s > 0
    with arriving.one():
        assert len(arriving) == 1


# Structure before parsing


async def test_a_message_of_countless_fields_is_refused_before_it_is_parsed(service: Service) -> None:
    seen = observation_pb2.Observation(images=[observation_pb2.Image()] * 100_000)  # two bytes each
    content = planning_pb2.PlanRequest(observation=seen).SerializeToString()
    call = service.channel.unary_unary("/presage.v1.Planning/Plan")(content, metadata=tuple(KEY.items()))
    refused = await grpc_refusal(call)
    assert refused.reason == "TOO_LARGE"
    assert "at most 16384 fields" in refused.message


# Sequences and repeated calls


async def test_the_largest_sequence_does_not_poison_a_session(service: Service) -> None:
    metadata = tuple(KEY.items())
    goal = await service.rest.post("/v1/goals", json={"image": json_observation(SEEN)["images"][0]}, headers=KEY)
    ask = sessions_pb2.SessionsCreateRequest(goal_id=goal.json()["goal_id"])
    session = (await service.sessions.Create(ask, metadata=metadata)).session.session_id

    def plan(sequence: int) -> Any:
        seen = proto_observation(SEEN, sequence)
        return service.planning.Plan(planning_pb2.PlanRequest(session_id=session, observation=seen), metadata=metadata)

    refused = await grpc_refusal(plan(2**64 - 1))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "observation.sequence")
    assert (await plan(0)).plan.observation_sequence == 1
    assert (await plan(2**63 - 1)).plan.observation_sequence == 2**63 - 1
    assert (await plan(0)).plan.observation_sequence == 2**63
    assert (await plan(0)).plan.observation_sequence == 2**63 + 1


async def test_a_request_id_used_again_for_another_goal_is_refused(keyless: Service) -> None:
    goals = [
        (await keyless.rest.post("/v1/goals", json={"image": json_observation(frame)["images"][0]})).json()["goal_id"]
        for frame in (linear.frame(0.6, 0.4), linear.frame(0.2, 0.9))
    ]
    session = (await keyless.rest.post("/v1/sessions", json={})).json()["session_id"]
    asked = {"session_id": session, "observation": json_observation(SEEN, 1), "request_id": "once", "goal_id": goals[0]}
    first = await keyless.rest.post("/v1/plans", json=asked)
    again = await keyless.rest.post("/v1/plans", json={**asked, "budget_ms": 500})
    assert first.status_code == again.status_code == 200
    assert first.json()["actions"] == again.json()["actions"]
    for other in ({"goal_id": goals[1]}, {"observation": json_observation(linear.frame(0.3, 0.3), 2)}, {"seed": 5}):
        refused = await rest_refusal(keyless.rest.post("/v1/plans", json={**asked, **other}))
        assert (refused.reason, refused.field) == ("INVALID_FIELD", "request_id")


# Pages in browsers

FOREIGN = ("evil.example", "evil.example:80", "localhost.evil.example", "", "a b", "127.0.0.1.nip.io")
OWN = ("localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:8080", "robot", "a.localhost", "10.0.0.7:1")
ROUTES = ("/livez", "/readyz", "/metrics", "/openapi.json", "/v1/models", "/nowhere")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "a b", "127.0.0.1.nip.io"]
)
async def test_another_host_is_refused_on_every_route(keyless: Service, path: str, host: str) -> None:
    assert (await rest_refusal(keyless.rest.get(path, headers={"host": host}))).reason == "FOREIGN_SITE"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:8080", "robot", "a.localhost", "10.0.0.7:1"]
)
async def test_this_machine_is_answered_under_its_own_names(keyless: Service, host: str) -> None:
    assert (await keyless.rest.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:8080", ""])
async def test_a_page_in_a_browser_is_refused_on_every_route(keyless: Service, path: str, origin: str) -> None:
    assert (await rest_refusal(keyless.rest.get(path, headers={"origin": origin}))).reason == "FOREIGN_SITE"


async def test_a_form_on_another_page_is_refused_before_its_clip_is_looked_at(keyless: Service) -> None:
    files = {"clip": ("clip.mp4", b"not a video" * 1000)}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        refused = await rest_refusal(keyless.rest.post("/v1/embeddings/clips", files=files, headers=headers))
        assert refused.reason == "FOREIGN_SITE"


async def test_no_answer_allows_other_pages_unless_they_are_named(application: Application, keyless: Service) -> None:
    assert "access-control-allow-origin" not in (await keyless.rest.get("/v1/models")).headers
    async with open_service(
        application, allowed_origins="https://console.example", allowed_hosts="presage.example"
    ) as named:
        page = {"origin": "https://console.example", "host": "presage.example"}
        reply = await named.rest.get("/v1/models", headers=page)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://console.example"
        asking = {**page, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        assert (await named.rest.options("/v1/plans", headers=asking)).status_code == 200
        assert (await rest_refusal(named.rest.get("/livez", headers={"origin": "https://evil.example"}))).status == 403


async def test_a_page_is_refused_over_grpc_too(keyless: Service) -> None:
    call = keyless.models.List(models_pb2.ModelsListRequest(), metadata=(("origin", "https://evil.example"),))
    assert (await grpc_refusal(call)).reason == "FOREIGN_SITE"


async def test_a_wrong_method_is_named_on_every_route(keyless: Service) -> None:
    for path in ("/openapi.json", "/livez", "/metrics", "/v1/models", "/v1/plans", "/v1/embeddings/clips"):
        for method in ("PATCH", "PUT", "DELETE", "OPTIONS", "TRACE", "PURGE"):
            refused = await rest_refusal(keyless.rest.request(method, path))
            assert refused.reason == "METHOD_NOT_ALLOWED"
