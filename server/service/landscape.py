"""Cost landscape: a grid of actions around rest, and a picture of its costs.

Runs in the front process, so it knows numpy and Pillow, no model.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from presage.values import Landscape

from server.engine.messages import Floats, ServedModel
from server.errors import invalid
from server.service.validation import actions_of
from server.values.calls import LandscapeRequest

MOST_POINTS = 33
COLORS = np.array(  # dark blue, teal, green, yellow: even in brightness, so that prints in gray read alike
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64
)
CELL, GAP, MARGIN, TEXT = 34, 16, 14, 13


@dataclass(frozen=True)
class Grid:
    """Actions to be priced. `candidates` holds each for one step of the model, the last dimension's first."""

    dimensions: tuple[str, ...]
    values: Floats  # [dimensions, points], robot units
    rest: tuple[int, ...]  # which point of each dimension is rest
    candidates: Floats  # [points ** dimensions, block, action]


def grid(request: LandscapeRequest, served: ServedModel) -> Grid:
    """The grid asked for. Raises ServiceError for one that makes no sense; how large it may be is checked elsewhere."""
    action = actions_of(served.reply)
    searched = served.search.dimensions if served.search is not None else ()
    names = request.dimensions or (searched or action.names)[:3]
    points = request.points or 5
    if not 1 <= len(names) <= 3:
        raise invalid("dimensions", "must be one to three", len(names))
    if not 3 <= points <= MOST_POINTS or points % 2 == 0:
        raise invalid("points", f"must be odd and 3 to {MOST_POINTS}", points)
    if not 0 < request.extent <= 1:
        raise invalid("extent", "must be above 0 and at most 1", request.extent)
    entries = [action.names.index(name) for name in names]
    axes = [_axis(action.low[i], action.rest[i], action.high[i], request.extent, points) for i in entries]
    values = np.stack([axis for axis, _ in axes])
    actions = np.tile(np.array(action.rest), (points ** len(names), 1))
    actions[:, entries] = list(itertools.product(*values))
    candidates = np.repeat(actions[:, None], action.block, axis=1).astype(np.float32)
    return Grid(tuple(names), values.astype(np.float32), tuple(at for _, at in axes), candidates)


def _axis(low: float, rest: float, high: float, extent: float, points: int) -> tuple[Floats, int]:
    """Points from `extent` of the way to the lower bound to as much of the way to the upper; which of them is rest.

    Either side has as many points as it has room, and at least one where it has any.
    """
    below, above = extent * (rest - low), extent * (high - rest)
    room = below + above
    under = round((points - 1) * below / room) if room > 0 else (points - 1) // 2
    under = min(max(under, int(below > 0)), points - 1 - int(above > 0))
    lower, upper = np.linspace(rest - below, rest, under + 1), np.linspace(rest, rest + above, points - under)
    return np.concatenate([lower, upper[1:]]), under


def landscape(asked: Grid, costs: Floats) -> Landscape:
    """The costs [candidates] of a grid, as the answer without its picture."""
    points = asked.values.shape[1]
    best = int(np.argmin(costs))
    return Landscape(
        dimensions=asked.dimensions,
        values=asked.values,
        costs=costs.reshape((points,) * len(asked.dimensions)),
        best_action=asked.candidates[best, 0],
        best_cost=float(costs[best]),
        rest_cost=float(costs[np.ravel_multi_index(asked.rest, (points,) * len(asked.rest))]),
    )


def draw(shown: Landscape, units: tuple[str, ...], at_rest: tuple[int, ...]) -> bytes:
    """A PNG: a heat map of the first two dimensions (down and across) for every value of the third.

    A ring marks the cheapest action, a cross staying at rest, which is the point `at_rest`
    of each dimension. `units` are those of `shown.dimensions`.
    """
    costs = shown.costs[None] if shown.costs.ndim == 1 else shown.costs  # a line is a map of one row
    panels = costs if costs.ndim == 3 else costs[..., None]
    rows, columns, layers = panels.shape
    head = MARGIN + 3 * (TEXT + 6)
    width = 2 * MARGIN + layers * (columns * CELL + GAP) - GAP
    image = Image.new("RGB", (max(width, 560), head + rows * CELL + MARGIN), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    low, high = float(panels.min()), float(panels.max())
    title = f"cost {low:.4g} (dark) to {high:.4g} (light); best (ring) {shown.best_cost:.4g}, "
    title += f"at rest (cross) {shown.rest_cost:.4g}"
    pen.text((MARGIN, MARGIN), title, "black", font)
    pen.text((MARGIN, MARGIN + TEXT + 6), _axes(shown, units), "black", font)
    best, rest = np.unravel_index(int(panels.argmin()), panels.shape), _place(at_rest)
    for layer in range(layers):
        left = MARGIN + layer * (columns * CELL + GAP)
        if layers > 1:
            pen.text((left, head - TEXT - 4), f"{shown.dimensions[2]} {shown.values[2][layer]:+.3g}", "black", font)
        heat = _colored(panels[:, :, layer], low, high)
        image.paste(Image.fromarray(heat).resize((columns * CELL, rows * CELL), Image.Resampling.NEAREST), (left, head))
        if layer == rest[2]:
            _cross(pen, left + rest[1] * CELL, head + rest[0] * CELL)
        if layer == best[2]:
            _ring(pen, left + int(best[1]) * CELL, head + int(best[0]) * CELL)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _place(point: tuple[int, ...]) -> tuple[int, ...]:
    """Row, column and panel of a point of a line, a map or a stack of maps."""
    return (0, point[0], 0) if len(point) == 1 else (*point, 0)[:3]


def _axes(shown: Landscape, units: tuple[str, ...]) -> str:
    places = ("across",) if len(shown.dimensions) == 1 else ("down", "across", "panels")
    parts = [
        f"{place}: {name} {axis[0]:+.3g} to {axis[-1]:+.3g} {unit}"
        for place, name, axis, unit in zip(places, shown.dimensions, shown.values, units, strict=False)
    ]
    return "; ".join(parts)


def _colored(costs: Floats, low: float, high: float) -> NDArray[np.uint8]:
    """Costs [rows, columns] as colors [rows, columns, 3]."""
    share = (costs.astype(np.float64) - low) / max(high - low, 1e-30) * (len(COLORS) - 1)
    below = np.clip(share.astype(int), 0, len(COLORS) - 2)
    weight = (share - below)[..., None]
    mixed: NDArray[np.float64] = (1 - weight) * COLORS[below] + weight * COLORS[below + 1]
    colored: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return colored


def _ring(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    pen.ellipse((left + 6, top + 6, left + CELL - 6, top + CELL - 6), outline="white", width=3)


def _cross(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    near, far = CELL // 2 - 6, CELL // 2 + 6
    pen.line((left + near, top + near, left + far, top + far), "red", 2)
    pen.line((left + near, top + far, left + far, top + near), "red", 2)
