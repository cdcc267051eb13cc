"""Protobuf and JSON to the service's values and back: nothing is lost, nothing forged gets in, and both agree."""

from __future__ import annotations

import base64
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from presage import ActionLimits, values
from presage.protocol.arrays import DTYPES, array
from presage.protocol.messages import names
from presage.protocol.schema import field_types
from presage.v1 import embeddings_pb2, models_pb2, observation_pb2, planning_pb2, tensor_pb2

from server.errors import Reason, ServiceError, refuse
from server.transport.grpc.codec import READER, WRITER
from server.transport.methods import METHODS, Method
from server.transport.rest import json_codec, tensors
from server.values import calls

F32 = tensor_pb2.ELEMENT_TYPE_FLOAT32

PLAN = values.Plan(
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
    timings=values.Timings(1.0, 2.0, 3.0, 4.0, 10.0),
    provenance=values.Provenance(
        "arm", "ab" * 32, "exact", "g1", values.PlannerSettings(9, 8, 7, 6), "cpu", "float32", "0.1.0"
    ),
    warnings=("slow",),
)


def checked(kind: Any, message: Any, body: dict[str, Any]) -> Any:
    """A value from JSON, as a route reads it."""
    return json_codec.value(kind, json_codec.body_model(kind, message.DESCRIPTOR).model_validate(body))


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
    np.testing.assert_array_equal(READER.tensor(WRITER.tensor(values, "t"), "t"), expected)
    body = tensors.TensorBody.model_validate(tensors.encode_tensor(values, "base64"))
    np.testing.assert_array_equal(tensors.decode_tensor(body, "t"), expected)


def test_decoding_a_tensor_copies_nothing() -> None:
    content = np.ones(4, np.float32).tobytes()
    decoded = READER.tensor(tensor_pb2.Tensor(dtype=F32, shape=[4], data=content), "t")
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
        READER.tensor(tensor_pb2.Tensor(dtype=F32, shape=shape, data=b"\0" * size), "t")
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
        read = array(dtype, shape, content, "t", refuse)
    except ServiceError as error:
        reason = error.reason
    else:
        assert read.nbytes == len(content)
        assert list(read.shape) == shape
    assert reason in {None, Reason.INVALID_TENSOR}


@pytest.mark.parametrize("dtype", [tensor_pb2.ELEMENT_TYPE_UNSPECIFIED, tensor_pb2.ELEMENT_TYPE_INT32, 99])
def test_actions_that_are_no_floats_are_refused(dtype: Any) -> None:
    with pytest.raises(ServiceError) as caught:
        READER.tensor(tensor_pb2.Tensor(dtype=dtype, shape=[1], data=b"\0" * 4), "actions")
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_TENSOR, "actions.dtype")


def test_numbers_too_large_for_float32_pass_as_infinite_without_a_warning() -> None:
    """The application refuses them by name; the wire only counts bytes."""
    read = READER.tensor(WRITER.tensor(np.array([1e300, np.nan]), "t"), "t")
    assert np.isinf(read[0])
    assert np.isnan(read[1])
    assert np.isinf(tensors.decode_tensor([1e300], "t")[0])


@pytest.mark.parametrize(
    ("nested", "shape"),
    [([], (0,)), ([1, 2.5], (2,)), ([[1], [2]], (2, 1)), ([[], []], (2, 0)), ([[[1.0]]], (1, 1, 1))],
)
def test_nested_lists_are_tensors(nested: list[Any], shape: tuple[int, ...]) -> None:
    read = tensors.decode_tensor(nested, "t")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.array(nested, np.float32).reshape(shape))


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
    seen = calls.Observation((), capture_time_ns=nanoseconds)
    message = WRITER.message(observation_pb2.Observation, seen)
    assert READER.value(calls.Observation, message) == seen
    body = {"images": [], "capture_time": message.capture_time.ToJsonString()}
    assert checked(calls.Observation, observation_pb2.Observation, body) == seen


