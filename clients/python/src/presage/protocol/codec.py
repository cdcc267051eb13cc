"""The client's side of the codec: what callers like to pass, checked before anything is sent, and what is answered.

Fields are carried by messages.py; which call carries which message is requests.py's. Nothing here knows gRPC.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Sequence

import numpy as np

from presage import values
from presage.errors import ServerError, invalid
from presage.limits import ActionLimits
from presage.protocol import arguments
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
    """Pixels go raw, files go as the bytes they are. Raises InvalidRequest naming `name`."""
    return WRITER.image(arguments.image_content(name, image), name)


def as_observation(
    seen: values.ImageLike | Sequence[values.ImageLike] | values.Observation,
    proprioception: Sequence[float] | None = None,
) -> values.Observation:
    """An observation from what callers like to pass: one image, one per camera, or the whole thing."""
    if isinstance(seen, values.Observation):
        if proprioception is not None:
            raise invalid("proprioception", "must be part of the observation where one is given", "both")
        return seen
    if arguments.is_one_image(seen):
        return values.Observation((seen,), proprioception)  # type: ignore[arg-type]
    if isinstance(seen, dict) or not hasattr(seen, "__iter__"):
        rule = "must be an image, one image per camera in the model's order, or an Observation"
        raise invalid("observation", rule, arguments.shown(seen))
    return values.Observation(tuple(seen), proprioception)  # type: ignore[arg-type]


def observation_message(observation: values.Observation) -> observation_pb2.Observation:
    images = enumerate(arguments.images("observation.images", observation.images))
    sent = replace(
        observation,
        images=tuple(arguments.image_content(f"observation.images[{at}]", image) for at, image in images),
        capture_time_ns=None if observation.capture_time_ns is None else operator.index(observation.capture_time_ns),
        sequence=operator.index(observation.sequence),
    )
    message: observation_pb2.Observation = WRITER.message(observation_pb2.Observation, sent, "observation")
    if observation.proprioception is not None and len(message.proprioception.shape) != 1:
        shape = list(message.proprioception.shape)
        raise invalid("observation.proprioception", "must have the shape [entries]", shape, "INVALID_TENSOR")
    return message


def planner_message(settings: values.PlannerSettings | None) -> models_pb2.PlannerSettings:
    if settings is not None and not isinstance(settings, values.PlannerSettings):
        raise invalid("settings", "must be PlannerSettings", arguments.shown(settings))
    chosen = settings or values.PlannerSettings()

    def count(name: str) -> int | None:
        value = getattr(chosen, name)
        return None if value is None else arguments.whole(f"settings.{name}", value)

    sent = replace(
        chosen,
        samples=count("samples"),
        iterations=count("iterations"),
        elites=count("elites"),
        horizon=count("horizon"),
        optimizer=None if chosen.optimizer is None else arguments.text("settings.optimizer", chosen.optimizer),
        dimensions=arguments.names("settings.dimensions", chosen.dimensions),
        discount=None if chosen.discount is None else arguments.number("settings.discount", chosen.discount),
    )
    message: models_pb2.PlannerSettings = WRITER.message(models_pb2.PlannerSettings, sent, "settings")
    return message


def limits_message(limits: ActionLimits | None) -> models_pb2.ActionLimits | None:
    """Limits as they are sent; which of them are too wide the server knows. Raises InvalidRequest for no numbers."""
    if limits is None:
        return None
    if not isinstance(limits, ActionLimits):
        raise invalid("limits", "must be ActionLimits", arguments.shown(limits))

    def numbers(name: str) -> tuple[float, ...]:
        entries = arguments.sequence(f"limits.{name}", getattr(limits, name), object, "number")
        return tuple(arguments.number(f"limits.{name}[{at}]", entry) for at, entry in enumerate(entries))

    dwell = arguments.sequence("limits.dwell", limits.dwell, object, "number")
    return models_pb2.ActionLimits(
        low=numbers("low"),
        high=numbers("high"),
        slew=numbers("slew"),
        max_norm=None if limits.max_norm is None else arguments.number("limits.max_norm", limits.max_norm),
        norm_order=None if limits.norm_order is None else arguments.whole("limits.norm_order", limits.norm_order),
        norm_of=arguments.names("limits.norm_of", limits.norm_of),
        frozen=arguments.names("limits.frozen", limits.frozen),
        dwell=[arguments.whole(f"limits.dwell[{at}]", steps) for at, steps in enumerate(dwell)],
    )


def previous_action(action: ArrayLike | None) -> list[float]:
    """An action [action] as plain numbers; none for None."""
    if action is None:
        return []
    array = np.asarray(action)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise invalid("previous_action", "must be numbers [action]", arguments.shown(action))
    numbers: list[float] = array.astype(np.float64).tolist()
    return numbers


def kind_number(kind: str) -> embeddings_pb2.EmbeddingKind.ValueType:
    if not isinstance(kind, str) or kind not in KINDS:
        raise invalid("kind", f"must be one of {', '.join(KINDS)}", kind)
    return embeddings_pb2.EmbeddingKind.ValueType(KINDS[kind])


def goal_id(goal: values.Goal | str | None) -> str:
    """The id of a goal, given as the goal or as its id; empty for None. Raises InvalidRequest."""
    if isinstance(goal, values.Goal):
        return goal.goal_id
    if goal is not None and not isinstance(goal, str):
        rule = "must be a Goal or its id: client.goal(image) makes one of an image"
        raise invalid("goal", rule, arguments.shown(goal))
    return goal or ""


def model_name(model: values.Model | str | None) -> str:
    """The name of a model, given as the model or as its name; empty for None. Raises InvalidRequest."""
    return model.name if isinstance(model, values.Model) else arguments.text("model", model)


def plan_sequence(plan: values.Plan | values.ControlPlan | None) -> int:
    """The observation that a plan was made from; 0 for None. Raises InvalidRequest."""
    found = plan.plan if isinstance(plan, values.ControlPlan) else plan
    if found is None:
        return 0
    if not isinstance(found, values.Plan):
        raise invalid("follows", "must be a Plan", arguments.shown(found))
    return found.observation_sequence


def seed_number(seed: int | None) -> int | None:
    return None if seed is None else arguments.whole("seed", seed, 1 << 64)


def budget(budget_ms: float | None) -> float | None:
    return None if budget_ms is None else arguments.positive("budget_ms", budget_ms)


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
