"""Values to messages and back. What a caller got wrong is said here, before anything is sent.

Which call carries which message is requests.py's; nothing here knows gRPC.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Sequence

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from presage import values
from presage.errors import ServerError, invalid
from presage.protocol.wire import fields
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, observation_pb2, planning_pb2, sessions_pb2, tensor_pb2

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from presage.values import Array, Floats

DTYPES: dict[int, np.dtype[np.generic]] = {
    tensor_pb2.ELEMENT_TYPE_UINT8: np.dtype("<u1"),
    tensor_pb2.ELEMENT_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.ELEMENT_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.ELEMENT_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.ELEMENT_TYPE_FLOAT64: np.dtype("<f8"),
}
KINDS = {
    "pooled": embeddings_pb2.EMBEDDING_KIND_POOLED,
    "per_frame": embeddings_pb2.EMBEDDING_KIND_PER_FRAME,
    "tokens": embeddings_pb2.EMBEDDING_KIND_TOKENS,
}
STOP_REASONS: dict[int, str] = {
    planning_pb2.STOP_REASON_CONVERGED: "converged",
    planning_pb2.STOP_REASON_BUDGET: "budget",
    planning_pb2.STOP_REASON_DEADLINE: "deadline",
    planning_pb2.STOP_REASON_ITERATIONS: "iterations",
}
HEALTH: dict[int, str] = {1: "serving", 2: "not_serving"}
NANOSECONDS = 1_000_000_000


# Values to messages


def float_tensor(name: str, numbers: ArrayLike, axes: Sequence[str]) -> tensor_pb2.Tensor:
    """A float32 tensor with one axis per name in `axes`. Raises InvalidRequest naming `name`."""
    try:
        array = np.asarray(numbers, np.dtype("<f4"))
    except (TypeError, ValueError):
        raise invalid(name, f"must be numbers [{', '.join(axes)}]", type(numbers).__name__, "INVALID_TENSOR") from None
    if array.ndim != len(axes):
        raise invalid(name, f"must have the shape [{', '.join(axes)}]", list(array.shape), "INVALID_TENSOR")
    return _tensor(array)


def latent_tensor(latent: ArrayLike) -> tensor_pb2.Tensor:
    """A float32 tensor of any rank: what a latent's axes are is the model's to say."""
    try:
        return _tensor(np.asarray(latent, np.dtype("<f4")))
    except (TypeError, ValueError):
        raise invalid("latent", "must be an array of numbers", type(latent).__name__, "INVALID_TENSOR") from None


def _tensor(array: Floats) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32, shape=array.shape, data=array.tobytes())


def image_message(image: values.ImageLike, name: str = "image") -> observation_pb2.Image:
    """An RGB array goes raw, bytes go as the file they are. Raises InvalidRequest naming `name`."""
    if isinstance(image, bytes):
        if not image:
            raise invalid(name, "must hold a JPEG, PNG or WebP file", "no bytes", "INVALID_IMAGE")
        return observation_pb2.Image(encoded=image)
    if not isinstance(image, np.ndarray):
        rule = "must be a uint8 array [height, width, 3] or the bytes of an image file"
        raise invalid(name, rule, type(image).__name__, "INVALID_IMAGE")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise invalid(name, "must be uint8 [height, width, 3]", f"{image.dtype} {list(image.shape)}", "INVALID_IMAGE")
    raw = observation_pb2.RawImage(
        height=image.shape[0],
        width=image.shape[1],
        format=observation_pb2.PIXEL_FORMAT_RGB8,
        data=image.tobytes(),
    )
    return observation_pb2.Image(raw=raw)


def as_observation(
    seen: values.ImageLike | Sequence[values.ImageLike] | values.Observation,
    proprioception: Sequence[float] | None = None,
) -> values.Observation:
    """An observation from what callers like to pass: one image, one per camera, or the whole thing."""
    if isinstance(seen, values.Observation):
        if proprioception is not None:
            raise invalid("proprioception", "must be part of the observation where one is given", "both")
        return seen
    if isinstance(seen, (bytes, np.ndarray)):
        return values.Observation((seen,), proprioception)
    return values.Observation(tuple(seen), proprioception)


def observation_message(observation: values.Observation, sequence: int | None = None) -> observation_pb2.Observation:
    """`sequence` overrides the observation's own."""
    message = observation_pb2.Observation(
        images=[image_message(image, f"observation.images[{at}]") for at, image in enumerate(observation.images)],
        sequence=observation.sequence if sequence is None else sequence,
    )
    if observation.proprioception is not None:
        tensor = float_tensor("observation.proprioception", observation.proprioception, ("entries",))
        message.proprioception.CopyFrom(tensor)
    if observation.capture_time_ns is not None:
        seconds, nanos = divmod(observation.capture_time_ns, NANOSECONDS)
        message.capture_time.CopyFrom(Timestamp(seconds=seconds, nanos=nanos))
    for at, image in enumerate(observation.past_images):
        message.past_images.append(image_message(image, f"observation.past_images[{at}]"))
    if observation.past_actions is not None:
        message.past_actions.CopyFrom(
            float_tensor("observation.past_actions", observation.past_actions, ("time", "action"))
        )
    return message


