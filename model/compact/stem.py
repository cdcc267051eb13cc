"""Pixels to tokens by a few small convolutions: on a CPU, and from little data, better than one large patch."""

from __future__ import annotations

import itertools

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class ConvStem(nn.Module):
    """Stride-2 convolutions down to one token per patch; frames of a tubelet enter side by side as channels.

    With `normed`, a batch norm follows each: how a thing is turned is learned so (decision 13).
    """

    def __init__(self, width: int, patch: int, tubelet: int, base: int = 32, normed: bool = False) -> None:
        super().__init__()
        if patch < 2 or patch & (patch - 1):
            raise ValueError(f"patch must be a power of two for a convolutional stem, got {patch}")
        halvings = patch.bit_length() - 1
        channels = [3 * tubelet, *(min(base << i, width) for i in range(halvings - 1)), width]
        self.tubelet = tubelet
        self.convolutions = nn.ModuleList(
            nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1) for narrow, wide in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(wide) for wide in channels[1:] if normed)

    def forward(self, video: Float[Tensor, "batch 3 time height w"]) -> Float[Tensor, "batch tokens width"]:
        batch, colors, time, height, w = video.shape
        steps = time // self.tubelet
        pairs = video[:, :, : steps * self.tubelet].transpose(1, 2)
        x = pairs.reshape(batch * steps, self.tubelet * colors, height, w)
        for index, convolution in enumerate(self.convolutions):
            x = convolution(x if index == 0 else F.gelu(x))
            if self.norms:
                x = self.norms[index](x)
        return x.flatten(2).transpose(1, 2).reshape(batch, -1, x.shape[1])