def test_a_time_that_cannot_be_is_refused() -> None:
    message = planning_pb2.PlanRequest(observation=observation_pb2.Observation(capture_time=Timestamp(nanos=-1)))
    with pytest.raises(ServiceError, match="observation.capture_time must lie"):
        READER.value(calls.PlanRequest, message)
    with pytest.raises(ServiceError, match="observation.capture_time must be an RFC 3339 time"):
        checked(calls.PlanRequest, planning_pb2.PlanRequest, {"observation": {"images": [], "capture_time": "noon"}})


def test_an_unset_field_takes_the_services_choice_on_both_wires() -> None:
    observation = calls.Observation(())
    by_proto = READER.value(calls.PlanRequest, planning_pb2.PlanRequest(observation=observation_pb2.Observation()))
    by_json = checked(calls.PlanRequest, planning_pb2.PlanRequest, {"observation": {"images": []}})
    assert by_proto == by_json == calls.PlanRequest(observation)


def test_zero_is_a_number_and_not_unset_on_both_wires() -> None:
    wanted = values.PlannerSettings(samples=0, discount=0.0)
    message = models_pb2.PlannerSettings(samples=0, discount=0.0)
    assert READER.value(values.PlannerSettings, message) == wanted
    body = {"samples": 0, "discount": 0}
    assert checked(values.PlannerSettings, models_pb2.PlannerSettings, body) == wanted


def test_every_field_of_a_plan_request_arrives_on_both_wires() -> None:
    planner = values.PlannerSettings(5, 4, 3, 2, "icem", ("x",), 1.5)
    sent = calls.PlanRequest(
        calls.Observation(()), "s", "m", "g", planner, seed=0, budget_ms=12.5, executed=7, committed=2,
        request_id="r", plan_sequence=9, limits=ActionLimits((-1.0,), (1.0,), (0.5,), 2.0, 1, ("x",), ("y",), (3,)),
        previous_action=(0.25,),
    )  # fmt: skip
    message = WRITER.message(planning_pb2.PlanRequest, sent)
    assert READER.value(calls.PlanRequest, message) == sent
    assert all(asdict(sent.limits or ActionLimits()).values()), "a limit is not tried here"
    body = json_codec.plain(sent, planning_pb2.PlanRequest.DESCRIPTOR, "base64")
    assert checked(calls.PlanRequest, planning_pb2.PlanRequest, body) == sent
    default = calls.PlanRequest(calls.Observation(()))
    unset = [each.name for each in fields(sent) if getattr(sent, each.name) == getattr(default, each.name)]
    assert unset == ["observation"], "a field is not tried here"


def test_a_plan_says_the_same_on_both_wires() -> None:
    by_proto = WRITER.message(planning_pb2.Plan, PLAN)
    by_json = json_codec.plain(PLAN, planning_pb2.Plan.DESCRIPTOR, "base64")
    assert set(by_json) == {field.name for field in by_proto.DESCRIPTOR.fields}
    assert base64.b64decode(by_json["actions"]["data"]) == by_proto.actions.data == PLAN.actions.tobytes()
    assert by_json["capture_time"] == by_proto.capture_time.ToJsonString() == "2023-11-14T22:13:20.123456789Z"
    assert planning_pb2.StopReason.Name(by_proto.stop_reason) == f"STOP_REASON_{by_json['stop_reason'].upper()}"
    for name in ("cost", "goal_distance", "iterations_done", "seed", "degraded", "warm_started", "epoch"):
        assert getattr(by_proto, name) == by_json[name] == getattr(PLAN, name)
    for name in ("step_costs", "iteration_costs", "elite_spread", "warnings"):
        assert list(getattr(by_proto, name)) == list(by_json[name]) == list(getattr(PLAN, name))
    for name in ("queue_ms", "decode_ms", "encode_ms", "plan_ms", "total_ms"):
        assert getattr(by_proto.timings, name) == by_json["timings"][name] == getattr(PLAN.timings, name)
    assert by_proto.provenance.planner.samples == by_json["provenance"]["planner"]["samples"] == 9
    listed = json_codec.plain(PLAN, planning_pb2.Plan.DESCRIPTOR, "lists")
    assert listed["actions"]["data"] == PLAN.actions.tolist()


