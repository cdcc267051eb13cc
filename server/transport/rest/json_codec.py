"""The service's values as JSON, both ways, driven by the types of the values and of the messages of proto/presage/v1.

Names, bounds and texts are those of the messages, defaults those of the dataclasses; from both follow the models that
check a body and that the OpenAPI document shows. Numbers are strict (true is no number, "1" is no number), unknown
fields are refused, bytes are standard base64. Arrays are in tensors.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import MISSING
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from presage.protocol.arrays import CHANNELS, rgb
from presage.protocol.messages import NANOSECONDS, is_repeated, names
from presage.protocol.schema import FieldType, field_types
from presage.values import ImageLike
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model, model_validator
from pydantic_core import PydanticCustomError

from model.video.file_kinds import kind_of
from server.errors import Reason, invalid, refuse
from server.transport.grpc.codec import READER
from server.transport.rest.tensors import (
    Base64,
    Place,
    Strict,
    TensorBody,
    TensorInput,
    TensorReply,
    TensorStyle,
    decode_bytes,
    decode_tensor,
    encode_tensor,
    in_base64,
)

CONTRACT: dict[str, str] = json.loads(Path(__file__).with_name("contract.json").read_text())
"""What proto/ says of its messages, fields and calls; `scripts/protos` writes it."""

MOST_IN_LIST = 4096
"""Entries of a repeated field; what a call takes of them is usually less, and its own rule."""

Count = Annotated[int, Field(ge=0, lt=2**32)]
Number64 = Annotated[int, Field(ge=0, lt=2**64)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Instant = Annotated[str, Field(max_length=40), WithJsonSchema({"type": "string", "format": "date-time"})]
Name = Annotated[str, Field(max_length=256)]

_TIME, _TENSOR, _IMAGE = "google.protobuf.Timestamp", "presage.v1.Tensor", "presage.v1.Image"
_OBSERVATION = "presage.v1.Observation"
_BOUNDED: dict[int, Any] = {
    FieldDescriptor.CPPTYPE_UINT32: Count,
    FieldDescriptor.CPPTYPE_UINT64: Number64,
    FieldDescriptor.CPPTYPE_DOUBLE: Real,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_STRING: Name,
}
_PLAIN: dict[int, Any] = {
    FieldDescriptor.CPPTYPE_UINT32: int,
    FieldDescriptor.CPPTYPE_UINT64: int,
    FieldDescriptor.CPPTYPE_INT64: int,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_STRING: str,
}


IMAGE_EXAMPLE = (
    '{"encoded": "<base64 of a JPEG, PNG or WebP file>"} or '
    '{"raw": {"height": 64, "width": 64, "format": "rgb8", "data": "<base64 of the pixels>"}}'
)
"""How an image is written in JSON, for whoever wrote it in another way."""


class RawImageBody(BaseModel):
    """Pixels without a container: height x width x channels, rows tightly packed."""

    model_config = Strict
    height: Count
    width: Count
    format: Literal[tuple(CHANNELS)]  # type: ignore[valid-type]
    data: Base64


class ImageBody(BaseModel):
    """One camera image: either a JPEG, PNG or WebP file in base64, or raw pixels."""

    model_config = ConfigDict(**Strict, json_schema_extra={"minProperties": 1, "maxProperties": 1})
    encoded: Base64 | None = None
    raw: RawImageBody | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_encoded_or_raw(cls, value: object) -> object:
        """Says how an image is written where somebody wrote it in another of the usual ways."""
        if isinstance(value, dict) and (not value or value.keys() & {"encoded", "raw"}):
            return value
        raise PydanticCustomError("image", "{rule}", {"rule": f"must be {IMAGE_EXAMPLE}", "shown": _image_shown(value)})


def _image_shown(value: object) -> str:
    if isinstance(value, str):
        return f"{kind_of(value[:64].encode('utf-8', 'replace')) or 'text'} in its place"
    if isinstance(value, dict):
        return f"an object with {', '.join(str(key)[:20] for key in list(value)[:5])}"
    return "nothing" if value is None else f"a {type(value).__name__}"


# Bodies


@cache
def body_model(kind: Any, message: Descriptor, without: tuple[str, ...] = ()) -> type[BaseModel]:
    """The model that checks the JSON of a value; `without`: fields that stand elsewhere."""
    named, hints = message.fields_by_name, get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {}
    for field in field_types(kind):
        if field.wire not in named or field.wire in without:
            continue
        annotation, default = _body_type(field, named[field.wire]), ...
        if get_origin(hints[field.name]) is Annotated:
            bounds = get_args(hints[field.name])[1:]
            annotation = Annotated.__class_getitem__((annotation, *bounds))
        if field.has_default or field.is_optional:
            default = _body_default(annotation, field)
        fields[field.wire] = (annotation, Field(default, description=CONTRACT.get(named[field.wire].full_name)))
    choices: list[Any] = [
        {"oneOf": [{"required": [member.name]} for member in choice.fields]}
        for choice in message.oneofs
        if len(choice.fields) > 1
    ]
    config = ConfigDict(**Strict, json_schema_extra=choices[0] if choices else None)
    name = message.name if message.name.endswith("Request") else f"{message.name}Body"
    made: type[BaseModel] = create_model(name, __config__=config, __doc__=CONTRACT.get(message.full_name), **fields)
    _EXAMPLES[made] = _example(message, fields)
    return made


_EXAMPLES: dict[type[BaseModel], str] = {}


def example_of(body: type[BaseModel] | None) -> str:
    """How a body with an image in it is written; empty for others."""
    return _EXAMPLES.get(body, "") if body is not None else ""


def _example(message: Descriptor, fields: dict[str, Any]) -> str:
    entries = {name: _example_entry(message.fields_by_name[name]) for name in fields}
    shown = {name: entry for name, entry in entries.items() if entry}
    if not any("encoded" in entry for entry in shown.values()):
        return ""
    if any(len(choice.fields) > 1 for choice in message.oneofs):
        return " or ".join(f'{{"{name}": {entry}}}' for name, entry in shown.items())
    goal = {"goal_id": '"..."'} if "goal_id" in fields else {}
    images = {name: entry for name, entry in shown.items() if "encoded" in entry}
    return "{" + ", ".join(f'"{name}": {entry}' for name, entry in {**images, **goal}.items()) + "}"


def _example_entry(described: FieldDescriptor) -> str:
    kind = described.message_type
    if kind is None:
        return ""
    if kind.full_name == _TENSOR:
        return "[...]"
    if kind.full_name == _IMAGE:
        one = IMAGE_EXAMPLE
    elif kind.full_name == _OBSERVATION:
        one = f'{{"images": [{IMAGE_EXAMPLE}]}}'
    else:
        return ""
    return f"[{one}]" if is_repeated(described) else one


def check_choices(message: Descriptor, body: BaseModel) -> None:
    """Of fields that exclude each other exactly one must be set. Raises ServiceError naming the choice."""
    for choice in message.oneofs:
        names = [member.name for member in choice.fields]
        given = [name for name in names if getattr(body, name, None) is not None]
        if len(names) > 1 and len(given) != 1:
            example = example_of(type(body))
            rule = f"must have exactly one of {' and '.join(names)} set" + (f", as in {example}" if example else "")
            raise invalid(choice.name, rule, "neither" if not given else "both")


def _body_type(field: FieldType, described: FieldDescriptor) -> Any:
    one: Any = _one_body_type(field, described)
    if is_repeated(described):  # the first fault of a list is told, not one for each of its entries
        return Annotated[list[one], Field(max_length=MOST_IN_LIST, fail_fast=True)]
    return one | None if field.is_optional else one


def _one_body_type(field: FieldType, described: FieldDescriptor) -> Any:
    if described.enum_type is not None:
        return Literal[tuple(names(described.enum_type))]
    if described.message_type is None:
        return _BOUNDED[described.cpp_type]
    return {_TIME: Instant, _TENSOR: TensorInput, _IMAGE: ImageBody}.get(
        described.message_type.full_name
    ) or body_model(field.kind, described.message_type)


def _body_default(annotation: Any, field: FieldType) -> Any:
    if field.default is MISSING or field.default is None:
        return None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation()
    return list(field.default) if isinstance(field.default, tuple) else field.default


def value(kind: Any, body: BaseModel, where: str = "", known: dict[str, Any] | None = None) -> Any:
    """The dataclass `kind` from a body that was checked; `known`: fields that stand elsewhere. Raises ServiceError."""
    read = dict(known or {})
    for field in field_types(kind):
        content = getattr(body, field.wire, None)
        if content is not None and field.name not in read:
            read[field.name] = _entry(field, content, f"{where}.{field.wire}" if where else field.wire)
    return kind(**read)


def _entry(field: FieldType, content: Any, place: str) -> Any:
    is_tensor = isinstance(content, TensorBody) or (isinstance(content, list) and not field.is_many)
    if is_tensor:
        return decode_tensor(content, place)
    if isinstance(content, list):
        return tuple(_entry(field, each, f"{place}[{at}]") for at, each in enumerate(content))
    if isinstance(content, ImageBody):
        return _image(content, place)
    if isinstance(content, BaseModel):
        return value(field.kind, content, place)
    return _instant(content, place) if field.is_time else content


def _image(image: ImageBody, place: str) -> ImageLike:
    if (image.encoded is None) == (image.raw is None):
        shown = "neither" if image.raw is None else "both"
        raise invalid(place, "must have encoded or raw set", shown, Reason.INVALID_IMAGE)
    if image.raw is None:
        return decode_bytes(image.encoded or "", f"{place}.encoded", Reason.INVALID_IMAGE)
    raw = image.raw
    content = decode_bytes(raw.data, f"{place}.raw.data", Reason.INVALID_IMAGE)
    return rgb(raw.height, raw.width, raw.format, content, place, refuse)


def _instant(text: str, place: str) -> int:
    stamp = Timestamp()
    try:
        stamp.FromJsonString(text)
    except ValueError:
        raise invalid(place, "must be an RFC 3339 time such as 2026-01-31T12:00:00.5Z", text) from None
    return READER.time(stamp, place)


# Replies


@cache
def reply_model(kind: Any, message: Descriptor) -> type[BaseModel]:
    """What the OpenAPI document shows of a reply."""
    named = message.fields_by_name
    fields: dict[str, Any] = {}
    for field in field_types(kind):
        if field.wire in named:
            described = named[field.wire]
            fields[field.wire] = (_reply_type(field, described), Field(description=CONTRACT.get(described.full_name)))
    return create_model(message.name, __doc__=CONTRACT.get(message.full_name), **fields)


def _reply_type(field: FieldType, described: FieldDescriptor) -> Any:
    if described.enum_type is not None:
        one: Any = Literal[tuple(names(described.enum_type))]
    elif described.message_type is not None:
        kind = described.message_type.full_name
        one = {_TIME: str, _TENSOR: TensorReply}.get(kind) or reply_model(field.kind, described.message_type)
    else:
        one = Base64 if described.type == FieldDescriptor.TYPE_BYTES else _PLAIN[described.cpp_type]
    if is_repeated(described):
        return list[one | None] if field.is_array else list[one]  # an array's numbers need not be finite
    return one | None if field.is_optional else one


def plain(reply: object, message: Descriptor, style: TensorStyle, place: Place = in_base64) -> dict[str, Any]:
    """A reply as JSON has it; `place` writes the bytes of its arrays."""
    named = message.fields_by_name
    return {
        field.wire: _plain(getattr(reply, field.name), named[field.wire], style, place)
        for field in field_types(type(reply))
        if field.wire in named
    }


def _plain(content: Any, described: FieldDescriptor, style: TensorStyle, place: Place) -> Any:
    if content is None:
        return None
    kind = described.message_type
    if is_repeated(described):
        if kind is None:
            entries = content.tolist() if isinstance(content, np.ndarray) else content
            return [each if _is_number(each) else None for each in entries]
        return [plain(each, kind, style, place) for each in content]
    if kind is None:
        return base64.b64encode(content).decode() if isinstance(content, bytes) else content
    if kind.full_name == _TENSOR:
        return encode_tensor(content, style, place)
    if kind.full_name == _TIME:
        return Timestamp(seconds=content // NANOSECONDS, nanos=content % NANOSECONDS).ToJsonString()
    return plain(content, kind, style, place)


def _is_number(entry: Any) -> bool:
    return not isinstance(entry, float) or math.isfinite(entry)
