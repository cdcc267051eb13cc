"""Bytes with a claimed type and shape to arrays and back: the checks that both transports share.

Not a place for meaning: whether an array is a good action or observation is the application's to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.errors import Reason, invalid
from server.values.calls import Array

MAX_RANK = 8
ElementType = Literal["uint8", "int32", "int64", "float16", "float32", "float64"]
DTYPES: dict[ElementType, np.dtype[np.generic]] = {
    "uint8": np.dtype("<u1"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}


def array(dtype: ElementType, shape: Sequence[int], content: bytes, field: str) -> Array:
    """View little-endian bytes as a read-only array, if shape and dtype account for every byte of them."""
    if len(shape) > MAX_RANK:
        raise invalid(f"{field}.shape", f"must have at most {MAX_RANK} dimensions", len(shape), Reason.INVALID_TENSOR)
    if any(size < 0 for size in shape):
        raise invalid(f"{field}.shape", "must not be negative anywhere", list(shape), Reason.INVALID_TENSOR)
    kind = DTYPES[dtype]
    if math.prod(max(size, 1) for size in shape) * kind.itemsize >= 2**62:  # Python's integers do not overflow
        raise invalid(f"{field}.shape", "must be addressable", list(shape), Reason.INVALID_TENSOR)
    expected = math.prod(shape) * kind.itemsize
    if len(content) != expected:
        rule = f"must hold {expected} bytes for {dtype} {list(shape)}"
        raise invalid(f"{field}.data", rule, f"{len(content)} bytes", Reason.INVALID_TENSOR)
    return np.frombuffer(content, kind).reshape(tuple(shape))


def floats(values: Array, field: str) -> NDArray[np.float32]:
    """Real numbers as float32. Infinite or NaN entries pass: the application refuses them by name."""
    if values.dtype.kind != "f":
        raise invalid(f"{field}.dtype", "must be float16, float32 or float64", values.dtype, Reason.INVALID_TENSOR)
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)