def test_a_model_says_the_same_on_both_wires() -> None:
    action = values.ActionSpec(("dq",), ("rad/s",), (-1.0,), (1.0,), 10.0, 5)
    model = values.Model(
        "arm", "compact", "ab", values.ImageSpec(64, 48, "exact", 1), action, (4, 8), ("q",),
        values.PlannerSettings(200, 8, 20, 4), values.Limits(1, 2, 3, 4, 5, 6), "# card", "1", execute=3,
        computes="float32 on cpu",
    )  # fmt: skip
    by_proto = WRITER.message(models_pb2.Model, model)
    by_json = json_codec.plain(model, models_pb2.Model.DESCRIPTOR, "base64")
    assert READER.value(values.Model, by_proto) == model
    assert set(by_json) == {field.name for field in by_proto.DESCRIPTOR.fields}
    assert by_json["limits"] == {field.name: getattr(by_proto.limits, field.name) for field in fields(values.Limits)}
    assert list(by_proto.action.high) == list(by_json["action"]["high"]) == [1.0]
    assert by_proto.execute == by_json["execute"] == 3
    assert by_proto.computes == by_json["computes"] == "float32 on cpu"
    embeds_only = values.Model("m", "vjepa2", "ab", values.ImageSpec(64, 48, "exact", 1), None, (4, 8))
    assert not WRITER.message(models_pb2.Model, embeds_only).HasField("action")
    assert json_codec.plain(embeds_only, models_pb2.Model.DESCRIPTOR, "base64")["action"] is None


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.rpc)
def test_values_and_messages_have_the_same_fields(method: Method) -> None:
    """A field that one of them lacks would be lost without a word."""
    for kind, message in ((method.request, method.described.input_type), (method.reply, method.reply_message)):
        if kind is not None:
            assert unmatched(kind, message) <= {"Embedding.kind"}


def unmatched(kind: Any, message: Any) -> set[str]:
    """Fields that only a dataclass or only its message has, also further in."""
    wires = {field.wire: field for field in field_types(kind)}
    found = {f"{kind.__name__}.{name}" for name in wires.keys() ^ message.fields_by_name.keys()}
    for name in wires.keys() & message.fields_by_name.keys():
        inner = message.fields_by_name[name].message_type
        if inner is not None and inner.full_name not in (json_codec._TIME, json_codec._TENSOR, json_codec._IMAGE):
            found |= unmatched(wires[name].kind, inner)
    return found


@pytest.mark.parametrize(
    "image", [observation_pb2.Image(), observation_pb2.Image(raw=observation_pb2.RawImage(height=1))]
)
def test_an_image_without_pixels_or_format_is_refused(image: observation_pb2.Image) -> None:
    message = planning_pb2.PlanRequest(observation=observation_pb2.Observation(images=[image]))
    with pytest.raises(ServiceError) as caught:
        READER.value(calls.PlanRequest, message)
    assert caught.value.reason is Reason.INVALID_IMAGE
    assert caught.value.field.startswith("observation.images[0]")


def test_what_must_be_set_is_asked_for_by_name() -> None:
    with pytest.raises(ServiceError, match="^observation must be set, got nothing"):
        READER.value(calls.PlanRequest, planning_pb2.PlanRequest())


@pytest.mark.parametrize("name", sorted(names(embeddings_pb2.EmbeddingKind.DESCRIPTOR)))
def test_a_kind_of_embedding_has_one_name_on_both_wires(name: Any) -> None:
    sent = calls.EmbedImagesRequest((), kind=name)
    assert READER.value(calls.EmbedImagesRequest, WRITER.message(embeddings_pb2.EmbedImagesRequest, sent)) == sent
    kind, message = calls.EmbedImagesRequest, embeddings_pb2.EmbedImagesRequest.DESCRIPTOR
    schema = json_codec.body_model(kind, message).model_json_schema()
    assert name in schema["properties"]["kind"]["enum"]


def test_an_unknown_kind_of_embedding_is_refused() -> None:
    assert READER.value(calls.EmbedImagesRequest, embeddings_pb2.EmbedImagesRequest()).kind == "per_frame"
    with pytest.raises(ServiceError, match="^kind must be one of pooled, per_frame, tokens, got 42"):
        READER.value(calls.EmbedImagesRequest, embeddings_pb2.EmbedImagesRequest(kind=42))  # type: ignore[arg-type]
