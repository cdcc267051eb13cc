"""The client's codec and the server's: what one writes, the other reads, field by field."""

from __future__ import annotations

import sys
from dataclasses import fields

import numpy as np
import presage
import pytest
from presage.protocol import codec, methods, requests
from presage.v1 import planning_pb2

if sys.version_info < (3, 10):
    pytest.skip("the service needs Python 3.10", allow_module_level=True)

from server.config import Limits
from server.errors import Reason
from server.transport.grpc import codec as server_codec
from server.values import calls


def test_a_plan_arrives_as_the_server_meant_it() -> None:
    planner = calls.PlannerSettings(300, 30, 30, 5)
    sent = calls.PlanReply(
        actions=np.array([[0.5, -0.25], [1.0, 0.0]], np.float32),
        step_costs=(1.5, 0.5),
        cost=2.0,
        goal_distance=3.0,
        iteration_costs=(4.0, 2.0),
        elite_spread=(0.5, 0.1),
        iterations_done=2,
        stop_reason="deadline",
        seed=2**64 - 1,
        degraded=True,
        warm_started=True,
        observation_sequence=7,
        capture_time_ns=1_700_000_000_000_000_001,
        epoch=3,
        timings=calls.Timings(1.0, 2.0, 3.0, 4.0, 10.0),
        provenance=calls.Provenance("arm", "ab", "exact", "g", planner, "cpu", "float32", "0.1.0"),
        warnings=("far",),
    )
    plan = codec.plan_value(server_codec.encode_plan(sent))
    assert plan.actions.tolist() == sent.actions.tolist()
    assert plan.timings == presage.Timings(1.0, 2.0, 3.0, 4.0, 10.0)
    assert plan.provenance.planner == presage.PlannerSettings(300, 30, 30, 5)
    compound = {"actions", "timings", "provenance"}
    assert {field.name for field in fields(plan)} == {field.name for field in fields(sent)}
    for field in fields(sent):
        if field.name not in compound:
            assert getattr(plan, field.name) == getattr(sent, field.name), field.name
    for field in fields(sent.provenance):
        if field.name != "planner":
            assert getattr(plan.provenance, field.name) == getattr(sent.provenance, field.name)


@pytest.mark.parametrize("stop", ["converged", "budget", "deadline", "iterations"])
def test_stop_reasons_have_one_name(stop: str) -> None:
    number = server_codec._STOP_REASONS[stop]
    assert codec.STOP_REASONS[number] == stop


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
        follows=None,
        seed=0,
        settings=presage.PlannerSettings(samples=5),
    )
    message = planning_pb2.PlanRequest.FromString(call.payload)
    (source,) = server_codec.image_sources(message.observation.images, "observation.images")
    assert np.frombuffer(source[1].content, np.uint8).tolist() == image.ravel().tolist()
    request = server_codec.decode_plan_request(message, server_codec.decode_observation(message.observation, ()))
    assert request.observation.proprioception is not None
    assert request.observation.proprioception.tolist() == [0.5, 2.0]
    assert (request.observation.capture_time_ns, request.observation.sequence) == (5_000_000_007, 9)
    assert (request.session_id, request.goal_id, request.budget_ms, request.executed) == ("s", "g", 12.5, 4)
    assert (request.seed, request.planner) == (0, calls.PlannerSettings(samples=5))
    assert request.request_id == call.request_id


def test_kinds_have_one_name() -> None:
    for name, number in codec.KINDS.items():
        assert server_codec.decode_kind(number, "pooled") == name


def test_a_model_arrives_as_the_server_meant_it() -> None:
    sent = calls.ModelReply(
        name="arm",
        family="compact",
        weights_digest="ab",
        image_height=64,
        image_width=48,
        crop_policy="exact",
        cameras=2,
        latent_shape=(128,),
        proprioception_names=("q",),
        action_names=("v",),
        action_units=("rad/s",),
        action_low=(-1.0,),
        action_high=(1.0,),
        rate_hz=10.0,
        block=5,
        planner=calls.PlannerSettings(1, 2, 3, 4),
        card="# arm",
        execute=5,
        computes="bfloat16 on cuda:0; no graphs: they are off",
    )
    model = codec.model_value(server_codec.encode_model(sent, Limits(), "0.1.0"))
    assert (model.name, model.image, model.card) == ("arm", presage.ImageSpec(64, 48, "exact", 2), "# arm")
    assert model.action == presage.ActionSpec(("v",), ("rad/s",), (-1.0,), (1.0,), 10.0, 5)
    assert model.execute == 5
    assert model.computes == "bfloat16 on cuda:0; no graphs: they are off"
    assert model.limits.clip_bytes == Limits().clip_bytes


def test_a_control_error_keeps_its_reason() -> None:
    from server.errors import ServiceError

    told = server_codec.encode_control_error(ServiceError(Reason.ENGINE_LOST, "gone"), 5).SerializeToString()
    error = methods.CONTROL.parse(told).error
    assert (error.reason, error.observation_sequence) == ("ENGINE_LOST", 5)
