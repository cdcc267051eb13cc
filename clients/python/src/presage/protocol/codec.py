"""The client's side of the codec: what callers like to pass, checked before anything is sent, and what is answered.

Fields are carried by messages.py; which call carries which message is requests.py's. Nothing here knows gRPC.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Sequence

import numpy as np

from presage import values
from presage.errors import ServerError, invalid
from presage.protocol.messages import Reader, Writer, names
from presage.protocol.wire import fields
from presage.v1 import embeddings_pb2, models_pb2, observation_pb2, planning_pb2, tensor_pb2

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

KINDS = names(embeddings_pb2.EmbeddingKind.DESCRIPTOR)
HEALTH: dict[int, str] = {1: "serving", 2: "not_serving"}


def _nonsense(field: str, rule: str, value: object, reason: str) -> ServerError:
    return ServerError(f"the server sent a reply in which {field} {rule}, got {value}", reason=reason)


READER, WRITER = Reader(_nonsense, is_strict=False), Writer(invalid, keeps_precision=False)


# What callers pass


def float_tensor(name: str, numbers: ArrayLike, axes: Sequence[str]) -> tensor_pb2.Tensor:
    """A float32 tensor with one axis per name in `axes`. Raises InvalidRequest naming `name`."""
    try:
        array = np.asarray(numbers, np.float32)
    except (TypeError, ValueError):
        raise invalid(name, f"must be numbers [{', '.join(axes)}]", type(numbers).__name__, "INVALID_TENSOR") from None
    if array.ndim != len(axes):
        raise invalid(name, f"must have the shape [{', '.join(axes)}]", list(array.shape), "INVALID_TENSOR")
    return WRITER.tensor(array, name)


def latent_tensor(latent: ArrayLike) -> tensor_pb2.Tensor:
    """A float32 tensor of any rank: what a latent's axes are is the model's to say."""
    return WRITER.tensor(latent, "latent")


def image_message(image: values.ImageLike, name: str = "image") -> observation_pb2.Image:
    """An RGB array goes raw, bytes go as the file they are. Raises InvalidRequest naming `name`."""
    return WRITER.image(image, name)


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


def observation_message(observation: values.Observation) -> observation_pb2.Observation:
    message: observation_pb2.Observation = WRITER.message(observation_pb2.Observation, observation, "observation")
    if observation.proprioception is not None and len(message.proprioception.shape) != 1:
        shape = list(message.proprioception.shape)
        raise invalid("observation.proprioception", "must have the shape [entries]", shape, "INVALID_TENSOR")
    return message


def planner_message(settings: values.PlannerSettings | None) -> models_pb2.PlannerSettings:
    message: models_pb2.PlannerSettings = WRITER.message(
        models_pb2.PlannerSettings, settings or values.PlannerSettings(), "settings"
    )
    return message


def kind_number(kind: str) -> embeddings_pb2.EmbeddingKind.ValueType:
    if kind not in KINDS:
        raise invalid("kind", f"must be one of {', '.join(KINDS)}", kind)
    return embeddings_pb2.EmbeddingKind.ValueType(KINDS[kind])


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


# What is answered


def plan_value(message: planning_pb2.Plan) -> values.Plan:
    """A plan. Raises ServerError for one whose actions are not [time, action]: no robot may act on that."""
    plan = READER.value(values.Plan, message)
    if plan.actions.ndim != 2 or not np.isfinite(plan.actions).all():
        shown = f"{list(plan.actions.shape)}" if plan.actions.ndim != 2 else "NaN or infinity"
        raise ServerError(f"a plan's actions must be finite [time, action], the server sent {shown}", reason="INTERNAL")
    return plan


def health_value(data: bytes) -> values.Health:
    """Reads a grpc.health.v1.HealthCheckResponse. Raises ServerError for bytes that are none."""
    try:
        number = dict(fields(data)).get(1, 0)
    except ValueError as error:
        raise ServerError(f"the health service answered nonsense: {error}", reason="INTERNAL") from error
    return values.Health(HEALTH.get(number, "unknown") if isinstance(number, int) else "unknown")
