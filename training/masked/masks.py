"""Which tokens are hidden from the encoder and asked of the predictor: random blocks, through time for clips.

For an image these are the multi-block masks of I-JEPA (arXiv 2301.08243), for a clip the tubes of V-JEPA (arXiv
2404.08471): a block of rows and columns hidden in every frame, so that nothing can be copied from a neighboring one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

Grid = tuple[int, int, int]
"""Tokens along (time, rows, columns)."""


@dataclass(frozen=True)
class MaskSet:
    """Several blocks of one size, whose union is hidden."""

    blocks: int
    area: float  # of one block, as a fraction of the frame
    aspects: tuple[float, float] = (0.75, 1.5)  # rows over columns, drawn anew for every batch

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks must be >= 1, got {self.blocks}")
        if not 0 < self.area < 1:
            raise ValueError(f"area must lie between 0 and 1, got {self.area}")
        if not 0 < self.aspects[0] <= self.aspects[1]:
            raise ValueError(f"aspects must rise from above 0, got {self.aspects}")


PUBLISHED = (MaskSet(blocks=8, area=0.15), MaskSet(blocks=2, area=0.7))
"""V-JEPA's two sets: many small blocks, and few large ones. Every clip is seen through both."""


@dataclass(frozen=True)
class Masks:
    """Token numbers (over time, then rows, then columns) of a batch: what is seen, and what is predicted."""

    context: Int[Tensor, "batch seen"]
    target: Int[Tensor, "batch hidden"]

    def to(self, device: torch.device) -> Masks:
        return Masks(self.context.to(device), self.target.to(device))


def draw_masks(grid: Grid, chosen: MaskSet, batch: int, generator: torch.Generator) -> Masks:
    """Masks for `batch` samples. Each has blocks at places of its own; none hides everything.

    Blocks overlap as they fall, so samples hide different numbers of tokens: tokens beyond the smallest numbers in the
    batch are left out, of either kind, at random.
    """
    time, rows, columns = grid
    height, width = _block(rows, columns, chosen, generator)
    hidden = torch.zeros(batch, rows, columns, dtype=torch.bool)
    for sample in hidden:
        for _ in range(chosen.blocks):
            top = int(torch.randint(rows - height + 1, (), generator=generator))
            left = int(torch.randint(columns - width + 1, (), generator=generator))
            sample[top : top + height, left : left + width] = True
        if bool(sample.all()):  # a token must stay to predict from
            sample.view(-1)[int(torch.randint(rows * columns, (), generator=generator))] = False
    flat = hidden.flatten(1)
    seen_count, hidden_count = int((~flat).sum(dim=1).min()), int(flat.sum(dim=1).min())
    order = torch.rand(flat.shape, generator=generator)
    context = (order + flat).argsort(dim=1)[:, :seen_count].sort(dim=1).values
    target = (order + ~flat).argsort(dim=1)[:, :hidden_count].sort(dim=1).values
    frames = torch.arange(time).view(1, time, 1) * (rows * columns)
    return Masks(*((part.unsqueeze(1) + frames).flatten(1) for part in (context, target)))


def _block(rows: int, columns: int, chosen: MaskSet, generator: torch.Generator) -> tuple[int, int]:
    """Height and width of the blocks in tokens: the area asked for, at an aspect drawn evenly, within the frame."""
    low, high = chosen.aspects
    aspect = low + (high - low) * float(torch.rand((), generator=generator))
    tokens = chosen.area * rows * columns
    height = min(max(round(math.sqrt(tokens * aspect)), 1), rows)
    width = min(max(round(math.sqrt(tokens / aspect)), 1), columns)
    if height == rows and width == columns:
        height, width = (height - 1, width) if rows > 1 else (height, width - 1)
    if height < 1 or width < 1:
        raise ValueError(f"grid must have more than one token in a frame, got {rows} x {columns}")
    return height, width
