"""Bytes with a claimed shape, to arrays of numbers or pixels: the checks that both ends and all transports share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Callable, Sequence

import numpy as np

if TYPE_CHECKING:
    from presage.values import Array, Floats, Pixels

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
CHANNELS: dict[str, int] = {"rgb8": 3, "bgr8": 3, "mono8": 1}


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


def rgb(height: int, width: int, pixel_format: str, content: bytes, field: str, refuse: Refuse) -> Pixels:
    """View height x width x channels, rows tightly packed, as a read-only array [height, width, 3] in RGB."""
    if pixel_format not in CHANNELS:
        raise refuse(f"{field}.raw.format", f"must be one of {', '.join(CHANNELS)}", pixel_format, "INVALID_IMAGE")
    if height < 1 or width < 1:
        raise refuse(field, "must be at least 1x1 pixels", f"{width}x{height}", "INVALID_IMAGE")
    channels = CHANNELS[pixel_format]
    expected = height * width * channels
    if len(content) != expected:
        rule = f"must hold {height} x {width} x {channels} = {expected} bytes"
        raise refuse(f"{field}.data", rule, f"{len(content)} bytes", "INVALID_IMAGE")
    pixels = np.frombuffer(content, np.uint8).reshape(height, width, channels)
    if pixel_format == "mono8":
        return np.broadcast_to(pixels, (height, width, 3))
    return pixels[..., ::-1] if pixel_format == "bgr8" else pixels
