"""Bytes with a claimed type and shape, to arrays: the checks that every end and every transport shares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Callable, Sequence

import numpy as np

if TYPE_CHECKING:
    from presage.values import Array, Floats

Refuse = Callable[[str, str, object, str], Exception]
"""Makes the error for a field that breaks its rule: field, rule, value, reason."""

MAX_RANK = 8
DTYPES: dict[str, np.dtype[np.generic]] = {
    "uint8": np.dtype("<u1"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def array(dtype: str, shape: Sequence[int], content: bytes, field: str, refuse: Refuse) -> Array:
    """View little-endian bytes as a read-only array, if shape and dtype account for every byte of them."""
    if dtype not in DTYPES:
        raise refuse(f"{field}.dtype", f"must be one of {', '.join(DTYPES)}", dtype, "INVALID_TENSOR")
    if len(shape) > MAX_RANK:
        raise refuse(f"{field}.shape", f"must have at most {MAX_RANK} dimensions", len(shape), "INVALID_TENSOR")
    if any(size < 0 for size in shape):
        raise refuse(f"{field}.shape", "must not be negative anywhere", list(shape), "INVALID_TENSOR")
    kind = DTYPES[dtype]
    if math.prod(max(size, 1) for size in shape) * kind.itemsize >= 2**62:  # Python's integers do not overflow
        raise refuse(f"{field}.shape", "must be addressable", list(shape), "INVALID_TENSOR")
    expected = math.prod(shape) * kind.itemsize
    if len(content) != expected:
        rule = f"must hold {expected} bytes for {dtype} {list(shape)}"
        raise refuse(f"{field}.data", rule, f"{len(content)} bytes", "INVALID_TENSOR")
    return np.frombuffer(content, kind).reshape(tuple(shape))


def floats(values: Array, field: str, refuse: Refuse) -> Floats:
    """Real numbers as read-only float32. Infinite or NaN entries pass: whoever uses them refuses them by name."""
    if values.dtype.kind != "f":
        raise refuse(f"{field}.dtype", "must be float16, float32 or float64", values.dtype, "INVALID_TENSOR")
    with np.errstate(over="ignore"):
        converted = np.asarray(values, np.float32)
    converted.setflags(write=False)
    return converted