def planner_message(settings: values.PlannerSettings | None) -> models_pb2.PlannerSettings:
    chosen = settings or values.PlannerSettings()
    return models_pb2.PlannerSettings(
        samples=chosen.samples,
        iterations=chosen.iterations,
        elites=chosen.elites,
        horizon=chosen.horizon,
        optimizer=chosen.optimizer,
        dimensions=chosen.dimensions,
        discount=chosen.discount,
        metric=chosen.metric,
        narrowing=chosen.narrowing,
        sample_decay=chosen.sample_decay,
    )


def kind_number(kind: str) -> embeddings_pb2.EmbeddingKind.ValueType:
    if kind not in KINDS:
        raise invalid("kind", f"must be one of {', '.join(KINDS)}", kind)
    return KINDS[kind]


def goal_id(goal: values.Goal | str | None) -> str:
    """The id of a goal, given as the goal or as its id; empty for None."""
    return goal.goal_id if isinstance(goal, values.Goal) else goal or ""


def whole(name: str, number: int, limit: int = 1 << 32) -> int:
    """A number that fits its unsigned field. Raises InvalidRequest naming `name`."""
    if not 0 <= number < limit:
        raise invalid(name, f"must be at least 0 and below {limit}", number)
    return number


def seed_number(seed: int | None) -> int | None:
    return None if seed is None else whole("seed", seed, 1 << 64)


def budget(budget_ms: float | None) -> float | None:
    if budget_ms is not None and not (math.isfinite(budget_ms) and budget_ms > 0):
        raise invalid("budget_ms", "must be above 0 and finite", budget_ms)
    return budget_ms


# Messages to values


def array_value(tensor: tensor_pb2.Tensor) -> Array:
    """A read-only array. Raises ServerError if shape and dtype do not account for every byte."""
    dtype = DTYPES.get(tensor.dtype)
    shape = tuple(tensor.shape)
    if dtype is None or any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(tensor.data):
        shown = f"{tensor_pb2.ElementType.Name(tensor.dtype) if dtype else tensor.dtype} {list(shape)}"
        raise ServerError(f"the server sent {len(tensor.data)} bytes as {shown}", reason="INVALID_TENSOR")
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def float_array(tensor: tensor_pb2.Tensor) -> Floats:
    """A read-only float32 array, whatever precision was sent."""
    array = np.asarray(array_value(tensor), np.float32)
    array.setflags(write=False)
    return array


def time_value(message: Timestamp) -> int:
    """Nanoseconds since the epoch."""
    return int(message.seconds) * NANOSECONDS + int(message.nanos)


def planner_value(message: models_pb2.PlannerSettings) -> values.PlannerSettings:
    return values.PlannerSettings(
        samples=message.samples or None,
        iterations=message.iterations or None,
        elites=message.elites or None,
        horizon=message.horizon or None,
        optimizer=message.optimizer or None,
        dimensions=tuple(message.dimensions),
        discount=message.discount if message.HasField("discount") else None,
        metric=message.metric or None,
        narrowing=message.narrowing if message.HasField("narrowing") else None,
        sample_decay=message.sample_decay if message.HasField("sample_decay") else None,
    )


