"""Reads an openpi client's dictionary for a model: images, proprioception, and numbers by name.

Which key is which is guessed where there is one way to, and told in the connection's address otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from presage.limits import ActionLimits
from presage.protocol.schema import field_types
from presage.values import Model
from starlette.datastructures import QueryParams

from server.errors import Reason, ServiceError, invalid
from server.service.validation import image_size
from server.transport.openpi.codec import Value
from server.values import images
from server.values.calls import Frame

PARAMETERS = {
    "model": "the model; the default one without",
    "camera": "key of an image, such as `observation/image`; once per camera, in the model's order. "
    "Without it the images are whatever uint8 arrays of three channels there are",
    "state": "key of the proprioception; repeat it to join several. Without it `state`, or what ends in `/state`",
    "goal_id": "the goal until a message brings another",
    "executed": "actions the robot takes of each plan before it asks again; without it as many as the model was "
    "measured with",
    "budget_ms": "time to think for each plan",
    "timeout_ms": "hard deadline of each answer",
    **{
        f"limit_{field.name}": f"`{field.name}` of the session's limits on actions"
        + ", parted by commas" * field.is_many
        for field in field_types(ActionLimits)
    },
}
"""What the address may say."""


@dataclass(frozen=True)
class Wishes:
    """What the address says for the whole connection; an observation may say it anew."""

    model: str = ""
    cameras: tuple[str, ...] = ()  # keys of the images, in the model's order; none: all images there are, in order
    proprioception: tuple[str, ...] = ()  # keys whose numbers are joined; none: "state" or what ends in "/state"
    goal_id: str = ""
    executed: int | None = None  # actions a robot takes of each plan; None: as many as the model was measured with
    budget_ms: float | None = None
    timeout_ms: float | None = None
    limits: ActionLimits | None = None  # of its session


def wishes(query: QueryParams) -> Wishes:
    """Raises INVALID_FIELD."""
    for name in query:
        if name not in PARAMETERS:
            raise invalid(name, f"must be one of {', '.join(PARAMETERS)}", query[name])
    numbers = {name: _parsed(name, query.get(name)) for name in ("executed", "budget_ms", "timeout_ms")}
    executed = numbers["executed"]
    return Wishes(
        model=query.get("model", ""),
        cameras=tuple(query.getlist("camera")),
        proprioception=tuple(query.getlist("state")),
        goal_id=query.get("goal_id", ""),
        executed=None if executed is None else count("executed", executed),
        budget_ms=numbers["budget_ms"],
        timeout_ms=numbers["timeout_ms"],
        limits=_limits(query),
    )


def _limits(query: QueryParams) -> ActionLimits:
    """Limits on actions that the address names. What they must be is the application's to say."""
    found: dict[str, object] = {}
    for field in field_types(ActionLimits):
        name = f"limit_{field.name}"
        if name not in query:
            continue
        entries = query[name].split(",") if field.is_many else [query[name]]
        try:
            values = tuple(field.kind(entry) for entry in entries)
        except ValueError:
            raise invalid(
                name, f"must be {'numbers parted by commas' if field.is_many else 'a number'}", query[name]
            ) from None
        found[field.name] = values if field.is_many else values[0]
    return ActionLimits(**found)  # type: ignore[arg-type]  # each is of its field's kind


async def frames(
    values: Mapping[str, Value], asked: Wishes, model: Model, max_pixels: int, elsewhere: images.Elsewhere | None = None
) -> tuple[Frame, ...]:
    """One frame per camera: those the address names, else every image there is."""
    if not asked.cameras:
        found = {key: value for key, value in values.items() if key != "goal" and _is_image(value)}
        meant = {key: value for key, value in values.items() if key not in (*found, "goal") and _may_be_meant(value)}
        if len(found) < model.image.cameras and meant:
            key = next((key for key, value in meant.items() if _has_colors(value)), next(iter(meant)))
            raise _not_an_image(key, meant[key])
        if len(found) != model.image.cameras:
            rule = f"must hold {model.image.cameras} for model {model.name}, or ?camera= must name them"
            shown = ", ".join(found) or "none"
            raise invalid("images", rule, shown, Reason.INVALID_IMAGE)
        return await decoded(found, model, max_pixels, elsewhere)
    for key in asked.cameras:
        if key not in values:
            raise invalid(key, "must be set: the address names it as a camera", "nothing", Reason.INVALID_IMAGE)
    return await decoded({key: values[key] for key in asked.cameras}, model, max_pixels, elsewhere)


async def decoded(
    found: Mapping[str, Value], model: Model, max_pixels: int, elsewhere: images.Elsewhere | None = None
) -> tuple[Frame, ...]:
    """RGB frames of images as they came, of sizes that the model takes. Raises ServiceError."""
    sources: list[tuple[str, images.ImageSource]] = []
    for key, value in found.items():
        if isinstance(value, bytes):
            sources.append((key, value))
        elif _is_image(value):
            pixels = np.asarray(value, np.uint8)
            sources.append((key, pixels if pixels.shape[2] == 3 else np.moveaxis(pixels, 0, 2)))
        else:
            raise _not_an_image(key, value)

    def judge(field: str, height: int, width: int) -> None:
        image_size(height, width, model, field)

    return await images.decode(sources, max_pixels, elsewhere, judge)


def proprioception(values: Mapping[str, Value], asked: Wishes, model: Model) -> NDArray[np.float32] | None:
    """The proprioception; robots send their state to models that use none, too."""
    if not model.proprioception_names:
        return None
    keys = asked.proprioception or tuple(key for key in values if key == "state" or key.endswith("/state"))
    parts = []
    for key in keys:
        value = values.get(key)
        if isinstance(value, bool | int | float | list):
            value = np.asarray(value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.ndim > 1:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
            raise invalid(key, "must be numbers in one row", got)
        parts.append(value.reshape(-1).astype(np.float32))
    return np.concatenate(parts) if parts else None


def _is_image(value: Value) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and 3 in (value.shape[2], value.shape[0])
    )


def _may_be_meant(value: Value) -> bool:
    """Whether this may be meant for an image: pixels of another type or shape, or a file."""
    return isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.ndim >= 2)


def _has_colors(value: Value) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 3 and bool({3, 4} & {value.shape[0], value.shape[2]})


def _not_an_image(key: str, value: Value) -> ServiceError:
    rule = "must be uint8 [height, width, 3] or [3, height, width], RGB of 0 to 255, or the bytes of an image file"
    if isinstance(value, bytes):
        return invalid(
            key, f"must be named by ?camera={key} to be read as an image file", "bytes", Reason.INVALID_IMAGE
        )
    got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
    return invalid(key, rule, got, Reason.INVALID_IMAGE)


def flag(values: Mapping[str, Value], name: str) -> bool:
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise invalid(name, "must be true or false", f"a {type(value).__name__}")
    return value


def count(name: str, value: Value) -> int:
    """A whole number, however it came."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not 0 <= value < 1 << 32:
        raise invalid(name, "must be a whole number from 0 to 2^32 - 1", value)
    return int(value)


def positive(values: Mapping[str, Value], name: str, default: float | None) -> float | None:
    value = values.get(name, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise invalid(name, "must be finite and > 0", value)
    return float(value)


def _parsed(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise invalid(name, "must be a finite number >= 0", text)
    return value
