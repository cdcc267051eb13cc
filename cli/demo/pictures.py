"""Frames as pictures: PNG data URIs for the report, and the demo's animated GIF. Draws no charts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cli.demo.record import EpisodeRecord

Frame = NDArray[np.uint8]  # [height, width, 3] RGB

PANEL = 160  # pixels of one view in the GIF
GAP = 8
CAPTION = 28
PAPER = (250, 250, 249)
INK = (41, 37, 36)
DIM = (120, 113, 108)
GREEN = (22, 128, 92)
RED = (185, 56, 56)


def data_uri(frame: Frame) -> str:
    """A frame as a lossless PNG inside a URI, pixel for pixel."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def file_uri(path: Path, kind: str) -> str:
    """A file inside a URI; `kind` is its media type."""
    return f"data:{kind};base64," + base64.b64encode(path.read_bytes()).decode()


def strip_indices(frames: int, shown: int) -> list[int]:
    """At most `shown` frame indices, evenly spaced from the first to the last, none twice."""
    return sorted({round(index) for index in np.linspace(0, frames - 1, min(shown, frames))})


def write_gif(path: Path, episodes: Sequence[EpisodeRecord], rate_hz: float, columns: int = 3) -> None:
    """Several episodes side by side, each now (left) and its goal (right), at the robot's own rate, in a loop."""
    rows = -(-len(episodes) // columns)
    cell = (2 * PANEL + 3 * GAP, PANEL + CAPTION + 2 * GAP)
    size = (min(columns, len(episodes)) * cell[0], rows * cell[1])
    length = max(len(episode.frames) for episode in episodes)
    goals = [_enlarged(episode.goal) for episode in episodes]
    pictures = []
    for time in range(length):
        canvas = Image.new("RGB", size, PAPER)
        for place, episode in enumerate(episodes):
            corner = (place % columns * cell[0] + GAP, place // columns * cell[1] + GAP)
            _draw_episode(canvas, corner, episode, goals[place], time)
        pictures.append(canvas)
    # One palette for all: colors do not flicker, and frames differ only where something moved. The last picture holds
    # every verdict's color.
    sample = Image.new("RGB", (size[0], 2 * size[1]))
    sample.paste(pictures[0], (0, 0))
    sample.paste(pictures[-1], (0, size[1]))
    palette = sample.quantize(128, dither=Image.Dither.NONE)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    step = max(20, round(1000 / rate_hz))
    durations = [step] * (length - 1) + [1800]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=durations, loop=0, optimize=False)


def _draw_episode(
    canvas: Image.Image, corner: tuple[int, int], episode: EpisodeRecord, goal: Image.Image, time: int
) -> None:
    left, top = corner
    over = time >= len(episode.frames) - 1
    canvas.paste(_enlarged(episode.frames[min(time, len(episode.frames) - 1)]), (left, top + CAPTION))
    canvas.paste(goal, (left + PANEL + GAP, top + CAPTION))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(18)
    verdict, color = f"step {min(time, episode.steps)}", DIM
    if over:
        verdict = f"reached in {episode.steps}" if episode.success else "not reached"
        color = GREEN if episode.success else RED
        box = (left - 2, top + CAPTION - 2, left + PANEL + 1, top + CAPTION + PANEL + 1)
        draw.rectangle(box, outline=color, width=2)
    draw.text((left, top), f"#{episode.number + 1}", font=font, fill=INK)
    draw.text((left + 36, top), verdict, font=font, fill=color)
    draw.text((left + PANEL + GAP, top), "goal", font=font, fill=DIM)


def _enlarged(frame: Frame) -> Image.Image:
    height, width = frame.shape[:2]
    scale = PANEL / max(height, width)
    return Image.fromarray(frame).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
