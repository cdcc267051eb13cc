"""Protobuf messages to values and back. Encodings are checked here, meanings by the application.

The REST counterpart is rest_schemas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, observation_pb2, planning_pb2, sessions_pb2, tensor_pb2

from server.config import Limits
from server.errors import Reason, ServiceError, invalid
from server.values import calls
from server.values.calls import Array
from server.values.images import EncodedImage, ImageSource, PixelFormat, RawImage
from server.values.tensors import DTYPES, ElementType, array, floats

_ELEMENT_TYPES: dict[tensor_pb2.ElementType.ValueType, ElementType] = {
    tensor_pb2.ELEMENT_TYPE_UINT8: "uint8",
    tensor_pb2.ELEMENT_TYPE_INT32: "int32",
    tensor_pb2.ELEMENT_TYPE_INT64: "int64",
    tensor_pb2.ELEMENT_TYPE_FLOAT16: "float16",
    tensor_pb2.ELEMENT_TYPE_FLOAT32: "float32",
    tensor_pb2.ELEMENT_TYPE_FLOAT64: "float64",
}
_ELEMENT_NUMBERS: dict[np.dtype[np.generic], tensor_pb2.ElementType.ValueType] = {
    DTYPES[name]: number for number, name in _ELEMENT_TYPES.items()
}
_PIXEL_FORMATS: dict[int, PixelFormat] = {
    observation_pb2.PIXEL_FORMAT_RGB8: "rgb8",
    observation_pb2.PIXEL_FORMAT_BGR8: "bgr8",
    observation_pb2.PIXEL_FORMAT_MONO8: "mono8",
}
_KINDS: dict[int, calls.EmbeddingKind] = {
    embeddings_pb2.EMBEDDING_KIND_POOLED: "pooled",
    embeddings_pb2.EMBEDDING_KIND_PER_FRAME: "per_frame",
    embeddings_pb2.EMBEDDING_KIND_TOKENS: "tokens",
}
_STOP_REASONS = {
    "converged": planning_pb2.STOP_REASON_CONVERGED,
    "budget": planning_pb2.STOP_REASON_BUDGET,
    "deadline": planning_pb2.STOP_REASON_DEADLINE,
    "iterations": planning_pb2.STOP_REASON_ITERATIONS,
}


# Tensors


def decode_tensor(tensor: tensor_pb2.Tensor, field: str) -> NDArray[np.float32]:
    dtype = _ELEMENT_TYPES.get(tensor.dtype)
    if dtype is None:
        raise invalid(f"{field}.dtype", f"must be one of {', '.join(DTYPES)}", tensor.dtype, Reason.INVALID_TENSOR)
    return floats(array(dtype, tensor.shape, tensor.data, field), field)


def encode_tensor(values: Array) -> tensor_pb2.Tensor:
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return tensor_pb2.Tensor(dtype=_ELEMENT_NUMBERS[values.dtype], shape=values.shape, data=values.tobytes())


# Instants on the robot's clock


def decode_time(message: Timestamp, field: str) -> int:
    """Nanoseconds since the epoch."""
    if not (-62_135_596_800 <= message.seconds <= 253_402_300_799 and 0 <= message.nanos < 1_000_000_000):
        raise invalid(field, "must lie in the years 1 to 9999", f"{message.seconds} s + {message.nanos} ns")
    return message.seconds * 1_000_000_000 + message.nanos


def encode_time(nanoseconds: int | None) -> Timestamp | None:
    if nanoseconds is None:
        return None
    return Timestamp(seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000)


# Requests


def image_source(image: observation_pb2.Image, field: str) -> ImageSource:
    source = image.WhichOneof("source")
    if source == "encoded":
        return EncodedImage(image.encoded)
    if source is None:
        raise invalid(field, "must have encoded or raw set", "neither", Reason.INVALID_IMAGE)
    raw = image.raw
    pixel_format = _PIXEL_FORMATS.get(raw.format)
    if pixel_format is None:
        rule = "must be PIXEL_FORMAT_RGB8, PIXEL_FORMAT_BGR8 or PIXEL_FORMAT_MONO8"
        raise invalid(f"{field}.raw.format", rule, raw.format, Reason.INVALID_IMAGE)
    return RawImage(raw.height, raw.width, pixel_format, raw.data)


def image_sources(images: Sequence[observation_pb2.Image], field: str) -> list[tuple[str, ImageSource]]:
    """Each image with the name of its field."""
    return [(name := f"{field}[{index}]", image_source(image, name)) for index, image in enumerate(images)]


def observation_sources(message: observation_pb2.Observation, field: str) -> list[tuple[str, ImageSource]]:
    """Its images, and behind them those of the past."""
    return [
        *image_sources(message.images, f"{field}.images"),
        *image_sources(message.past_images, f"{field}.past_images"),
    ]


def decode_observation(
    message: observation_pb2.Observation, frames: tuple[calls.Frame, ...], field: str = "observation"
) -> calls.Observation:
    """`frames` are what `observation_sources` gave, decoded."""
    proprioception, captured, executed = None, None, None
    if message.HasField("proprioception"):
        proprioception = decode_tensor(message.proprioception, f"{field}.proprioception")
    if message.HasField("capture_time"):
        captured = decode_time(message.capture_time, f"{field}.capture_time")
    if message.HasField("past_actions"):
        executed = decode_tensor(message.past_actions, f"{field}.past_actions")
    count = len(message.images)
    return calls.Observation(frames[:count], proprioception, captured, message.sequence, frames[count:], executed)


def decode_planner(message: models_pb2.PlannerSettings) -> calls.PlannerSettings:
    return calls.PlannerSettings(
        samples=message.samples if message.HasField("samples") else None,
        iterations=message.iterations if message.HasField("iterations") else None,
        elites=message.elites if message.HasField("elites") else None,
        horizon=message.horizon if message.HasField("horizon") else None,
        optimizer=message.optimizer if message.HasField("optimizer") else None,
        dimensions=tuple(message.dimensions),
        discount=message.discount if message.HasField("discount") else None,
        metric=message.metric if message.HasField("metric") else None,
        narrowing=message.narrowing if message.HasField("narrowing") else None,
        sample_decay=message.sample_decay if message.HasField("sample_decay") else None,
    )


def decode_plan_request(message: planning_pb2.PlanRequest, observation: calls.Observation) -> calls.PlanRequest:
    return calls.PlanRequest(
        observation,
        session_id=message.session_id,
        model=message.model,
        goal_id=message.goal_id,
        planner=decode_planner(message.planner),
        seed=message.seed if message.HasField("seed") else None,
        budget_ms=message.budget_ms if message.HasField("budget_ms") else None,
        executed=message.executed,
        request_id=message.request_id,
        plan_sequence=message.plan_sequence,
    )


def decode_session_request(message: sessions_pb2.SessionsCreateRequest) -> calls.SessionRequest:
    return calls.SessionRequest(
        model=message.model,
        goal_id=message.goal_id,
        ttl_s=message.ttl_s,
        seed=message.seed if message.HasField("seed") else None,
        stages=tuple(calls.GoalStage(stage.goal_id, stage.switch_below, stage.max_actions) for stage in message.stages),
    )


def decode_landscape_request(
    message: planning_pb2.LandscapeRequest, observation: calls.Observation
) -> calls.LandscapeRequest:
    return calls.LandscapeRequest(
        observation,
        session_id=message.session_id,
        model=message.model,
        goal_id=message.goal_id,
        dimensions=tuple(message.dimensions),
        points=message.points or 5,
        extent=message.extent if message.HasField("extent") else 1.0,
        plot=message.plot,
    )


def decode_kind(number: int, default: calls.EmbeddingKind) -> calls.EmbeddingKind:
    if number == embeddings_pb2.EMBEDDING_KIND_UNSPECIFIED:
        return default
    kind = _KINDS.get(number)
    if kind is None:
        raise invalid("kind", "must be an EmbeddingKind", number)
    return kind


def decode_sampling(message: embeddings_pb2.FrameSampling) -> calls.FrameSampling:
    rule = message.WhichOneof("rule")
    return calls.FrameSampling(
        fps=message.fps if rule == "fps" else None, frames=message.frames if rule == "frames" else None
    )


def require(present: bool, field: str) -> None:
    """Refuse a message that lacks a field it cannot do without."""
    if not present:
        raise invalid(field, "must be set", "nothing")


# Replies


def encode_planner(settings: calls.PlannerSettings) -> models_pb2.PlannerSettings:
    return models_pb2.PlannerSettings(
        samples=settings.samples,
        iterations=settings.iterations,
        elites=settings.elites,
        horizon=settings.horizon,
        optimizer=settings.optimizer,
        dimensions=settings.dimensions,
        discount=settings.discount,
        metric=settings.metric,
        narrowing=settings.narrowing,
        sample_decay=settings.sample_decay,
    )


def encode_model(model: calls.ModelReply, limits: Limits, server_version: str) -> models_pb2.Model:
    action = models_pb2.ActionSpec(
        names=model.action_names,
        units=model.action_units,
        low=model.action_low,
        high=model.action_high,
        rate_hz=model.rate_hz,
        block=model.block,
    )
    return models_pb2.Model(
        name=model.name,
        family=model.family,
        weights_digest=model.weights_digest,
        image=models_pb2.ImageSpec(
            height=model.image_height,
            width=model.image_width,
            crop_policy=model.crop_policy,
            cameras=model.cameras,
        ),
        action=action if model.action_names else None,
        latent_shape=model.latent_shape,
        proprioception_names=model.proprioception_names,
        planner=encode_planner(model.planner),
        limits=models_pb2.Limits(
            message_bytes=limits.message_bytes,
            image_pixels=limits.image_pixels,
            clip_bytes=limits.clip_bytes,
            clip_frames=limits.clip_frames,
            sessions=limits.sessions,
            rollout_steps=limits.rollout_steps,
        ),
        card=model.card,
        server_version=server_version,
        execute=model.execute,
        computes=model.computes,
        license=model.license,
        labels=model.labels,
        clip_frames=model.clip_frames,
        measures_goals=model.measures_goals,
    )


def encode_goal(goal: calls.GoalReply) -> goals_pb2.Goal:
    return goals_pb2.Goal(
        goal_id=goal.goal_id, model=goal.model, cached=goal.cached, create_time=encode_time(goal.create_time_ns)
    )


def encode_session(session: calls.SessionReply) -> sessions_pb2.Session:
    return sessions_pb2.Session(
        session_id=session.session_id,
        model=session.model,
        goal_id=session.goal_id,
        epoch=session.epoch,
        plans=session.plans,
        last_sequence=session.last_sequence,
        ttl_s=session.ttl_s,
        create_time=encode_time(session.create_time_ns),
        stage=session.stage,
        calibration=None if session.calibration is None else sessions_pb2.Calibration(**asdict(session.calibration)),
    )


def encode_plan(plan: calls.PlanReply) -> planning_pb2.Plan:
    timings, provenance = plan.timings, plan.provenance
    return planning_pb2.Plan(
        actions=encode_tensor(plan.actions),
        step_costs=plan.step_costs,
        cost=plan.cost,
        goal_distance=plan.goal_distance,
        iteration_costs=plan.iteration_costs,
        elite_spread=plan.elite_spread,
        iterations_done=plan.iterations_done,
        stop_reason=_STOP_REASONS[plan.stop_reason],
        seed=plan.seed,
        degraded=plan.degraded,
        warm_started=plan.warm_started,
        observation_sequence=plan.observation_sequence,
        capture_time=encode_time(plan.capture_time_ns),
        epoch=plan.epoch,
        timings=planning_pb2.Timings(
            queue_ms=timings.queue_ms,
            decode_ms=timings.decode_ms,
            encode_ms=timings.encode_ms,
            plan_ms=timings.plan_ms,
            total_ms=timings.total_ms,
        ),
        provenance=planning_pb2.Provenance(
            model=provenance.model,
            weights_digest=provenance.weights_digest,
            crop_policy=provenance.crop_policy,
            goal_id=provenance.goal_id,
            planner=encode_planner(provenance.planner),
            device=provenance.device,
            dtype=provenance.dtype,
            server_version=provenance.server_version,
        ),
        warnings=plan.warnings,
    )


def encode_images_embedding(reply: calls.EmbedReply) -> embeddings_pb2.EmbedImagesResponse:
    return embeddings_pb2.EmbedImagesResponse(
        embedding=encode_tensor(reply.embedding), goal_distances=reply.goal_distances, model=reply.model
    )


def encode_classes(reply: calls.ClassifyReply) -> embeddings_pb2.ClassifyClipResponse:
    return embeddings_pb2.ClassifyClipResponse(
        classes=[
            embeddings_pb2.ClassScore(index=each.index, label=each.label, probability=each.probability)
            for each in reply.classes
        ],
        frame_times_s=reply.frame_times_s,
        model=reply.model,
    )


def encode_clip_embedding(reply: calls.EmbedReply) -> embeddings_pb2.EmbedClipResponse:
    return embeddings_pb2.EmbedClipResponse(
        embedding=encode_tensor(reply.embedding),
        frame_times_s=reply.frame_times_s,
        goal_distances=reply.goal_distances,
        step_distances=reply.step_distances,
        model=reply.model,
    )


def encode_rollout(reply: calls.RolloutReply) -> planning_pb2.RolloutResponse:
    return planning_pb2.RolloutResponse(latents=encode_tensor(reply.latents), goal_distances=reply.goal_distances)


def encode_score(reply: calls.ScoreReply) -> planning_pb2.ScoreResponse:
    return planning_pb2.ScoreResponse(costs=reply.costs.tolist(), step_costs=encode_tensor(reply.step_costs))


def encode_surprise(reply: calls.SurpriseReply) -> planning_pb2.SurpriseResponse:
    return planning_pb2.SurpriseResponse(errors=reply.errors, scores=reply.scores, steps_known=reply.steps_known)


def encode_landscape(reply: calls.LandscapeReply) -> planning_pb2.LandscapeResponse:
    return planning_pb2.LandscapeResponse(
        dimensions=reply.dimensions,
        values=encode_tensor(reply.values),
        costs=encode_tensor(reply.costs),
        best_action=encode_tensor(reply.best_action),
        best_cost=reply.best_cost,
        rest_cost=reply.rest_cost,
        plot=reply.plot,
    )


def encode_control_error(error: ServiceError, sequence: int) -> planning_pb2.ControlResponse:
    refusal = planning_pb2.ControlError(reason=error.reason.name, message=error.message, observation_sequence=sequence)
    return planning_pb2.ControlResponse(error=refusal)
