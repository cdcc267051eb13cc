"""Serialization of engine messages: JSON for the values, arrays beside it without a copy.

Only the dataclasses that `messages` can hold can be written or read. Nothing is pickled: neither end of the
service can make the other run code, even if it has been taken over.

    message  := count of pieces, size of each piece, the JSON, the arrays' bytes
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import numpy as np

from server.engine.messages import FromEngine, ToEngine
from server.errors import Reason

_COUNT, _SIZE = struct.Struct("<I"), struct.Struct("<Q")
_KIND = "#"  # the key that says what an object is; dictionaries are written as their items


def _dataclasses(hint: Any) -> Iterator[type[Any]]:
    """Every dataclass that a value of this type can hold, itself among them."""
    if is_dataclass(hint):
        assert isinstance(hint, type)
        yield hint
        for inner in get_type_hints(hint).values():
            yield from _dataclasses(inner)
    for inner in get_args(hint):
        yield from _dataclasses(inner)


_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in _dataclasses(ToEngine | FromEngine)}
_FIELDS = {name: tuple(field.name for field in fields(kind)) for name, kind in _KINDS.items()}


class WireError(ValueError):
    """Bytes that are no message."""


def pack(message: ToEngine | FromEngine) -> list[memoryview]:
    """A message as pieces of memory, to be sent one after another."""
    return framed(pieces(message))


def framed(parts: list[memoryview]) -> list[memoryview]:
    """What `pieces` gives, behind a head that tells their sizes."""
    return [memoryview(_COUNT.pack(len(parts)) + b"".join(_SIZE.pack(len(part)) for part in parts)), *parts]


def pieces(message: ToEngine | FromEngine) -> list[memoryview]:
    """A message as its JSON and the bytes of its arrays."""
    arrays: list[memoryview] = []

    def written(value: object) -> dict[str, object]:
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value)
            arrays.append(array.reshape(-1).view(np.uint8).data)
            return {_KIND: "array", "dtype": array.dtype.str, "shape": value.shape, "at": len(arrays) - 1}
        if isinstance(value, Reason):
            return {_KIND: "reason", "name": value.name}
        kind = type(value).__name__
        if _KINDS.get(kind) is not type(value):
            raise WireError(f"a message cannot hold a {kind}")
        return {_KIND: kind, **{name: _plain(getattr(value, name)) for name in _FIELDS[kind]}}

    text = json.dumps(message, default=written, separators=(",", ":")).encode()
    return [memoryview(text), *arrays]


def unpack(content: bytearray) -> ToEngine | FromEngine:
    """The message again; its arrays are views of `content`. Raises WireError."""
    view = memoryview(content)
    try:
        parts = _parts(view)

        def read(value: dict[str, Any]) -> object:
            kind = value.pop(_KIND)
            if kind == "array":
                return np.frombuffer(parts[1 + value["at"]], np.dtype(value["dtype"])).reshape(value["shape"])
            if kind == "reason":
                return Reason[value["name"]]
            if kind == "dict":
                return dict(value["items"])
            return _KINDS[kind](**{name: _tuples(entry) for name, entry in value.items()})

        message: ToEngine | FromEngine = json.loads(bytes(parts[0]), object_hook=read)
    except (struct.error, KeyError, IndexError, TypeError, ValueError) as error:
        raise WireError(f"not a message: {error}") from error
    return message


def _parts(view: memoryview) -> list[memoryview]:
    (count,) = _COUNT.unpack_from(view)
    sizes = [_SIZE.unpack_from(view, _COUNT.size + index * _SIZE.size)[0] for index in range(count)]
    begin, parts = _COUNT.size + count * _SIZE.size, []
    for size in sizes:
        parts.append(view[begin : begin + size])
        begin += size
    if begin != len(view) or not parts:
        raise WireError(f"{len(view)} bytes, where its head says {begin}")
    return parts


def _plain(value: object) -> object:
    """Dictionaries as their items, so that no name in them can be taken for anything else."""
    return {_KIND: "dict", "items": list(value.items())} if isinstance(value, dict) else value


def _tuples(value: object) -> object:
    """JSON knows one kind of sequence, messages another."""
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
