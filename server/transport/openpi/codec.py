"""The openpi wire format: msgpack with NumPy arrays, decoded without trusting any of it.

Nothing is unpickled: an array is a type from a short list, a shape and bytes that add up, or the message is refused.
What the values mean is `openpi`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgpack
import numpy as np
from presage.protocol.arrays import MAX_RANK

from server.errors import Reason, ServiceError, invalid
from server.values.calls import Array

Value: TypeAlias = "Array | bytes | str | int | float | bool | list[Any] | None"

_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
_MOST_ENTRIES = 4096  # of one list or dictionary, and of the whole observation once it is flat
_MOST_IN_ALL = 16_384  # of all lists and dictionaries of a message
_DEEPEST = 8  # dictionaries within dictionaries


def unpack(content: bytes) -> dict[str, Value]:
    """An observation as one flat dictionary: what was at ["images"]["top"] is at "images/top".

    Raises ServiceError INVALID_REQUEST for what is no such message, INVALID_TENSOR for arrays that do not add up.
    """
    count = _Count()
    try:
        values = msgpack.unpackb(
            content,
            object_hook=count.dictionary,
            list_hook=count.list,
            strict_map_key=False,
            max_array_len=_MOST_ENTRIES,
            max_map_len=_MOST_ENTRIES,
            max_ext_len=0,
        )
    except ServiceError:
        raise
    except Exception as error:  # broken bytes raise a dozen kinds of exception
        shown = f"{type(error).__name__} in {len(content)} bytes"
        raise invalid("message", "must be a msgpack dictionary", shown, Reason.INVALID_REQUEST) from None
    if not isinstance(values, dict):
        raise invalid("message", "must be a msgpack dictionary", f"a {type(values).__name__}", Reason.INVALID_REQUEST)
    flat: dict[str, Value] = {}
    _flatten(values, "", flat, _DEEPEST)
    return flat


class _Count:
    """Entries of everything in a message, as they are read: small ones would take fifty times their bytes."""

    def __init__(self) -> None:
        self._entries = 0

    def dictionary(self, entry: dict[Any, Any]) -> object:
        self._add(len(entry))
        return _value(entry)

    def list(self, entry: list[Any]) -> object:
        self._add(len(entry))
        return entry

    def _add(self, entries: int) -> None:
        self._entries += 1 + entries
        if self._entries > _MOST_IN_ALL:
            rule = f"must have at most {_MOST_IN_ALL} entries in all"
            raise invalid("message", rule, "more", Reason.TOO_LARGE)


def pack(values: Mapping[str, Any]) -> bytes:
    """A reply, its arrays as openpi clients read them."""
    packed: bytes = msgpack.packb(values, default=_packed)
    return packed


def _flatten(values: Mapping[Any, Any], path: str, flat: dict[str, Value], deepest: int) -> None:
    for key, value in values.items():
        if not isinstance(key, str):
            raise invalid("message", "must have names as keys", f"a {type(key).__name__}", Reason.INVALID_REQUEST)
        if isinstance(value, dict):
            if deepest == 0:
                rule = f"must nest at most {_DEEPEST} dictionaries"
                raise invalid("message", rule, "more", Reason.INVALID_REQUEST)
            _flatten(value, f"{path}{key}/", flat, deepest - 1)
        else:
            flat[f"{path}{key}"] = value
        if len(flat) > _MOST_ENTRIES:
            raise invalid("message", f"must have at most {_MOST_ENTRIES} entries", "more", Reason.INVALID_REQUEST)


def _value(entry: dict[Any, Any]) -> object:
    """A dictionary as it was packed: an array, a NumPy number, or a dictionary."""
    entries = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in entry.items()}
    if "__ndarray__" in entries:
        return _array(entries)
    if "__npgeneric__" in entries:
        return _number(entries)
    return entry


def _array(entries: Mapping[Any, Any]) -> Array:
    dtype, shape, content = _dtype(entries.get("dtype")), entries.get("shape"), entries.get("data")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_size(size) for size in shape):
        rule = f"must be at most {MAX_RANK} sizes from 0 to 2^31 - 1"
        raise invalid("message.shape", rule, shape, Reason.INVALID_TENSOR)
    if not isinstance(content, bytes):
        raise invalid("message.data", "must be bytes", f"a {type(content).__name__}", Reason.INVALID_TENSOR)
    expected = dtype.itemsize
    for size in shape:
        expected *= size  # Python's integers do not overflow
    if len(content) != expected:
        rule = f"must hold {expected} bytes for {dtype} {shape}"
        raise invalid("message.data", rule, f"{len(content)} bytes", Reason.INVALID_TENSOR)
    return np.frombuffer(content, dtype).reshape(shape)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 31


def _number(entries: Mapping[Any, Any]) -> int | float | bool:
    _dtype(entries.get("dtype"))
    value = entries.get("data")
    if not isinstance(value, int | float):
        raise invalid("message.data", "must be a number", f"a {type(value).__name__}", Reason.INVALID_TENSOR)
    return value


def _dtype(name: object) -> np.dtype[np.generic]:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        rule = "must be of bools, integers or floats of at most 8 bytes"
        raise invalid("message.dtype", rule, text, Reason.INVALID_TENSOR)
    return np.dtype(text)


def _packed(value: object) -> dict[bytes, object]:
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}
    raise TypeError(f"a reply cannot hold a {type(value).__name__}")
