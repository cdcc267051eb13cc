"""One picture: what plans cost against the time they took, a line for every optimizer. Drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE, MARGIN = (960, 600), (90, 40, 170, 70)  # left, top, right, bottom
COLORS = ("#1f6fb4", "#d9531e", "#2b8a3e", "#8a3ea8", "#b8860b", "#444444")


def draw(path: Path, points: Sequence[tuple[str, float, float]], title: str) -> None:
    """Write a PNG of (name, milliseconds, cost); time runs on a logarithmic axis, cost from the best seen."""
    font = ImageFont.load_default(14)
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    left, top = MARGIN[:2]
    right, bottom = SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    times, costs = [ms for _, ms, _ in points], [cost for _, _, cost in points]
    low_t, high_t = math.log10(min(times)) - 0.05, math.log10(max(times)) + 0.05
    low_c, high_c = min(costs), max(costs)
    pad = 0.06 * (high_c - low_c) or 1.0
    low_c, high_c = low_c - pad, high_c + pad

    def place(ms: float, cost: float) -> tuple[float, float]:
        across = (math.log10(ms) - low_t) / (high_t - low_t)
        return left + across * (right - left), bottom - (cost - low_c) / (high_c - low_c) * (bottom - top)

    pen.rectangle((left, top, right, bottom), outline="#888888")
    pen.text((left, 12), title, fill="black", font=font)
    pen.text(((left + right) / 2, SIZE[1] - 28), "ms per plan (logarithmic)", fill="black", font=font, anchor="mm")
    for decade in range(math.floor(low_t), math.ceil(high_t) + 1):
        for digit in (1, 2, 5):
            ms = digit * 10.0**decade
            if low_t <= math.log10(ms) <= high_t:
                x, _ = place(ms, low_c)
                pen.line((x, top, x, bottom), fill="#e4e4e4")
                pen.text((x, bottom + 14), f"{ms:g}", fill="black", font=font, anchor="mm")
    for step in range(6):
        cost = low_c + step / 5 * (high_c - low_c)
        _, y = place(10**low_t, cost)
        pen.line((left, y, right, y), fill="#e4e4e4")
        pen.text((left - 8, y), f"{cost:.3g}", fill="black", font=font, anchor="rm")
    for index, name in enumerate(dict.fromkeys(name for name, _, _ in points)):
        color = COLORS[index % len(COLORS)]
        line = sorted(place(ms, cost) for other, ms, cost in points if other == name)
        pen.line(line, fill=color, width=2)
        for x, y in line:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
        pen.text((right + 16, top + 22 * index), name, fill=color, font=font)
    picture.save(path)
