"""From pixels to tokens: the published patch embeddings. Other stems belong to the families that use them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Tubelets to tokens by one 3-D convolution whose stride is its kernel."""

    def __init__(self, width: int, patch: int, tubelet: int) -> None:
        super().__init__()
        size = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel_size=size, stride=size)

    def forward(self, video: Float[Tensor, "batch 3 time height w"]) -> Float[Tensor, "batch tokens width"]:
        tokens: Tensor = self.proj(video)
        return tokens.flatten(2).transpose(1, 2)


class ImagePatchEmbed(nn.Module):
    """Patches of single images to tokens, for models built for one frame (2-D convolution weights)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, video: Float[Tensor, "batch 3 1 height w"]) -> Float[Tensor, "batch tokens width"]:
        tokens: Tensor = self.proj(video.squeeze(2))
        return tokens.flatten(2).transpose(1, 2)
