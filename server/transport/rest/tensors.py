"""Arrays in JSON, both ways: base64 with type and shape, or nested lists of numbers.

What the bytes claim is checked as for gRPC, in presage.protocol.arrays.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from presage.protocol.arrays import DTYPE_NAMES, DTYPES, MAX_RANK, array, floats
from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, WithJsonSchema

from server.errors import Reason, invalid, refuse
from server.values.calls import Array

Strict = ConfigDict(extra="forbid", strict=True)
Base64 = Annotated[str, WithJsonSchema({"type": "string", "contentEncoding": "base64"})]
TensorStyle = Literal["base64", "lists"]
ElementType = Literal["uint8", "int32", "int64", "float16", "float32", "float64"]


class TensorBody(BaseModel):
    """A dense little-endian array in C order; shape and dtype account for every byte of data."""

    model_config = Strict
    dtype: ElementType
    shape: list[int] = Field(max_length=MAX_RANK, fail_fast=True)
    data: Base64


Nested = Annotated[
    list[JsonValue],
    Field(fail_fast=True),
    WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "array"}]}}),
]
UNION_TAGS = frozenset({"tensor", "nested"})
"""Parts that pydantic puts into the location of an error below; they name no field."""

TensorInput = Annotated[
    Annotated[TensorBody, Tag("tensor")] | Annotated[Nested, Tag("nested")],
    Discriminator(lambda value: "nested" if isinstance(value, list) else "tensor"),
    Field(description="A tensor, or its numbers in nested lists"),
]


class TensorReply(BaseModel):
    """An array in C order. `data` is its little-endian bytes in base64, or nested lists where those were asked for."""

    dtype: ElementType
    shape: list[int]
    data: str | list[Any]


Place = Callable[[memoryview], str]
"""What stands in JSON for the bytes of an array."""

MOST_LISTED = 2**14
"""Numbers of an answer that are written as lists: more take long to write, and eight times the memory."""


def in_base64(content: memoryview) -> str:
    return base64.b64encode(content).decode()


def encode_tensor(values: Array, style: TensorStyle, place: Place = in_base64) -> dict[str, Any]:
    """An array as `TensorReply` describes it. Raises ServiceError for a large one in lists."""
    dtype, shape = DTYPE_NAMES[values.dtype], list(values.shape)
    if style == "lists":
        if values.size > MOST_LISTED:
            rule = f"must be base64 for more than {MOST_LISTED} numbers"
            raise invalid("tensors", rule, f"lists for {values.size}", Reason.TOO_LARGE)
        return {"dtype": dtype, "shape": shape, "data": values.tolist()}
    content = np.ascontiguousarray(values, DTYPES[dtype]).reshape(-1).view(np.uint8).data
    return {"dtype": dtype, "shape": shape, "data": place(content)}


def decode_tensor(body: TensorBody | list[JsonValue], field: str) -> NDArray[np.float32]:
    if isinstance(body, TensorBody):
        content = decode_bytes(body.data, f"{field}.data", Reason.INVALID_TENSOR)
        return floats(array(body.dtype, body.shape, content, field, refuse), field, refuse)
    shape = _shape(body, field)
    flat = _flatten(body, shape, field)
    with np.errstate(over="ignore"):
        return np.array(flat, np.float64).astype(np.float32).reshape(shape)


def decode_bytes(text: str, field: str, reason: Reason) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        rule = "must be the base64 of the bytes themselves, in one line, without a heading, a path or an address"
        raise invalid(field, f"{rule} ({error})", text[:40], reason) from None


def _shape(nested: JsonValue, field: str) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(nested, list):
        shape.append(len(nested))
        if len(shape) > MAX_RANK:
            raise invalid(field, f"must have at most {MAX_RANK} dimensions", "more", Reason.INVALID_TENSOR)
        if not nested:
            break
        nested = nested[0]
    return tuple(shape)


def _flatten(nested: list[JsonValue], shape: tuple[int, ...], field: str) -> list[float]:
    """The numbers of `nested`, which must have this shape all over."""
    rule = f"must hold numbers in the shape {list(shape)} of its first entries"
    rows: list[JsonValue] = nested
    for size in shape[1:]:
        deeper: list[JsonValue] = []
        for row in rows:
            if not isinstance(row, list) or len(row) != size:
                shown = f"a list of {len(row)}" if isinstance(row, list) else row
                raise invalid(field, rule, shown, Reason.INVALID_TENSOR)
            deeper += row
        rows = deeper
    numbers: list[float] = []
    for entry in rows:
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            shown = entry if not isinstance(entry, list) else f"a list of {len(entry)}"
            raise invalid(field, rule, shown, Reason.INVALID_TENSOR)
        numbers.append(entry if isinstance(entry, float) else _real(entry, field))
    return numbers


def _real(entry: int, field: str) -> float:
    try:
        return float(entry)
    except OverflowError:
        raise invalid(field, "must hold numbers that fit a float", "a larger one", Reason.INVALID_TENSOR) from None
