"""Both transports under requests nobody means: every one is answered or refused by name, in time, and nothing grows.

`PRESAGE_FUZZ_CASES=5000 pytest tests/server -k fuzz` is the size for a release.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, observation_pb2, planning_pb2, sessions_pb2

from server.service.application import Application
from server.transport.grpc.service import SERVICES
from tests.server.conftest import START_S, changed
from tests.server.engine.test_supervisor import started
from tests.support.model import clips
from tests.support.server import fuzzing, linear
from tests.support.server.fuzzing import CASES, Known
from tests.support.server.transports import (
    Service,
    clip_messages,
    open_service,
    proto_image,
    proto_observation,
    proto_tensor,
)

on_one_loop = pytest.mark.asyncio(loop_scope="module")

PATIENCE_S = 60.0  # nothing these requests may ask for takes longer on a busy machine
PICTURE = linear.frame(0.2, 0.4)
SEEN = proto_observation(PICTURE)
WITH_PROPRIOCEPTION = observation_pb2.Observation(
    images=[proto_image(PICTURE)], proprioception=proto_tensor(np.zeros(1, np.float32))
)
ACTIONS = proto_tensor(np.full((4, 2), 0.1, np.float32))
# Bytes: caches fill. What makes the cases lives in this process too, and keeps 25 KiB of each; a service in a process
# of its own grew by 0.6 MiB in 3977 cases.
LARGEST_GROWTH = 64 * 2**20 + CASES * 32 * 2**10


@dataclass(frozen=True)
class Target:
    """A service of its own, small enough that a large request ends soon."""

    application: Application
    service: Service
    known: Known
    spool: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target() -> AsyncIterator[Target]:
    models = ("linear", "historian", "embedder")
    small = changed(models=models, rollout_steps=20_000, sessions=32, goal_cache_bytes=1 << 16)
    with tempfile.TemporaryDirectory() as spool:
        async with started(small) as application:
            await application.wait_ready(START_S)
            async with open_service(
                application, spool_dir=spool, limits={"image_pixels": 1 << 20, "upload_idle_s": 5.0}, log_level="error"
            ) as service:
                made = await service.goals.Create(goals_pb2.GoalsCreateRequest(image=proto_image(PICTURE)))
                ask = sessions_pb2.SessionsCreateRequest(goal_id=made.goal.goal_id)
                opened = await service.sessions.Create(ask)
                known = Known(models, (made.goal.goal_id,), (opened.session.session_id,))
                yield Target(application, service, known, Path(spool))


def methods() -> list[MethodDescriptor]:
    """Every call; those that delete come last, so that there is something to guess until then."""
    pool = descriptor_pool.Default()
    found = [method for name in SERVICES for method in pool.FindServiceByName(name).methods]
    return sorted(found, key=lambda method: method.name == "Delete")


def templates(known: Known, clip: bytes) -> dict[str, tuple[Message, ...]]:
    """Valid messages, by the name of their type."""
    (goal_id,), (session_id,) = known.goals, known.sessions
    start = planning_pb2.ControlStart(session_id=session_id)
    control = planning_pb2.ControlObservation(observation=SEEN)
    made: list[Message] = [
        models_pb2.ModelsGetRequest(name="linear"),
        goals_pb2.GoalsCreateRequest(image=proto_image(PICTURE)),
        goals_pb2.GoalsCreateRequest(image=observation_pb2.Image(encoded=fuzzing.GOOD_JPEG), model="historian"),
        goals_pb2.GoalsCreateRequest(latent=proto_tensor(np.zeros(2, np.float32))),
        goals_pb2.GoalsGetRequest(goal_id=goal_id),
        sessions_pb2.SessionsCreateRequest(goal_id=goal_id, ttl_s=1.0),
        sessions_pb2.SessionsGetRequest(session_id=session_id),
        sessions_pb2.SessionsResetRequest(session_id=session_id),
        sessions_pb2.SessionsCalibrateRequest(
            session_id=session_id,
            moves=[
                sessions_pb2.CalibrationMove(before=SEEN, action=proto_tensor(action), after=SEEN)
                for action in np.eye(2, dtype=np.float32) / 4
            ],
        ),
        planning_pb2.PlanRequest(session_id=session_id, observation=SEEN, budget_ms=50.0),
        planning_pb2.PlanRequest(goal_id=goal_id, observation=SEEN, planner=models_pb2.PlannerSettings(samples=16)),
        planning_pb2.PlanRequest(model="historian", observation=WITH_PROPRIOCEPTION, goal_id=goal_id),
        planning_pb2.ControlRequest(start=start),
        planning_pb2.ControlRequest(observation=control),
        planning_pb2.ControlRequest(heartbeat=planning_pb2.ControlHeartbeat(nonce=1)),
        planning_pb2.RolloutRequest(session_id=session_id, observation=SEEN, actions=ACTIONS, goal_id=goal_id),
        planning_pb2.ScoreRequest(
            goal_id=goal_id, observation=SEEN, candidates=proto_tensor(np.full((3, 4, 2), 0.1, np.float32))
        ),
        planning_pb2.LandscapeRequest(session_id=session_id, observation=SEEN, points=3),
        planning_pb2.DistanceRequest(session_id=session_id, images=[proto_image(PICTURE)]),
        planning_pb2.SurpriseRequest(session_id=session_id, observations=[SEEN, SEEN, SEEN], actions=ACTIONS),
        embeddings_pb2.EmbedImagesRequest(images=[proto_image(PICTURE)] * 2, goal_id=goal_id),
        *clip_messages(clip),
    ]
    by_type: dict[str, tuple[Message, ...]] = {}
    for message in made:
        by_type[message.DESCRIPTOR.full_name] = (*by_type.get(message.DESCRIPTOR.full_name, ()), message)
    return by_type


ANSWERS = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""What a request may be answered with: no UNKNOWN or INTERNAL, no UNAVAILABLE (a lost engine), no DEADLINE_EXCEEDED
(a hang)."""


