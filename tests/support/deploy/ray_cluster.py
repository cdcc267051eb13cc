"""Run by test_ray.py in a namespace of its own: the service on a real Ray, from one replica to two."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import httpx
import numpy as np
import presage
import pytest
from presage.protocol import codec
from presage.v1 import planning_pb2, planning_pb2_grpc

from model.video.decode import write_clip
from simulation import tasks

ROOT = Path(__file__).resolve().parents[3]
KEY = "a-key-for-this-test"
REST = "http://127.0.0.1:8080"
SMALL = presage.PlannerSettings(samples=16, iterations=2, elites=4)
ENDLESS = presage.PlannerSettings(samples=400, iterations=900, elites=20)


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[None]:
    command = [sys.executable, "-m", "deploy.ray", "--device", "cpu", "--threads", "1", "--num-cpus", "4"]
    command += ["--max-replicas", "2", "--calls-per-replica", "2", "--upscale-delay-s", "1"]
    environment = {**os.environ, "PRESAGE_API_KEYS": KEY}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told == {"grpc": "127.0.0.1:50051", "rest": REST}
    yield
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0
    process.stdout.close()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    arm = tasks.make("arm")
    return arm.render_state(np.array([0.2, 0.9]))


@pytest.fixture(scope="module")
def goal_image() -> np.ndarray:
    arm = tasks.make("arm")
    return arm.render_state(np.array([0.9, 0.1]))


@contextmanager
def connected(affinity: str, timeout_s: float = 60.0) -> Iterator[presage.Client]:
    with presage.Client("127.0.0.1:50051", api_key=KEY, affinity=affinity, timeout_s=timeout_s) as client:
        yield client


def rest(affinity: str) -> httpx.Client:
    return httpx.Client(base_url=REST, headers={"x-api-key": KEY, "x-session-id": affinity}, timeout=60.0)


def engine_calls(affinity: str) -> float:
    """Calls in hand in the replica of this name."""
    with rest(affinity) as gateway:
        return float(re.findall(r"^presage_engine_calls (\S+)", gateway.get("/metrics").text, re.MULTILINE)[0])


def test_both_transports_and_every_replica_give_the_same_plan(image: np.ndarray, goal_image: np.ndarray) -> None:
    with connected("robot-0") as client, rest("robot-0") as gateway:
        client.wait_ready(10.0)
        goal = client.goal(goal_image)
        plan = client.plan(image, goal, seed=7, settings=SMALL)
        raw = {"height": 64, "width": 64, "format": "rgb8", "data": base64.b64encode(image.tobytes()).decode()}
        body = {
            "observation": {"images": [{"raw": raw}]},
            "goal_id": goal.goal_id,
            "seed": 7,
            "planner": {"samples": 16, "iterations": 2, "elites": 4},
        }
        reply = gateway.post("/v1/plans?tensors=lists", json=body)
    assert reply.status_code == 200, reply.text
    np.testing.assert_allclose(reply.json()["actions"]["data"], plan.actions, atol=1e-6)


def test_errors_keep_their_details_on_both_transports(image: np.ndarray) -> None:
    with connected("robot-0") as client, rest("robot-0") as gateway:
        with pytest.raises(presage.InvalidRequest) as caught:
            client.goal(image[:32, :32])
        error = caught.value
        assert (error.reason, error.field) == ("IMAGE_SIZE", "image")
        assert error.request_id
        with pytest.raises(presage.NotFound, match="UNKNOWN_SESSION"):
            client.resume_session("nosuch")
        problem = gateway.get("/v1/goals/nosuch")
    assert (problem.status_code, problem.json()["code"]) == (404, "UNKNOWN_GOAL")
    with (
        presage.Client("127.0.0.1:50051", api_key="another") as stranger,
        pytest.raises(presage.Unauthenticated) as refused,
    ):
        stranger.models()
    assert refused.value.reason == "UNAUTHENTICATED"


def test_an_error_that_ends_a_stream_keeps_its_details() -> None:
    with grpc.insecure_channel("127.0.0.1:50051") as channel:
        start = planning_pb2.ControlRequest(start=planning_pb2.ControlStart(session_id="nosuch"))
        control = planning_pb2_grpc.PlanningStub(channel).Control
        call = control(iter([start]), metadata=(("x-api-key", KEY),), timeout=30.0)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    assert b"UNKNOWN_SESSION" in details


def test_a_plan_comes_by_its_deadline(image: np.ndarray, goal_image: np.ndarray) -> None:
    with connected("robot-0") as client:
        goal = client.goal(goal_image)
        plan = client.plan(image, goal, settings=ENDLESS, timeout_s=4.0)
    assert plan.stop_reason == "deadline"


def test_a_cancelled_plan_leaves_its_engine(image: np.ndarray, goal_image: np.ndarray) -> None:
    with connected("robot-0") as client:
        goal = client.goal(goal_image)
    seen = codec.observation_message(codec.as_observation(image))
    request = planning_pb2.PlanRequest(
        observation=seen, goal_id=goal.goal_id, planner=codec.planner_message(ENDLESS), budget_ms=120_000
    )
    metadata = (("x-api-key", KEY), ("session_id", "robot-0"))
    with grpc.insecure_channel("127.0.0.1:50051") as channel:
        call = planning_pb2_grpc.PlanningStub(channel).Plan.future(request, timeout=120.0, metadata=metadata)
        until = time.monotonic() + 30
        while engine_calls("robot-0") == 0:
            assert time.monotonic() < until
        call.cancel()
        while engine_calls("robot-0") != 0:
            assert time.monotonic() < until


def test_a_clip_is_uploaded_in_pieces(goal_image: np.ndarray, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_clip(clip, np.stack([goal_image] * 8), 10.0)
    with connected("robot-0") as client:
        assert client.embed_clip(clip, kind="per_frame").embedding.shape == (8, 128)


def test_sessions_stay_where_they_are_when_replicas_come(image: np.ndarray, goal_image: np.ndarray) -> None:
    """Control streams of six robots bring up a second replica; no session moves, and new robots go to both."""
    robots = [f"robot-{number}" for number in range(6)]
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(robot)) for robot in robots]
        sessions = [stack.enter_context(each.session(goal=each.goal(goal_image))) for each in clients]
        loops = [stack.enter_context(each.control(budget_ms=50, settings=SMALL)) for each in sessions]
        first_goal = clients[0].goal(goal_image)
        second, until = None, time.monotonic() + 150
        while second is None:
            assert time.monotonic() < until
            for loop in loops:
                loop.send(image)
                assert loop.wait(30.0) is not None
            second = newcomer_elsewhere(first_goal)
        for loop, session in zip(loops, sessions, strict=True):
            sequence = loop.send(image)
            plan = loop.wait(30.0, sequence)
            assert plan is not None
            assert plan.plan.observation_sequence == sequence
            assert session.plan(image, settings=SMALL).epoch == 0  # unary calls find it too
        with connected(second) as client, client.session(goal=client.goal(goal_image)) as session:
            for _ in range(5):
                session.plan(image, settings=SMALL)


def newcomer_elsewhere(goal: presage.Goal) -> str | None:
    """A name whose replica does not know this goal; None if all of twenty names share one replica."""
    for _ in range(20):
        name = f"newcomer-{time.monotonic_ns()}"
        with connected(name) as client:
            try:
                client.get_goal(goal)
            except presage.NotFound:
                return name
    return None


def test_calls_at_the_same_time_are_all_answered(image: np.ndarray, goal_image: np.ndarray) -> None:
    plans: list[presage.Plan] = []

    def ask(name: str) -> None:
        with connected(name) as client:
            plans.append(client.plan(image, client.goal(goal_image), settings=SMALL, seed=3))

    threads = [threading.Thread(target=ask, args=(f"crowd-{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 12
    for plan in plans:
        np.testing.assert_allclose(plan.actions, plans[0].actions, atol=1e-4)
