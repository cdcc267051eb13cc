"""Pixels without a container, to RGB arrays: the checks that every end and every transport shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from presage.protocol.tensors import Refuse
    from presage.values import Pixels

CHANNELS: dict[str, int] = {"rgb8": 3, "bgr8": 3, "mono8": 1}


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
