"""Anti-aliased thick lines, discs and upright boxes, drawn into a whole batch of small images at once with NumPy alone.

This is not a graphics package: three shapes, one color each, no transparency. Each shape is blended inside a window
just large enough to hold it, so the cost follows the shape and not the image.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]


def blank(scenes: int, size: int, color: Color) -> NDArray[np.uint8]:
    """A canvas ``[scenes, size, size, 3]`` filled with one color."""
    canvas = np.empty((scenes, size, size, 3), dtype=np.uint8)
    canvas[:] = color
    return canvas


def draw_capsules(
    canvas: NDArray[np.uint8], starts: NDArray[np.floating], ends: NDArray[np.floating], radius: float, color: Color
) -> None:
    """Draws one thick line with round ends into each scene, in place.

    ``canvas`` is ``[scenes, height, width, 3]`` and C-contiguous; ``starts`` and ``ends`` are ``[scenes, 2]`` as (x, y)
    in pixels, x to the right, y down, the center of pixel (row i, column j) at (j + 0.5, i + 0.5). ``radius`` is half
    the thickness in pixels. A pixel is covered by ``clip(radius + 0.5 - distance to the axis, 0, 1)``.
    """
    height, width = canvas.shape[1:3]
    start = np.asarray(starts, dtype=np.float32)
    span = np.asarray(ends, dtype=np.float32) - start
    if not np.isfinite(start).all() or not np.isfinite(span).all():
        raise ValueError("starts and ends: every coordinate must be finite")
    reach = float(np.abs(span).max(initial=0.0)) + 2.0 * radius + 3.0
    columns, column_ids = _window(start[:, 0] + 0.5 * span[:, 0], min(math.ceil(reach), width), width)
    rows, row_ids = _window(start[:, 1] + 0.5 * span[:, 1], min(math.ceil(reach), height), height)

    x = (columns - start[:, :1])[:, None, :]  # [scenes, 1, columns]
    y = (rows - start[:, 1:])[:, :, None]  # [scenes, rows, 1]
    dx, dy = span[:, 0, None, None], span[:, 1, None, None]
    squared = np.maximum(dx * dx + dy * dy, np.float32(1e-12))
    along = np.clip(x * (dx / squared) + y * (dy / squared), 0.0, 1.0)  # nearest point of the axis, 0 start .. 1 end
    distance = np.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2)
    coverage = np.clip(np.float32(radius + 0.5) - distance, 0.0, 1.0)  # [scenes, rows, columns]

    scene, row, column = np.nonzero(coverage)
    pixel = (scene * height + row_ids[scene, row]) * width + column_ids[scene, column]
    flat = canvas.reshape(-1, 3)
    below = flat[pixel].astype(np.float32)
    weight = coverage[scene, row, column][:, None]
    flat[pixel] = np.rint(below + weight * (np.asarray(color, dtype=np.float32) - below)).astype(np.uint8)


def draw_discs(canvas: NDArray[np.uint8], centers: NDArray[np.floating], radius: float, color: Color) -> None:
    """Draws one disc into each scene, in place; ``centers`` is ``[scenes, 2]`` in the pixels of ``draw_capsules``."""
    draw_capsules(canvas, centers, centers, radius, color)


def draw_boxes(
    canvas: NDArray[np.uint8], lows: NDArray[np.floating], highs: NDArray[np.floating], color: Color
) -> None:
    """Draws one box with sides along the image's into each scene, in place; corners ``[scenes, 2]`` as (x, y).

    Corners are in pixels. A pixel is covered by the share of its area inside the box.
    """
    height, width = canvas.shape[1:3]
    low, high = np.asarray(lows, dtype=np.float32), np.asarray(highs, dtype=np.float32)
    if not np.isfinite(low).all() or not np.isfinite(high).all():
        raise ValueError("lows and highs: every coordinate must be finite")
    inside = []
    for axis, side in enumerate((width, height)):
        edge = np.arange(side, dtype=np.float32)
        overlap = np.minimum(edge + 1, high[:, axis, None]) - np.maximum(edge, low[:, axis, None])
        inside.append(np.clip(overlap, 0.0, 1.0))
    coverage = (inside[1][:, :, None] * inside[0][:, None, :])[..., None]  # [scenes, rows, columns, 1]
    below = canvas.astype(np.float32)
    canvas[:] = np.rint(below + coverage * (np.asarray(color, dtype=np.float32) - below)).astype(np.uint8)


def _window(center: NDArray[np.float32], side: int, limit: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pixel centers and indices, both ``[scenes, side]``, of a window around ``center`` shifted to lie in the image."""
    first = np.clip(np.floor(center - 0.5 * side + 0.5), 0, limit - side).astype(np.int64)
    indices = first[:, None] + np.arange(side)
    return (indices + 0.5).astype(np.float32), indices
