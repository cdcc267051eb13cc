"""Values to bytes and back, against the contract's words and, both ways, against nothing of our own making."""

from __future__ import annotations

from typing import Any

import numpy as np
import presage
import pytest
from presage.protocol import codec, requests
from presage.v1 import models_pb2, planning_pb2, tensor_pb2


def test_floats_are_little_endian_in_c_order() -> None:
    columns_first = np.asfortranarray([[1.0, 2.0], [3.0, 4.0]])
    message = codec.float_tensor("actions", columns_first, ("time", "action"))
    assert message.data.hex() == "0000803f000000400000404000008040"
    assert (list(message.shape), message.dtype) == ([2, 2], tensor_pb2.ELEMENT_TYPE_FLOAT32)


@pytest.mark.parametrize("actions", [1.0, [1.0], [[[1.0]]], "left", [["a"]], [[1.0], [1.0, 2.0]]])
def test_actions_of_another_shape_are_refused_by_name(actions: Any) -> None:
    with pytest.raises(presage.InvalidRequest, match=r"actions must .*\[time, action\]") as caught:
        codec.float_tensor("actions", actions, ("time", "action"))
    assert caught.value.reason == "INVALID_TENSOR"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_latents_come_back_as_float32(dtype: str) -> None:
    numbers = np.arange(6, dtype=dtype).reshape(2, 3)
    kind = {"<f2": 4, "<f4": 5, "<f8": 6}[dtype]
    array = codec.READER.tensor(tensor_pb2.Tensor(dtype=kind, shape=[2, 3], data=numbers.tobytes()), "latents")
    assert array.dtype == np.float32
    assert array.tolist() == numbers.tolist()
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "message",
    [
        tensor_pb2.Tensor(dtype=5, shape=[2], data=bytes(7)),
        tensor_pb2.Tensor(dtype=5, shape=[-1, -2], data=bytes(8)),
        tensor_pb2.Tensor(dtype=5, shape=[1 << 62, 4], data=bytes(0)),
        tensor_pb2.Tensor(dtype=0, shape=[1], data=bytes(4)),
        tensor_pb2.Tensor(dtype=99, shape=[1], data=bytes(4)),
    ],
)
def test_a_forged_tensor_is_a_server_error(message: tensor_pb2.Tensor) -> None:
    with pytest.raises(presage.ServerError, match="the server sent"):
        codec.READER.tensor(message, "latents")


def test_no_robot_gets_a_plan_that_is_not_numbers() -> None:
    for actions in (np.array([[np.nan, 0.0]]), np.array([[np.inf, 0.0]])):
        message = planning_pb2.Plan(actions=codec.float_tensor("actions", actions, ("time", "action")))
        with pytest.raises(presage.ServerError, match="finite"):
            codec.plan_value(message)
    flat = planning_pb2.Plan(actions=codec.float_tensor("actions", [1.0], ("action",)))
    with pytest.raises(presage.ServerError, match=r"\[time, action\]"):
        codec.plan_value(flat)


def test_an_array_goes_raw_in_rgb(image: np.ndarray) -> None:
    flipped = image[:, ::-1]  # not contiguous
    raw = codec.image_message(flipped).raw
    assert (raw.height, raw.width, raw.format) == (8, 8, 1)
    assert np.frombuffer(raw.data, np.uint8).reshape(8, 8, 3).tolist() == flipped.tolist()


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), b"", "a.jpg", None]
)
def test_what_is_not_an_image_is_refused_with_its_place(wrong: Any) -> None:
    with pytest.raises(presage.InvalidRequest) as caught:
        requests.embed_images([np.zeros((4, 4, 3), np.uint8), wrong], "per_frame", None, "")
    assert (caught.value.reason, caught.value.field) == ("INVALID_IMAGE", "images[1]")


def test_several_cameras_keep_their_order(image: np.ndarray) -> None:
    seen = codec.as_observation([image, b"left"], [1.0])
    message = codec.observation_message(seen)
    assert [each.WhichOneof("source") for each in message.images] == ["raw", "encoded"]
    assert list(message.proprioception.shape) == [1]
    assert not message.HasField("capture_time")


def test_an_observation_checks_itself(image: np.ndarray) -> None:
    for wrong in ({"images": image}, {"images": b"jpeg"}, {"sequence": -1}, {"capture_time_ns": -1}):
        with pytest.raises(presage.InvalidRequest, match=r"observation\."):
            presage.Observation(**{"images": (image,), **wrong})  # type: ignore[arg-type]
    with pytest.raises(presage.InvalidRequest, match="part of the observation"):
        codec.as_observation(presage.Observation((image,)), [1.0])


def test_settings_and_numbers_check_themselves(image: np.ndarray) -> None:
    for name in ("samples", "iterations", "elites", "horizon"):
        for wrong in (-1, 1 << 32):
            with pytest.raises(presage.InvalidRequest, match=f"settings.{name} must be at least 0") as caught:
                codec.planner_message(presage.PlannerSettings(**{name: wrong}))
            assert caught.value.field == f"settings.{name}"
    named: dict[str, Any] = {"session_id": "", "model": "", "goal": "g", "proprioception": None, "settings": None}
    named.update(budget_ms=None, executed=0, committed=0, follows=None, seed=None)
    for wrong in ({"budget_ms": 0.0}, {"budget_ms": float("nan")}, {"executed": -1}, {"seed": -1}, {"seed": 1 << 64}):
        (name,) = wrong
        with pytest.raises(presage.InvalidRequest, match=f"{name} must be") as caught:
            requests.plan(image, **{**named, **wrong})
        assert caught.value.field == name


def test_a_setting_of_zero_is_sent_and_not_taken_for_unset() -> None:
    """0 samples are the server's to refuse, by name; the model's own number would be an answer nobody asked for."""
    message = codec.planner_message(presage.PlannerSettings(samples=0))
    assert (message.HasField("samples"), message.HasField("elites")) == (True, False)
    assert codec.READER.value(presage.PlannerSettings, message) == presage.PlannerSettings(samples=0)


def test_a_name_newer_than_this_client_is_unknown() -> None:
    newer = planning_pb2.Plan(actions=codec.float_tensor("actions", [[1.0]], ("time", "action")), stop_reason=77)  # type: ignore[arg-type]
    assert codec.plan_value(newer).stop_reason == "unknown"


def test_a_model_without_actions_only_embeds() -> None:
    model = codec.READER.value(presage.Model, models_pb2.Model(name="m", latent_shape=[256, 8]))
    assert model.action is None
    assert model.planner == presage.PlannerSettings()


def test_health_reads_what_it_can() -> None:
    assert codec.health_value(b"") == presage.Health("unknown")
    assert codec.health_value(b"\x08\x03") == presage.Health("unknown")
    with pytest.raises(presage.ServerError, match="nonsense"):
        codec.health_value(b"\x08")


def test_a_reply_that_is_not_protobuf_is_a_server_error() -> None:
    with pytest.raises(presage.ServerError, match="cannot be read"):
        requests.list_models().read(b"\xff\xff")
