"""The gRPC gateway over a real channel, with a real engine behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, planning_pb2, sessions_pb2

from server.service.application import Application
from server.transport.grpc.service import SERVICES
from server.values import calls
from tests.support.model import clips
from tests.support.server import linear
from tests.support.server.transports import (
    Service,
    array_of,
    clip_messages,
    eventually,
    grpc_refusal,
    open_service,
    proto_image,
    proto_observation,
    proto_tensor,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def goal(service: Service, right: float, down: float, model: str = "linear") -> str:
    image = proto_image(linear.frame(right, down))
    return str((await service.goals.Create(goals_pb2.GoalsCreateRequest(image=image, model=model))).goal.goal_id)


async def session(service: Service, goal_id: str = "", model: str = "linear") -> str:
    made = await service.sessions.Create(sessions_pb2.SessionsCreateRequest(goal_id=goal_id, model=model, seed=1))
    return str(made.session.session_id)


async def test_models_are_listed_with_what_to_send_them_and_the_limits(service: Service) -> None:
    listed = (await service.models.List(models_pb2.ModelsListRequest())).models
    assert listed[0].name == "linear"
    assert (listed[0].image.height, listed[0].image.width) == (linear.SIDE, linear.SIDE)
    assert list(listed[0].action.high) == [1.0, 0.5]
    assert listed[0].limits.message_bytes == service.gateway.limits.message_bytes
    one = (await service.models.Get(models_pb2.ModelsGetRequest(name="embedder"))).model
    assert not one.HasField("action")


async def test_a_goal_is_made_once_found_again_and_deleted(service: Service) -> None:
    ask = goals_pb2.GoalsCreateRequest(image=proto_image(linear.frame(0.3, 0.9)))
    first = (await service.goals.Create(ask)).goal
    second = (await service.goals.Create(ask)).goal
    assert (first.cached, second.cached) == (False, True)
    assert first.goal_id == second.goal_id
    by_id = goals_pb2.GoalsGetRequest(goal_id=first.goal_id)
    assert (await service.goals.Get(by_id)).goal.create_time == first.create_time
    await service.goals.Delete(goals_pb2.GoalsDeleteRequest(goal_id=first.goal_id))
    assert (await grpc_refusal(service.goals.Get(by_id))).reason == "UNKNOWN_GOAL"


async def test_a_session_counts_its_plans_until_it_is_reset(service: Service) -> None:
    name = await session(service, await goal(service, 0.6, 0.4))
    observation = proto_observation(linear.frame(0.5, 0.5), sequence=4)
    await service.planning.Plan(planning_pb2.PlanRequest(session_id=name, observation=observation))
    seen = (await service.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=name))).session
    assert (seen.plans, seen.last_sequence, seen.epoch) == (1, 4, 0)
    reset = (await service.sessions.Reset(sessions_pb2.SessionsResetRequest(session_id=name))).session
    assert (reset.plans, reset.last_sequence, reset.epoch) == (0, 0, 1)
    await service.sessions.Delete(sessions_pb2.SessionsDeleteRequest(session_id=name))
    gone = service.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=name))
    assert (await grpc_refusal(gone)).reason == "UNKNOWN_SESSION"


async def test_a_plan_is_the_one_the_application_makes_for_that_seed(service: Service) -> None:
    goal_id = await goal(service, 0.8, 0.2)
    observation = proto_observation(linear.frame(0.5, 0.5), sequence=7)
    observation.capture_time.FromNanoseconds(1_700_000_000_000_000_001)
    ask = planning_pb2.PlanRequest(observation=observation, goal_id=goal_id, seed=11)
    plan = (await service.planning.Plan(ask)).plan
    here = calls.PlanRequest(calls.Observation((linear.frame(0.5, 0.5),)), goal_id=goal_id, seed=11)
    expected = await service.gateway.application.plan(here, None, time.monotonic())
    np.testing.assert_array_equal(array_of(plan.actions), expected.actions)
    assert plan.cost == expected.cost
    assert (plan.seed, plan.observation_sequence) == (11, 7)
    assert plan.capture_time == observation.capture_time
    assert plan.provenance.goal_id == goal_id
    assert plan.timings.total_ms >= plan.timings.plan_ms > 0


async def test_rollouts_and_scores_follow_the_model(service: Service) -> None:
    goal_id = await goal(service, 0.5, 0.5)
    start, actions = proto_observation(linear.frame(0.2, 0.2)), np.full((4, 2), 0.5, np.float32)
    ask = planning_pb2.RolloutRequest(observation=start, actions=proto_tensor(actions), goal_id=goal_id)
    rolled = await service.planning.Rollout(ask)
    step = linear.GAIN * 0.5 * 2
    begun = linear.latent(0.2, 0.2)
    np.testing.assert_allclose(array_of(rolled.latents), [begun + step, begun + 2 * step], rtol=1e-5)
    assert len(rolled.goal_distances) == 2
    candidates = np.stack([actions, -actions])
    scored = await service.planning.Score(
        planning_pb2.ScoreRequest(observation=start, candidates=proto_tensor(candidates), goal_id=goal_id)
    )
    assert scored.costs[0] < scored.costs[1]
    np.testing.assert_allclose(array_of(scored.step_costs)[0], rolled.goal_distances, rtol=1e-5)


async def test_distances_and_surprises_are_told(service: Service) -> None:
    goal_id, here, there = await goal(service, 0.5, 0.5), linear.frame(0.5, 0.5), linear.frame(0.9, 0.5)
    near = planning_pb2.DistanceRequest(images=[proto_image(here), proto_image(there)], goal_id=goal_id)
    first, second = (await service.planning.Distance(near)).distances
    assert first == pytest.approx(0.0, abs=1e-7)
    assert second > 0.01
    seen = [proto_observation(here), proto_observation(there)]
    still = proto_tensor(np.zeros((2, 2), np.float32))
    ask = planning_pb2.SurpriseRequest(observations=seen, actions=still, session_id=await session(service))
    told = await service.planning.Surprise(ask)
    assert list(told.errors) == pytest.approx([second], rel=1e-5)
    assert (list(told.scores), told.steps_known) == ([], 1)
    without = planning_pb2.SurpriseRequest(observations=seen)
    assert (await grpc_refusal(service.planning.Surprise(without))).field == "actions"
    del seen[1].images[:]
    ask = planning_pb2.SurpriseRequest(observations=seen, actions=still)
    assert (await grpc_refusal(service.planning.Surprise(ask))).field == "observations[1].images"


async def test_images_are_embedded_and_measured_against_a_goal(service: Service) -> None:
    goal_id = await goal(service, 0.4, 0.4)
    images = [proto_image(linear.frame(0.4, 0.4)), proto_image(linear.frame(0.9, 0.1))]
    embedded = await service.embeddings.EmbedImages(embeddings_pb2.EmbedImagesRequest(images=images, goal_id=goal_id))
    np.testing.assert_allclose(array_of(embedded.embedding), [linear.latent(0.4, 0.4), linear.latent(0.9, 0.1)])
    assert embedded.goal_distances[0] == pytest.approx(0)
    assert embedded.goal_distances[1] > 0.1


async def test_a_clip_arrives_in_chunks_and_leaves_nothing_behind(service: Service, tmp_path: Path) -> None:
    frames = np.repeat(np.arange(40, 100, 10, dtype=np.uint8), 16 * 16 * 3).reshape(6, 16, 16, 3)
    content = clips.write(tmp_path / "clip.mp4", frames).read_bytes()
    header = {"kind": embeddings_pb2.EMBEDDING_KIND_PER_FRAME, "sampling": embeddings_pb2.FrameSampling(frames=3)}
    plain = await service.embeddings.EmbedClip(clip_messages(content, chunk=100, **header))
    assert len(plain.step_distances) == 0
    header["step_distances"] = True
    reply = await service.embeddings.EmbedClip(clip_messages(content, chunk=100, **header))
    assert array_of(reply.embedding).shape == (3, 2)
    assert len(reply.frame_times_s) == 3
    assert len(reply.step_distances) == 2
    assert service.gateway.uploads.active == 0


@pytest.mark.parametrize(
    ("header", "chunk", "reason", "field"),
    [
        ({"total_bytes": 9}, 10, "CLIP_MISMATCH", "chunk"),
        ({"total_bytes": 11}, 10, "CLIP_MISMATCH", "chunk"),
        ({"sha256": b"\0" * 32}, 10, "CLIP_MISMATCH", "chunk"),
        ({"sha256": b""}, 10, "INVALID_FIELD", "header.sha256"),
        ({"total_bytes": 0}, 10, "INVALID_FIELD", "header.total_bytes"),
        ({"total_bytes": 2**40}, 10, "TOO_LARGE", "header.total_bytes"),
        ({}, (1 << 20) + 1, "INVALID_FIELD", "chunk"),
    ],
)
async def test_an_upload_that_breaks_its_word_is_refused(
    service: Service, header: dict[str, Any], chunk: int, reason: str, field: str
) -> None:
    content = bytes(10 if chunk == 10 else chunk)
    refused = await grpc_refusal(service.embeddings.EmbedClip(clip_messages(content, chunk=chunk, **header)))
    assert (refused.reason, refused.field) == (reason, field)
    assert service.gateway.uploads.active == 0


async def test_an_upload_must_begin_with_its_header_and_go_on_with_chunks(service: Service) -> None:
    messages_ = list(clip_messages(b"0123456789", chunk=5))
    headless = await grpc_refusal(service.embeddings.EmbedClip(iter(messages_[1:])))
    assert (headless.reason, headless.field) == ("INVALID_REQUEST", "part")
    empty = await grpc_refusal(service.embeddings.EmbedClip(iter([])))
    assert empty.reason == "INVALID_REQUEST"
    twice = await grpc_refusal(service.embeddings.EmbedClip(iter([messages_[0], *messages_])))
    assert (twice.reason, twice.field) == ("INVALID_FIELD", "chunk")


async def test_more_uploads_than_slots_are_refused_at_once(application: Application) -> None:
    async with open_service(application, limits={"uploads_per_key": 4}) as service:
        await _more_uploads_than_slots(service)


async def _more_uploads_than_slots(service: Service) -> None:
    go_on = asyncio.Event()

    async def slow_upload() -> AsyncIterator[embeddings_pb2.EmbedClipRequest]:
        for message in clip_messages(b"0123456789", chunk=5):
            yield message
            await go_on.wait()

    slots = service.gateway.limits.max_concurrent_uploads
    held = [service.embeddings.EmbedClip(slow_upload()) for _ in range(slots)]
    await eventually(lambda: service.gateway.uploads.active == slots)
    refused = await grpc_refusal(service.embeddings.EmbedClip(clip_messages(b"0123456789")))
    assert refused.reason == "OVERLOADED"
    assert refused.retry_after_s is not None
    go_on.set()
    assert [(await grpc_refusal(call)).reason for call in held] == ["INVALID_CLIP"] * slots


async def test_an_upload_that_falls_silent_loses_its_slot(application: Application) -> None:
    async def silent() -> AsyncIterator[embeddings_pb2.EmbedClipRequest]:
        yield next(clip_messages(b"0123456789"))
        await asyncio.sleep(60)

    async with open_service(application, limits={"upload_idle_s": 0.2}) as service:
        refused = await grpc_refusal(service.embeddings.EmbedClip(silent()))
        assert (refused.reason, refused.field) == ("DEADLINE", "chunk")
        assert service.gateway.uploads.active == 0


async def test_a_plan_comes_before_its_deadline(service: Service) -> None:
    goal_id = await goal(service, 0.5, 0.5, "slow")
    ask = planning_pb2.PlanRequest(
        model="slow",
        observation=proto_observation(linear.frame(0.5, 0.5)),
        goal_id=goal_id,
        planner=models_pb2.PlannerSettings(iterations=500, elites=32),
    )
    plan = (await service.planning.Plan(ask, timeout=1.0)).plan
    assert planning_pb2.StopReason.Name(plan.stop_reason) == "STOP_REASON_DEADLINE"
    assert 1 <= plan.iterations_done < 500


async def test_a_caller_that_leaves_frees_the_engine(service: Service) -> None:
    goal_id = await goal(service, 0.5, 0.5, "slow")
    ask = planning_pb2.PlanRequest(
        model="slow",
        observation=proto_observation(linear.frame(0.5, 0.5)),
        goal_id=goal_id,
        planner=models_pb2.PlannerSettings(iterations=900, elites=32),
    )
    call = service.planning.Plan(ask)
    await eventually(lambda: service.gateway.application.calls_in_hand == 1)
    call.cancel()
    await eventually(lambda: service.gateway.application.calls_in_hand == 0, patience_s=10)


async def test_a_request_id_is_echoed_and_a_strange_one_replaced(service: Service) -> None:
    async def echoed(presented: str) -> str:
        call = service.models.List(models_pb2.ModelsListRequest(), metadata=(("x-request-id", presented),))
        await call
        return str(dict(await call.trailing_metadata())["x-request-id"])

    assert await echoed("robot-7/42") == "robot-7/42"
    assert await echoed("with space") != "with space"
    assert await echoed("x" * 129) != "x" * 129


async def test_reflection_lists_every_service(service: Service) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    replies = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    listed = {entry.name async for reply in replies for entry in reply.list_services_response.service}
    assert set(SERVICES) | {"grpc.health.v1.Health"} <= listed


async def test_health_speaks_for_the_server_and_each_service(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", *SERVICES):
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_draining_says_so_first_finishes_what_runs_and_refuses_the_rest(application: Application) -> None:
    async with open_service(application) as service:
        goal_id = await goal(service, 0.9, 0.9, "slow")
        ask = planning_pb2.PlanRequest(
            model="slow", observation=proto_observation(linear.frame(0.5, 0.5)), goal_id=goal_id
        )
        running = asyncio.ensure_future(service.planning.Plan(ask))
        await eventually(lambda: service.gateway.lifecycle.in_flight == 1)
        service.gateway.lifecycle.draining.set()
        refused = await grpc_refusal(service.planning.Plan(ask))
        assert (refused.status, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
        assert refused.retry_after_s is not None
        stub = health_pb2_grpc.HealthStub(service.channel)
        await eventually(lambda: not service.gateway.lifecycle.ready)
        while True:
            status = (await stub.Check(health_pb2.HealthCheckRequest())).status
            if status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
            await asyncio.sleep(0.02)
        assert len((await running).plan.iteration_costs) >= 1