def test_every_call_is_fuzzed() -> None:
    names = {method.full_name for method in methods()}
    assert "presage.v1.Planning.Control" in names
    assert len(names) >= 19


@on_one_loop
async def test_every_grpc_call_answers_or_refuses_by_name(target: Target, tmp_path: Path) -> None:
    clip = clips.write(tmp_path / "clip.mp4", clips.moving_square(3, 32, 32)).read_bytes()
    valid = templates(target.known, clip)
    each = max(4, CASES // len(methods()))
    files, memory = fuzzing.open_files(), fuzzing.kept_bytes()
    with grpc.insecure_channel(target.service.addresses.grpc) as channel:
        seen: Counter[str] = Counter()
        for method in methods():
            codes = await asyncio.to_thread(_fuzz, channel, method, valid, target.known, each)
            seen.update({f"{method.name} {code.name}": count for code, count in codes.items()})
            assert set(codes) <= ANSWERS, {code.name: count for code, count in codes.items()}
            if method.name not in ("List",):
                assert any(code is not grpc.StatusCode.OK for code in codes), f"{method.name} was never refused"
    assert seen["Plan OK"] > 0
    assert seen["EmbedClip OK"] > 0
    await _rests(target, files, memory)


def tried(cases: int) -> Any:
    """So many examples, the same ones every time."""
    return settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def _fuzz(
    channel: grpc.Channel, method: MethodDescriptor, valid: dict[str, tuple[Message, ...]], known: Known, cases: int
) -> Counter[grpc.StatusCode]:
    codes: Counter[grpc.StatusCode] = Counter()
    path = f"/{method.containing_service.full_name}/{method.name}"
    one = fuzzing.requests(method.input_type, valid.get(method.input_type.full_name, ()), known)
    streams = method.client_streaming
    call: Any
    if streams and method.server_streaming:
        call = channel.stream_stream(path)
    elif streams:
        call = channel.stream_unary(path)
    else:
        call = channel.unary_unary(path)

    def status(content: list[bytes]) -> grpc.StatusCode:
        try:
            if method.server_streaming:
                for _ in call(iter(content), timeout=PATIENCE_S):
                    pass
            else:
                call(iter(content) if streams else content[0], timeout=PATIENCE_S)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
            return code
        return grpc.StatusCode.OK

    @tried(cases)
    @given(st.lists(one, min_size=1, max_size=5) if streams else st.lists(one, min_size=1, max_size=1))
    def fuzz(content: list[bytes]) -> None:
        code = status(content)
        codes[code] += 1
        assert code in ANSWERS, (path, code, [each[:200] for each in content])

    whole = valid.get(method.input_type.full_name, ())
    codes[status([message.SerializeToString() for message in (whole if streams else whole[:1])] or [b""])] += 1
    fuzz()
    return codes


async def _rests(target: Target, files: int, memory: int) -> None:
    """Nothing is left of all these requests."""
    application, service = target.application, target.service
    for _ in range(500):
        if application.calls_in_hand == 0 and service.gateway.lifecycle.in_flight == 0:
            break
        await asyncio.sleep(0.02)
    assert application.calls_in_hand == 0
    assert service.gateway.lifecycle.in_flight == 0
    assert service.gateway.uploads.active == 0
    assert [each for each in target.spool.rglob("presage-clip-*") if each.is_file()] == []
    assert application.engine_restarts == 0
    assert application.ready
    assert fuzzing.open_files() <= files + 20
    assert fuzzing.kept_bytes() - memory < LARGEST_GROWTH


# REST


@on_one_loop
async def test_every_rest_route_answers_as_its_document_says(target: Target) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    files, memory = fuzzing.open_files(), fuzzing.kept_bytes()
    document = (await target.service.rest.get("/openapi.json")).json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} == set(document["paths"])
    each = max(4, CASES // len(operations))
    statuses: Counter[int] = Counter()
    for operation in operations:
        statuses += await asyncio.to_thread(_fuzz_rest, target.service.addresses.rest, operation, each)
    assert {200, 422} <= set(statuses)
    await _rests(target, files, memory)


def _fuzz_rest(base_url: str, operation: Any, cases: int) -> Counter[int]:
    import requests
    from schemathesis import GenerationMode, checks
    from schemathesis.specs.openapi import checks as conformance

    wanted = [
        checks.not_a_server_error,
        conformance.status_code_conformance,
        conformance.content_type_conformance,
        conformance.response_schema_conformance,
    ]
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        session.trust_env = False

        @tried(cases)
        @given(st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)))
        def fuzz(case: Any) -> None:
            reply = case.call(base_url=base_url, session=session, timeout=PATIENCE_S)
            statuses[reply.status_code] += 1
            refused = reply.status_code == 504 and "x-timeout-ms" in {name.lower() for name in case.headers or {}}
            case.validate_response(reply, checks=wanted[1:] if refused else wanted)  # no time was what it asked for

        fuzz()
    return statuses
