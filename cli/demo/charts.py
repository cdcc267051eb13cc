"""Small charts as inline SVG, colored by the page's own style (classes, not colors). Knows numbers, not demos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A polyline; `style` is a class of the page's style sheet."""

    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class Frame:
    """The plot's size in pixels and the ranges it shows; y starts at 0."""

    width: int
    height: int
    x_max: float
    y_max: float
    x_min: float = 0.0
    left: int = 44
    right: int = 10
    top: int = 10
    bottom: int = 30

    def x(self, value: float) -> float:
        return self.left + (self.width - self.left - self.right) * (value - self.x_min) / (self.x_max - self.x_min)

    def y(self, value: float) -> float:
        return self.height - self.bottom - (self.height - self.top - self.bottom) * value / self.y_max


def ticks(largest: float, about: int = 4) -> list[float]:
    """Round values from 0 up to `largest`, about `about` steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(largest) and largest > 0):
        return [0.0, 1.0]
    raw = largest / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    return [round(step * index, 12) for index in range(math.floor(largest / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    width: int = 340,
    height: int = 170,
    marks: Sequence[Point] = (),
    x_max: float | None = None,
    title: str = "",
) -> str:
    """Lines from a common zero, drawn in order, and dots at `marks` on top."""
    points = [point for line in lines for point in line.points]
    top = max((y for _, y in points if math.isfinite(y)), default=1.0)
    right = x_max if x_max is not None else max((x for x, _ in points), default=1.0)
    frame = Frame(width, height, max(right, 1e-9), max(top * 1.06, 1e-9))
    parts = [_axes(frame, x_label, y_label, ticks(right, 5), ticks(top))]
    for line in lines:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points if math.isfinite(y))
        parts.append(f'<polyline class="{line.style}" points="{path}"/>')
    parts += [f'<circle class="mark" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6"/>' for x, y in marks]
    return _svg(frame, parts, title or f"{y_label} against {x_label}")


def histogram(
    values: Sequence[float], *, x_label: str, bins: int = 24, width: int = 520, height: int = 190, title: str = ""
) -> str:
    """Counts of values between their smallest and largest, with the median and the 95th percentile marked."""
    if not values:
        return ""
    numbers = np.asarray(values)
    low, high = _round_range(float(numbers.min()), float(numbers.max()))
    counts, edges = np.histogram(numbers, bins, (low, high))
    frame = Frame(width, height, high, float(counts.max()) * 1.3, x_min=low)
    whole = [tick for tick in ticks(float(counts.max())) if tick == int(tick)]
    steps = [low + tick for tick in ticks(high - low, 6)]
    parts = [_axes(frame, x_label, "plans", steps, whole)]
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, y, span = frame.x(left) + 0.5, frame.y(float(count)), frame.x(right) - frame.x(left) - 1
            bottom = frame.y(0) - y
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{span:.1f}" height="{bottom:.1f}" rx="1.5">'
                f"<title>{_figures(left)} to {_figures(right)}: {count}</title></rect>"
            )
    for row, percent in enumerate((50, 95)):
        value = float(np.percentile(numbers, percent))
        parts.append(_rule(frame, value, f"p{percent} {_figures(value)}", row))
    return _svg(frame, parts, title or x_label)


def _figures(value: float) -> str:
    """Three significant figures, never in powers of ten."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _round_range(low: float, high: float) -> tuple[float, float]:
    """A range with round ends around the values; from 0 where that costs little room."""
    if low >= 0 and low < 0.35 * high:
        low = 0.0
    span = max(high - low, 1e-3 * max(abs(high), 1e-3))
    step = ticks(span, 6)[1]
    return math.floor(low / step) * step, (math.floor(high / step + 1e-9) + 1) * step


def rate_bars(rows: Sequence[tuple[str, int, int, str]], width: int = 340) -> str:
    """One bar per (label, successes, trials, style), with Wilson's interval as a whisker over each."""
    from training.evaluation.statistics import wilson_interval

    height, left, right = 34 * len(rows) + 6, 86, 54
    span = width - left - right
    parts = []
    for row, (label, successes, trials, style) in enumerate(rows):
        y, rate = 34 * row + 8, successes / trials
        low, high = wilson_interval(successes, trials)
        parts.append(f'<text class="label" x="0" y="{y + 15}">{escape(label)}</text>')
        parts.append(f'<rect class="track" x="{left}" y="{y}" width="{span}" height="20" rx="3"/>')
        parts.append(f'<rect class="{style}" x="{left}" y="{y}" width="{span * rate:.1f}" height="20" rx="3"/>')
        x0, x1, middle = left + span * low, left + span * high, y + 10
        whisker = f"M{x0:.1f} {middle}H{x1:.1f}M{x0:.1f} {middle - 4}v8M{x1:.1f} {middle - 4}v8"
        parts.append(f'<path class="halo" d="{whisker}"/>')
        parts.append(f'<path class="whisker" d="{whisker}"><title>95 %: {low:.1%} to {high:.1%}</title></path>')
        parts.append(f'<text class="value" x="{width}" y="{y + 15}" text-anchor="end">{rate:.0%}</text>')
    return _wrapped(width, height, parts, "success rates with 95 % intervals")


def _axes(frame: Frame, x_label: str, y_label: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    left, right = frame.left, frame.width - frame.right
    parts = []
    for tick in ys:
        y = frame.y(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in xs:
        anchor = frame.height - frame.bottom + 13
        parts.append(f'<text class="tick" x="{frame.x(tick):.1f}" y="{anchor}" text-anchor="middle">{tick:g}</text>')
    middle = frame.top + (frame.height - frame.top - frame.bottom) / 2
    parts.append(f'<path class="axis" d="M{left} {frame.y(0):.1f}H{right}"/>')
    x_at, y_at = (left + right) / 2, frame.height - 3
    parts.append(f'<text class="axis-label" x="{x_at:.0f}" y="{y_at}" text-anchor="middle">{escape(x_label)}</text>')
    turn = f'transform="rotate(-90 10 {middle:.0f})"'
    parts.append(
        f'<text class="axis-label" x="10" y="{middle:.0f}" text-anchor="middle" {turn}>{escape(y_label)}</text>'
    )
    return "".join(parts)


def _rule(frame: Frame, value: float, label: str, row: int) -> str:
    """A vertical line with its label at the top, lower for every `row`, on the side that has room."""
    x, y = frame.x(value), frame.top + 8 + 13 * row
    fits = x + 64 < frame.width - frame.right
    place = f'x="{x + 4 if fits else x - 4:.1f}" y="{y}" text-anchor="{"start" if fits else "end"}"'
    line = f'<path class="rule" d="M{x:.1f} {y - 8}V{frame.y(0):.1f}"/>'
    return f'{line}<text class="rule-label" {place}>{escape(label)}</text>'


def _svg(frame: Frame, parts: Sequence[str], title: str) -> str:
    return _wrapped(frame.width, frame.height, parts, title)


def _wrapped(width: int, height: int, parts: Sequence[str], title: str) -> str:
    label = escape(title, quote=True)
    head = f'<svg class="chart" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}">'
    return head + "".join(parts) + "</svg>"
