"""The client's values as JSON and back, under the names that the service's REST transport gives their fields."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from presage.protocol.arrays import DTYPE_NAMES, DTYPES
from presage.protocol.schema import FieldType, field_types

Value = TypeVar("Value")


def as_json(value: Any) -> dict[str, Any]:
    """A dataclass as what `json.dumps` takes."""
    return {field.wire: _written(getattr(value, field.name), field) for field in field_types(type(value))}


def from_json(kind: type[Value], found: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> Value:
    """A dataclass out of JSON; `known` are fields that it does not hold. What is newer than this client is left out."""
    read = {field.name: _read(found[field.wire], field) for field in field_types(kind) if field.wire in found}
    return kind(**{**read, **(known or {})})


def _written(content: Any, field: FieldType) -> Any:
    if isinstance(content, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(content).tobytes()).decode()
        return {"dtype": DTYPE_NAMES[content.dtype], "shape": list(content.shape), "data": data}
    if isinstance(content, tuple):
        return [_written(each, field) for each in content]
    if field.is_time and content is not None:
        stamp = Timestamp()
        stamp.FromNanoseconds(content)
        return stamp.ToJsonString()
    return as_json(content) if is_dataclass(content) else content


def _read(content: Any, field: FieldType) -> Any:
    if content is None:
        return None
    if isinstance(content, list):
        return tuple(_read(each, field) for each in content)
    if field.is_array:
        return np.frombuffer(base64.b64decode(content["data"]), DTYPES[content["dtype"]]).reshape(content["shape"])
    if field.is_time:
        stamp = Timestamp()
        stamp.FromJsonString(content)
        return stamp.ToNanoseconds()
    return from_json(field.kind, content) if is_dataclass(field.kind) else content
