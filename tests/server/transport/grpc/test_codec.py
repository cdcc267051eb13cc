"""Protobuf and JSON to the service's values and back: nothing is lost, nothing forged gets in, both doors agree."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from presage.v1 import embeddings_pb2, models_pb2, observation_pb2, planning_pb2, sessions_pb2, tensor_pb2

from server.config import Limits
from server.errors import Reason, ServiceError
from server.transport.grpc import codec
from server.transport.rest import replies, schemas, tensors
from server.values import calls
from server.values.tensors import DTYPES, array

F32 = tensor_pb2.ELEMENT_TYPE_FLOAT32

PLAN = calls.PlanReply(
    actions=np.arange(6, dtype=np.float32).reshape(3, 2),
    step_costs=(1.5, 0.25),
    cost=1.75,
    goal_distance=4.0,
    iteration_costs=(3.0, 1.75),
    elite_spread=(0.5, 0.1),
    iterations_done=2,
    stop_reason="budget",
    seed=2**53 - 1,
    degraded=True,
    warm_started=True,
    observation_sequence=12,
    capture_time_ns=1_700_000_000_123_456_789,
    epoch=3,
    timings=calls.Timings(1.0, 2.0, 3.0, 4.0, 10.0),
    provenance=calls.Provenance(
        "arm", "ab" * 32, "exact", "g1", calls.PlannerSettings(9, 8, 7, 6), "cpu", "float32", "0.1.0"
    ),
    warnings=("slow",),
)


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([DTYPES["float16"], DTYPES["float32"], DTYPES["float64"]]),
        arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
    )
)
def test_a_tensor_survives_both_wires(values: Any) -> None:
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    np.testing.assert_array_equal(codec.decode_tensor(codec.encode_tensor(values), "t"), expected)
    reply = tensors.encode_tensor(values, "base64")
    body = tensors.TensorBody.model_validate(reply.model_dump())
    np.testing.assert_array_equal(tensors.decode_tensor(body, "t"), expected)


def test_decoding_a_tensor_copies_nothing() -> None:
    content = np.ones(4, np.float32).tobytes()
    decoded = codec.decode_tensor(tensor_pb2.Tensor(dtype=F32, shape=[4], data=content), "t")
    assert not decoded.flags.owndata
    assert not decoded.flags.writeable


@pytest.mark.parametrize(
    ("shape", "size", "field"),
    [
        ([2, 3], 23, "t.data"),
        ([2, 3], 25, "t.data"),
        ([-1, 3], 12, "t.shape"),
        ([-1, -1], 4, "t.shape"),
        ([2**62, 2**62], 0, "t.shape"),
        ([2**32, 2**32], 0, "t.shape"),
        ([0, 2**62, 2**62], 0, "t.shape"),
        ([1] * 9, 4, "t.shape"),
        ([], 0, "t.data"),
    ],
)
def test_a_forged_tensor_is_refused_by_name(shape: list[int], size: int, field: str) -> None:
    with pytest.raises(ServiceError) as caught:
        codec.decode_tensor(tensor_pb2.Tensor(dtype=F32, shape=shape, data=b"\0" * size), "t")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_TENSOR, field)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=10),
    st.binary(max_size=64),
)
def test_no_claim_about_bytes_breaks_the_check(dtype: Any, shape: list[int], content: bytes) -> None:
    reason = None
    try:
        values = array(dtype, shape, content, "t")
    except ServiceError as error:
        reason = error.reason
    else:
        assert values.nbytes == len(content)
        assert list(values.shape) == shape
    assert reason in {None, Reason.INVALID_TENSOR}


@pytest.mark.parametrize("dtype", [tensor_pb2.ELEMENT_TYPE_UNSPECIFIED, tensor_pb2.ELEMENT_TYPE_INT32, 99])
def test_actions_that_are_no_floats_are_refused(dtype: Any) -> None:
    with pytest.raises(ServiceError) as caught:
        codec.decode_tensor(tensor_pb2.Tensor(dtype=dtype, shape=[1], data=b"\0" * 4), "actions")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_TENSOR, "actions.dtype")


def test_numbers_too_large_for_float32_pass_as_infinite_without_a_warning() -> None:
    """The application refuses them by name; the wire only counts bytes."""
    values = codec.decode_tensor(codec.encode_tensor(np.array([1e300, np.nan])), "t")
    assert np.isinf(values[0])
    assert np.isnan(values[1])
    assert np.isinf(tensors.decode_tensor([1e300], "t")[0])


@pytest.mark.parametrize(
    ("nested", "shape"),
    [([], (0,)), ([1, 2.5], (2,)), ([[1], [2]], (2, 1)), ([[], []], (2, 0)), ([[[1.0]]], (1, 1, 1))],
)
def test_nested_lists_are_tensors(nested: list[Any], shape: tuple[int, ...]) -> None:
    values = tensors.decode_tensor(nested, "t")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.array(nested, np.float32).reshape(shape))


DEEP: list[Any] = [1.0]
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "nested", [[1, [2]], [[1], 2], [[1, 2], [3]], ["1"], [True], [None], [{}], [[1], []], DEEP, [10**400]]
)
def test_lists_that_are_no_tensor_are_refused(nested: list[Any]) -> None:
    with pytest.raises(ServiceError) as caught:
        tensors.decode_tensor(nested, "actions")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_TENSOR, "actions")


@pytest.mark.parametrize("data", ["!!!!", "AAA", "AAAAAA==\n", "é"])
def test_what_is_not_base64_is_refused_rather_than_skipped_over(data: str) -> None:
    body = tensors.TensorBody(dtype="float32", shape=[1], data=data)
    with pytest.raises(ServiceError, match="base64") as caught:
        tensors.decode_tensor(body, "t")
    assert caught.value.field == "t.data"


@pytest.mark.parametrize("nanoseconds", [0, 1, -1, 1_700_000_000_123_456_789, -62_135_596_800 * 10**9])
def test_capture_times_are_echoed_to_the_nanosecond_on_both_wires(nanoseconds: int) -> None:
    stamp = codec.encode_time(nanoseconds)
    assert stamp is not None
    assert codec.decode_time(stamp, "capture_time") == nanoseconds
    body = schemas.ObservationBody(images=[], capture_time=stamp.ToJsonString())
    assert schemas.decode_observation(body, ()).capture_time_ns == nanoseconds


def test_a_time_that_cannot_be_is_refused() -> None:
    with pytest.raises(ServiceError, match="observation.capture_time"):
        codec.decode_observation(observation_pb2.Observation(capture_time=Timestamp(nanos=-1)), ())
    with pytest.raises(ServiceError, match="observation.capture_time"):
        schemas.decode_observation(schemas.ObservationBody(images=[], capture_time="noon"), ())


def test_an_unset_field_takes_the_servers_choice_on_both_wires() -> None:
    observation = calls.Observation(())
    by_proto = codec.decode_plan_request(planning_pb2.PlanRequest(), observation)
    by_json = schemas.PlanBody.model_validate({"observation": {"images": []}}).decoded(observation)
    assert by_proto == by_json == calls.PlanRequest(observation)


def test_every_field_of_a_plan_request_arrives_on_both_wires() -> None:
    observation = calls.Observation(())
    expected = calls.PlanRequest(
        observation,
        session_id="s",
        model="m",
        goal_id="g",
        planner=calls.PlannerSettings(5, 4, 3, 2),
        seed=0,
        budget_ms=12.5,
        executed=7,
        request_id="r",
    )
    planner = {"samples": 5, "iterations": 4, "elites": 3, "horizon": 2}
    fields: dict[str, Any] = {"session_id": "s", "model": "m", "goal_id": "g", "seed": 0, "budget_ms": 12.5}
    fields |= {"executed": 7, "request_id": "r"}
    by_proto = planning_pb2.PlanRequest(planner=models_pb2.PlannerSettings(**planner), **fields)
    by_json = schemas.PlanBody.model_validate({"observation": {"images": []}, "planner": planner, **fields})
    assert codec.decode_plan_request(by_proto, observation) == by_json.decoded(observation) == expected


def test_a_plan_says_the_same_on_both_wires() -> None:
    by_proto, by_json = codec.encode_plan(PLAN), replies.encode_plan(PLAN, "base64")
    assert set(type(by_json).model_fields) == {field.name for field in by_proto.DESCRIPTOR.fields}
    assert base64.b64decode(str(by_json.actions.data)) == by_proto.actions.data == PLAN.actions.tobytes()
    assert by_json.capture_time == by_proto.capture_time.ToJsonString() == "2023-11-14T22:13:20.123456789Z"
    assert planning_pb2.StopReason.Name(by_proto.stop_reason) == f"STOP_REASON_{by_json.stop_reason.upper()}"
    for name in ("cost", "goal_distance", "iterations_done", "seed", "degraded", "warm_started", "epoch"):
        assert getattr(by_proto, name) == getattr(by_json, name) == getattr(PLAN, name)
    for name in ("step_costs", "iteration_costs", "elite_spread", "warnings"):
        assert list(getattr(by_proto, name)) == list(getattr(by_json, name)) == list(getattr(PLAN, name))
    for name in ("queue_ms", "decode_ms", "encode_ms", "plan_ms", "total_ms"):
        assert getattr(by_proto.timings, name) == getattr(by_json.timings, name) == getattr(PLAN.timings, name)
    assert by_proto.provenance.planner.samples == by_json.provenance.planner.samples == 9
    assert replies.encode_plan(PLAN, "lists").actions.data == PLAN.actions.tolist()


def test_a_model_says_the_same_on_both_wires() -> None:
    model = calls.ModelReply(
        "arm", "compact", "ab", 64, 48, "exact", 1, (4, 8), ("q",), ("dq",), ("rad/s",), (-1.0,), (1.0,), 10.0, 5,
        calls.PlannerSettings(200, 8, 20, 4), "# card", execute=3, computes="float32 on cpu",
    )  # fmt: skip
    by_proto, by_json = codec.encode_model(model, Limits(), "1"), replies.encode_model(model, Limits(), "1")
    assert set(type(by_json).model_fields) == {field.name for field in by_proto.DESCRIPTOR.fields}
    assert by_json.limits.model_dump() == {
        field.name: getattr(by_proto.limits, field.name) for field in by_proto.limits.DESCRIPTOR.fields
    }
    assert by_json.action is not None
    assert list(by_proto.action.high) == by_json.action.high == [1.0]
    assert by_proto.execute == by_json.execute == 3
    assert by_proto.computes == by_json.computes == "float32 on cpu"
    embeds_only = calls.ModelReply(**{**vars(model), "action_names": ()})
    assert not codec.encode_model(embeds_only, Limits(), "1").HasField("action")
    assert replies.encode_model(embeds_only, Limits(), "1").action is None


def test_requests_have_the_same_fields_on_both_wires() -> None:
    pairs = [
        (planning_pb2.PlanRequest, schemas.PlanBody),
        (planning_pb2.RolloutRequest, schemas.RolloutBody),
        (planning_pb2.ScoreRequest, schemas.ScoreBody),
        (sessions_pb2.SessionsCreateRequest, schemas.SessionBody),
        (sessions_pb2.GoalStage, schemas.StageBody),
        (planning_pb2.DistanceRequest, schemas.DistanceBody),
        (planning_pb2.SurpriseRequest, schemas.SurpriseBody),
        (observation_pb2.Observation, schemas.ObservationBody),
        (observation_pb2.Image, schemas.ImageBody),
        (embeddings_pb2.EmbedImagesRequest, schemas.EmbedImagesBody),
    ]
    for message, body in pairs:
        assert {field.name for field in message.DESCRIPTOR.fields} == set(body.model_fields), body.__name__


@pytest.mark.parametrize(
    "image", [observation_pb2.Image(), observation_pb2.Image(raw=observation_pb2.RawImage(height=1))]
)
def test_an_image_without_pixels_or_format_is_refused(image: observation_pb2.Image) -> None:
    with pytest.raises(ServiceError) as caught:
        codec.image_sources([image], "observation.images")
    assert caught.value.reason is Reason.INVALID_IMAGE
    assert caught.value.field.startswith("observation.images[0]")


def test_an_unknown_kind_of_embedding_is_refused() -> None:
    assert codec.decode_kind(0, "pooled") == "pooled"
    with pytest.raises(ServiceError, match="kind"):
        codec.decode_kind(42, "pooled")
