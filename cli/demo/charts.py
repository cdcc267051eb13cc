"""Small charts as inline SVG, coloured by the page's own style (classes, not colours). Knows numbers, not demos."""

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
    """The plot's size in pixels and the ranges it shows."""

    width: int
    height: int
    x_max: float
    y_max: float
    left: int = 44
    right: int = 10
    top: int = 10
    bottom: int = 30

    def x(self, value: float) -> float:
        return self.left + (self.width - self.left - self.right) * value / self.x_max

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
    """Counts of values from 0 up, with the median and the 95th percentile marked."""
    if not values:
        return ""
    numbers = np.asarray(values)
    last = max(ticks(float(numbers.max()) * 1.1, bins // 2))
    largest = max(last, float(numbers.max()))
    counts, edges = np.histogram(np.clip(numbers, 0, largest), bins, (0, largest))
    frame = Frame(width, height, largest, float(counts.max()) * 1.18)
    whole = [tick for tick in ticks(float(counts.max())) if tick == int(tick)]
    parts = [_axes(frame, x_label, "plans", ticks(largest, 6), whole)]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, y, span = frame.x(low) + 0.5, frame.y(float(count)), frame.x(high) - frame.x(low) - 1
            bottom = frame.y(0) - y
            shown = f"{low:.3g} to {high:.3g}: {count}"
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{span:.1f}" height="{bottom:.1f}" rx="1.5">'
                f"<title>{shown}</title></rect>"
            )
    middle, slow = float(np.percentile(numbers, 50)), float(np.percentile(numbers, 95))
    close = abs(frame.x(slow) - frame.x(middle)) < 64
    parts.append(_rule(frame, middle, f"p50 {middle:.3g}", "end" if close else "start"))
    parts.append(_rule(frame, slow, f"p95 {slow:.3g}", "start" if frame.x(slow) < width - 70 else "end"))
    return _svg(frame, parts, title or x_label)


def rate_bars(rows: Sequence[tuple[str, int, int, str]], width: int = 340) -> str:
    """One bar per (label, successes, trials, style), with Wilson's interval as a whisker over each."""
    from training.statistics import wilson_interval

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


def _rule(frame: Frame, value: float, label: str, anchor: str) -> str:
    x = frame.x(value)
    offset = 4 if anchor == "start" else -4
    line = f'<path class="rule" d="M{x:.1f} {frame.top}V{frame.y(0):.1f}"/>'
    text = f'<text class="rule-label" x="{x + offset:.1f}" y="{frame.top + 8}" text-anchor="{anchor}">'
    return f"{line}{text}{escape(label)}</text>"


def _svg(frame: Frame, parts: Sequence[str], title: str) -> str:
    return _wrapped(frame.width, frame.height, parts, title)


def _wrapped(width: int, height: int, parts: Sequence[str], title: str) -> str:
    label = escape(title, quote=True)
    head = f'<svg class="chart" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}">'
    return head + "".join(parts) + "</svg>"
