"""Frames without actions, from clips and images: one array, and random windows from it. Reads no file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from presage.fields import from_fields
from torch import Tensor
from torch.nn import functional as F

from training.data.episodes import Episodes, digest_of, draw_begins


@dataclass(frozen=True)
class FrameDataset:
    """Clips side by side in one array of frames; an image is a clip of one frame."""

    frames: NDArray[np.uint8]  # [all frames, size, size, 3] RGB, maybe a map of a file
    starts: NDArray[np.int64]  # [clips] where each begins in it
    lengths: NDArray[np.int64]  # [clips] frames of each
    crop_policy: str  # how the frames were made of what a camera gives (`model.preprocessing`)
    source: str  # where they come from, for the model card
    frames_digest: str = ""  # of the frames' content, where whoever made them knows it

    def __post_init__(self) -> None:
        if len(self.starts) == 0 or len(self.starts) != len(self.lengths):
            raise ValueError(
                f"starts and lengths must be one for each clip, got {len(self.starts)}, {len(self.lengths)}"
            )
        if (self.lengths < 1).any() or (self.starts + self.lengths > len(self.frames)).any():
            raise ValueError(f"lengths must be >= 1 and end within {len(self.frames)} frames")

    def identity(self) -> dict[str, str]:
        """What a training on these frames is a training on: it goes on from a checkpoint with the same alone."""
        size = f"{self.frames.shape[1]} x {self.frames.shape[2]}"
        digest = hashlib.sha256(self.lengths.tobytes())
        digest.update(self.frames_digest.encode() or digest_of(self.frames).encode())
        return {"image size": size, "crop policy": self.crop_policy, "footage": digest.hexdigest()}

    @property
    def image_size(self) -> int:
        return int(self.frames.shape[1])

    def draw(self, count: int, frames: int, generator: torch.Generator) -> UInt8[Tensor, "count frames size size 3"]:
        """Random windows of so many frames, none of which leaves its clip, every window as likely as another.

        Raises ValueError where no clip is that long.
        """
        begins = np.maximum(self.lengths - frames + 1, 0)
        if not begins.any():
            raise ValueError(f"frames must be at most {self.lengths.max()}, the longest clip's, got {frames}")
        clips, places = draw_begins(begins, count, generator)
        first = self.starts[clips] + places
        return torch.from_numpy(self.frames[first[:, None] + np.arange(frames)])


def from_episodes(episodes: Episodes) -> FrameDataset:
    """What the camera saw in recorded episodes."""
    rows, frames = episodes.frames.shape[:2]
    lengths = np.array([episodes.steps_of(row) + 1 for row in range(rows)], np.int64)
    return from_fields(
        FrameDataset,
        episodes,
        frames=episodes.frames.reshape(-1, *episodes.frames.shape[2:]),
        starts=np.arange(rows, dtype=np.int64) * frames,
        lengths=lengths,
    )


def random_crop(
    clips: Float[Tensor, "batch 3 frames size size"], smallest: float, generator: torch.Generator
) -> Float[Tensor, "batch 3 frames size size"]:
    """A part of each clip, the same in all of its frames, enlarged to the whole.

    Its area is drawn evenly from `smallest` to 1 of the frame's, its aspect evenly in the logarithm from 3:4 to 4:3.
    """
    if smallest >= 1:
        return clips
    batch, size = len(clips), clips.shape[-1]
    area, aspect, down, right = torch.rand(4, batch, generator=generator)
    ratio = torch.exp((2 * aspect - 1) * np.log(4 / 3))
    scale = smallest + (1 - smallest) * area
    heights = (size * (scale * ratio).sqrt()).round().clamp(1, size).long()
    widths = (size * (scale / ratio).sqrt()).round().clamp(1, size).long()
    parts = []
    for index, (height, width) in enumerate(zip(heights.tolist(), widths.tolist(), strict=True)):
        top, left = int(down[index] * (size - height + 1)), int(right[index] * (size - width + 1))
        part = clips[index, :, :, top : top + height, left : left + width].transpose(0, 1)
        parts.append(F.interpolate(part, size=(size, size), mode="bilinear", align_corners=False).transpose(0, 1))
    return torch.stack(parts)
