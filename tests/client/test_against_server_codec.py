"""The client's requests as the service reads them, field by field."""

from __future__ import annotations

import sys

import numpy as np
import presage
import pytest
from presage.protocol import methods, requests
from presage.v1 import planning_pb2

if sys.version_info < (3, 10):
    pytest.skip("the service needs Python 3.10", allow_module_level=True)

from server.errors import Reason, ServiceError
from server.transport.grpc.codec import READER, encode_control_error
from server.transport.methods import METHODS
from server.values import calls


def test_a_plan_request_arrives_as_the_client_meant_it(image: np.ndarray) -> None:
    seen = presage.Observation((image,), [0.5, 2.0], capture_time_ns=5_000_000_007, sequence=9)
    call = requests.plan(
        seen,
        session_id="s",
        model="",
        goal="g",
        proprioception=None,
        budget_ms=12.5,
        executed=4,
        committed=3,
        follows=None,
        seed=0,
        settings=presage.PlannerSettings(samples=5),
    )
    request = READER.value(calls.PlanRequest, planning_pb2.PlanRequest.FromString(call.payload))
    assert request.observation.images[0].tolist() == image.tolist()
    assert request.observation.proprioception is not None
    assert request.observation.proprioception.tolist() == [0.5, 2.0]
    assert (request.observation.capture_time_ns, request.observation.sequence) == (5_000_000_007, 9)
    assert (request.session_id, request.goal_id, request.budget_ms) == ("s", "g", 12.5)
    assert (request.executed, request.committed) == (4, 3)
    assert (request.seed, request.planner) == (0, presage.PlannerSettings(samples=5))
    assert request.request_id == call.request_id


def test_every_call_of_the_service_is_one_of_the_clients() -> None:
    known = {value.path for value in vars(methods).values() if isinstance(value, methods.Method)}
    paths = {f"/presage.v1.{method.rpc.replace('.', '/')}" for method in METHODS}
    streamed = ("Embeddings/EmbedClip", "Embeddings/ClassifyClip", "Planning/Control")
    assert known == paths | {f"/presage.v1.{name}" for name in streamed}


def test_a_control_error_keeps_its_reason() -> None:
    told = encode_control_error(ServiceError(Reason.ENGINE_LOST, "gone"), 5).SerializeToString()
    error = methods.CONTROL.parse(told).error
    assert (error.reason, error.observation_sequence) == ("ENGINE_LOST", 5)