def model_value(message: models_pb2.Model) -> values.Model:
    image, action, limits = message.image, message.action, message.limits
    return values.Model(
        name=message.name,
        family=message.family,
        weights_digest=message.weights_digest,
        image=values.ImageSpec(image.height, image.width, image.crop_policy, image.cameras),
        action=values.ActionSpec(
            names=tuple(action.names),
            units=tuple(action.units),
            low=tuple(action.low),
            high=tuple(action.high),
            rate_hz=action.rate_hz,
            block=action.block,
        )
        if message.HasField("action")
        else None,
        latent_shape=tuple(message.latent_shape),
        proprioception_names=tuple(message.proprioception_names),
        planner=planner_value(message.planner),
        limits=values.Limits(
            message_bytes=limits.message_bytes,
            image_pixels=limits.image_pixels,
            clip_bytes=limits.clip_bytes,
            clip_frames=limits.clip_frames,
            sessions=limits.sessions,
            rollout_steps=limits.rollout_steps,
        ),
        card=message.card,
        server_version=message.server_version,
        execute=message.execute,
        license=message.license,
        labels=tuple(message.labels),
        clip_frames=message.clip_frames,
        measures_goals=message.measures_goals,
        computes=message.computes,
    )


def goal_value(message: goals_pb2.Goal) -> values.Goal:
    return values.Goal(message.goal_id, message.model, message.cached, time_value(message.create_time))


def calibration_value(message: sessions_pb2.Calibration) -> values.Calibration:
    return values.Calibration(message.angle_rad, message.residual, message.residual_before, message.moves)


def landscape_value(message: planning_pb2.LandscapeResponse) -> values.Landscape:
    return values.Landscape(
        dimensions=tuple(message.dimensions),
        values=float_array(message.values),
        costs=float_array(message.costs),
        best_action=float_array(message.best_action),
        best_cost=message.best_cost,
        rest_cost=message.rest_cost,
        plot=message.plot,
    )


def session_value(message: sessions_pb2.Session) -> values.SessionStatus:
    return values.SessionStatus(
        session_id=message.session_id,
        model=message.model,
        goal_id=message.goal_id,
        epoch=message.epoch,
        plans=message.plans,
        last_sequence=message.last_sequence,
        ttl_s=message.ttl_s,
        create_time_ns=time_value(message.create_time),
        stage=message.stage if message.HasField("stage") else None,
        calibration=calibration_value(message.calibration) if message.HasField("calibration") else None,
    )


def plan_value(message: planning_pb2.Plan) -> values.Plan:
    """A plan. Raises ServerError for one whose actions are not [time, action]: no robot may act on that."""
    actions = float_array(message.actions)
    if actions.ndim != 2 or not np.isfinite(actions).all():
        shown = f"{list(actions.shape)}" if actions.ndim != 2 else "NaN or infinity"
        raise ServerError(f"a plan's actions must be finite [time, action], the server sent {shown}", reason="INTERNAL")
    timings, provenance = message.timings, message.provenance
    return values.Plan(
        actions=actions,
        cost=message.cost,
        step_costs=tuple(message.step_costs),
        goal_distance=message.goal_distance,
        iteration_costs=tuple(message.iteration_costs),
        elite_spread=tuple(message.elite_spread),
        iterations_done=message.iterations_done,
        stop_reason=STOP_REASONS.get(message.stop_reason, "unknown"),
        seed=message.seed,
        degraded=message.degraded,
        warm_started=message.warm_started,
        observation_sequence=message.observation_sequence,
        capture_time_ns=time_value(message.capture_time) if message.HasField("capture_time") else None,
        epoch=message.epoch,
        timings=values.Timings(
            queue_ms=timings.queue_ms,
            decode_ms=timings.decode_ms,
            encode_ms=timings.encode_ms,
            plan_ms=timings.plan_ms,
            total_ms=timings.total_ms,
        ),
        provenance=values.Provenance(
            model=provenance.model,
            weights_digest=provenance.weights_digest,
            crop_policy=provenance.crop_policy,
            goal_id=provenance.goal_id,
            planner=planner_value(provenance.planner),
            device=provenance.device,
            dtype=provenance.dtype,
            server_version=provenance.server_version,
        ),
        warnings=tuple(message.warnings),
    )


def health_value(data: bytes) -> values.Health:
    """Reads a grpc.health.v1.HealthCheckResponse. Raises ServerError for bytes that are none."""
    try:
        number = dict(fields(data)).get(1, 0)
    except ValueError as error:
        raise ServerError(f"the health service answered nonsense: {error}", reason="INTERNAL") from error
    return values.Health(HEALTH.get(number, "unknown") if isinstance(number, int) else "unknown")
