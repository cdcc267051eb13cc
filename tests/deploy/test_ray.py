"""Presage on Ray Serve. What needs Ray runs in a network and process namespace: Ray opens many ports, and none may be
reached from outside, and nothing of it may be left over."""

from __future__ import annotations

import importlib.util
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from presage.protocol import codec
from presage.v1 import goals_pb2, planning_pb2, sessions_pb2

from deploy.ray import namespace, wire
from deploy.ray.context import ReplicaContext
from deploy.ray.replica import Replica
from deploy.ray.wire import Called
from model.built_in import built_in
from server.config import Settings
from simulation import tasks
from tests.support.paths import ROOT

INSIDE = ROOT / "tests" / "support" / "deploy" / "ray_cluster.py"
needs_arm = pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here")


class RaysCopy:
    """What Ray hands to a replica of a call's context, as far as a replica uses it."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata, self.trailing = metadata, [("request_id", "rays-own")]
        self.code: grpc.StatusCode | None = None
        self.details = ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self.metadata)

    def trailing_metadata(self) -> list[tuple[str, Any]]:
        return self.trailing

    def set_trailing_metadata(self, metadata: list[tuple[str, Any]]) -> None:
        self.trailing = metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    @property
    def reason(self) -> str:
        """Out of the rich error that a client would find."""
        info = error_details_pb2.ErrorInfo()
        status = status_pb2.Status.FromString(dict(self.trailing)["grpc-status-details-bin"])
        assert any(detail.Unpack(info) for detail in status.details)
        return info.reason


async def sent(path: str, *messages: Any) -> AsyncIterator[Called]:
    for message in messages:
        yield Called(path, message.SerializeToString())


def test_every_method_reaches_a_replica_by_its_whole_path() -> None:
    methods = wire.methods()
    assert methods["/presage.v1.Planning/Control"] == "conversed"
    assert methods["/presage.v1.Embeddings/EmbedClip"] == "collected"
    assert methods["/grpc.health.v1.Health/Watch"] == "streamed"
    names = [path.rpartition("/")[2] for path in methods]
    assert all(hasattr(Replica, name) for name in names)
    shared = {path for path in methods if names.count(path.rpartition("/")[2]) > 1}
    assert {methods[path] for path in shared} == {"unary"}  # Ray tells them apart by nothing, their messages do


def test_a_deadline_comes_as_a_header_and_leaves_time_for_the_way_back() -> None:
    left = ReplicaContext(RaysCopy(("x-timeout-ms", "500"))).time_remaining()
    assert left is not None
    assert 0.4 < left < 0.48
    assert ReplicaContext(RaysCopy()).time_remaining() is None
    for nonsense in ("soon", "nan", "inf", "-1", ""):
        assert ReplicaContext(RaysCopy(("x-timeout-ms", nonsense))).time_remaining() is None


@pytest.fixture
def own_logging() -> Iterator[None]:
    """A replica configures the logs of its process, which is this one here: undone after the test."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.mark.process
@needs_arm
async def test_a_replica_keeps_rich_errors_and_streams_without_ray(own_logging: None) -> None:
    arm = tasks.make("arm")
    replica: Any = Replica.__new__(Replica)
    settings = Settings(devices=("cpu",), engine_threads=1, api_keys=("a-robot-of-ours",), log_level="error")
    await replica.__init__(settings)
    key = ("x-api-key", "a-robot-of-ours")
    try:
        health = await replica.Check(Called("/grpc.health.v1.Health/Check", b""), RaysCopy())
        assert health_pb2.HealthCheckResponse.FromString(health.data).status == health_pb2.HealthCheckResponse.SERVING

        request = goals_pb2.GoalsCreateRequest(image=codec.image_message(arm.render(), "image"))
        called = Called("/presage.v1.Goals/Create", request.SerializeToString())
        refused = RaysCopy()
        assert (await replica.Create(called, refused)).data == b""
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        goal = goals_pb2.GoalsCreateResponse.FromString((await replica.Create(called, RaysCopy(key))).data).goal

        called = Called("/presage.v1.Sessions/Create", b"\xff")
        await replica.Create(called, (unreadable := RaysCopy(key)))
        assert (unreadable.code, unreadable.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        request = sessions_pb2.SessionsCreateRequest(goal_id=goal.goal_id)
        made = await replica.Create(Called("/presage.v1.Sessions/Create", request.SerializeToString()), RaysCopy(key))
        session_id = sessions_pb2.SessionsCreateResponse.FromString(made.data).session.session_id

        path = "/presage.v1.Planning/Control"
        start = planning_pb2.ControlStart(session_id=session_id, budget_ms=50)
        observation = codec.observation_message(codec.as_observation(arm.render()))
        seen = planning_pb2.ControlObservation(observation=observation)
        messages = (planning_pb2.ControlRequest(start=start), planning_pb2.ControlRequest(observation=seen))
        heard = [
            planning_pb2.ControlResponse.FromString(reply.data)
            async for reply in replica.Control(sent(path, *messages), RaysCopy(key))
        ]
        assert [reply.WhichOneof("message") for reply in heard] == ["plan"]

        start = planning_pb2.ControlStart(session_id="nosuch")
        lost = RaysCopy(key)
        stream = replica.Control(sent(path, planning_pb2.ControlRequest(start=start)), lost)
        heard = [reply.data async for reply in stream]
        assert heard == [b""]  # what carries the error
        assert (lost.code, lost.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_SESSION")
    finally:
        await replica.stop()


@pytest.mark.skipif({name for _, name in socket.if_nameindex()} == {"lo"}, reason="there is no address but loopback")
def test_a_service_without_keys_is_not_opened_to_the_network() -> None:
    done = subprocess.run([sys.executable, "-m", "deploy.ray"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "every address of the machine: api_keys" in done.stderr


@needs_arm
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'")
@pytest.mark.timeout(900)
def test_a_cluster_serves_as_one_process_does() -> None:
    """The tests of ray_cluster.py, inside."""
    if not namespace.possible():
        pytest.skip("namespaces cannot be made here: they want unshare, ip, and root")
    command = namespace.inside(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INSIDE))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
