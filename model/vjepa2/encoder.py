"""The video encoder: tubelets to tokens, rotary positions, transformer, one latent per tubelet.

One body serves both families: V-JEPA 2 with its published weights and, at a small size and with a stem of its own, the
compact family. Pixels arrive normalized (`model.preprocessing`); what latents mean is the world models' business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints.state_dict import load_strict, strip_prefixes
from model.interface import Steps
from model.layers.transformer import (
    Block,
    RotaryCache,
    RotaryTable,
    grid_positions,
    initialize_blocks,
    rotary_table,
    table_dtype,
)
from model.vjepa2.config import EncoderConfig, Grid, encoder_config
from model.vjepa2.stems import ImagePatchEmbed, PatchEmbed

__all__ = ["Encoder", "EncoderConfig", "Masks"]

Masks = Int[Tensor, "batch kept"] | Sequence[Int[Tensor, "batch kept"]]


class Encoder(nn.Module):
    """Vision transformer over video (V-JEPA 2, arXiv 2506.09985).

    `stem` maps `[batch, 3, time, height, width]` to tokens `[batch, tokens, config.width]` on the grid
    `(time // tubelet, height // patch, width // patch)`, width running fastest; by default the published one.
    """

    def __init__(self, config: EncoderConfig, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.width, config.patch, config.tubelet) if stem is None else stem
        if config.image_stem:
            self.patch_embed_img = PatchEmbed(config.width, config.patch, tubelet=1)
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, config.width))
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, config.width))
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_hidden,
                eps=config.layer_norm_eps,
                qkv_bias=config.qkv_bias,
                fused=config.fused_attention,
            )
            for _ in range(config.depth)
        )
        if config.norm_layers:
            norms = [nn.LayerNorm(config.width, eps=config.layer_norm_eps) for _ in config.norm_layers]
            self.norms_block = nn.ModuleList(norms)
        else:
            self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        if config.sincos_grid is not None:
            self.pos_embed = nn.Parameter(sincos_table(config.sincos_grid, config.width), requires_grad=False)
        initialize_blocks(self.blocks)
        self._tables = RotaryCache()

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Encoder:
        """Build from a published configuration and its weights, strictly; `CheckpointError` names what does not fit.

        The position table that files of rotary models may carry along (`pos_embed`) is the one key left out.
        """
        settings = encoder_config(config)
        with torch.device("meta"):
            images = int(config.get("num_frames", 64)) == 1
            encoder = cls(settings, stem=ImagePatchEmbed(settings.width, settings.patch) if images else None)
        weights = strip_prefixes(state_dict)
        if settings.positions != "sincos":
            weights.pop("pos_embed", None)
        load_strict(encoder, weights, "encoder")
        return encoder

    def grid(self, video: Float[Tensor, "batch 3 time height w"]) -> Grid:
        """Tokens along (time, height, width); frames that do not fill a tubelet are dropped."""
        frames, height, width = video.shape[-3:]
        for name, size in (("height", height), ("width", width)):
            if size < self.config.patch or size % self.config.patch:
                raise ValueError(f"video {name}: must be a positive multiple of {self.config.patch}, got {size}")
        tubelet = 1 if self._sees_image(video) else self.config.tubelet
        return frames // tubelet, height // self.config.patch, width // self.config.patch

    def forward(
        self, video: Float[Tensor, "batch 3 time height w"], masks: Masks | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Encode clips, or images `[batch, 3, height, width]`.

        An image is seen as a still clip of one tubelet, or by the image stem where the model has one. `masks` keeps
        only the tokens it names (`[batch, kept]`); a list of masks gives their encodings one after the other along the
        batch. Tokens run over time, then rows, then columns.
        """
        tokens, rotary = self._embed(video, masks)
        for block in self.blocks:
            tokens = block(tokens, rotary)
        return self._norm(tokens, self.config.depth - 1)

    @torch.no_grad()
    def steps(self, video: Float[Tensor, "batch 3 time height w"]) -> Steps[Float[Tensor, "batch tokens width"]]:
        """What `forward` gives, a block at a time."""
        tokens, rotary = self._embed(video, None)
        for block in self.blocks:
            yield
            tokens = block(tokens, rotary)
        return self._norm(tokens, self.config.depth - 1)

    def layer_outputs(
        self, video: Float[Tensor, "batch 3 time height w"], layers: Sequence[int], masks: Masks | None = None
    ) -> list[Float[Tensor, "batch tokens width"]]:
        """The normed output of the given blocks (0 is the first), in the order of `layers`.

        2.1 encoders have norms for `config.norm_layers` alone; their concatenation is what the 2.1 predictor takes.
        """
        allowed = self.config.norm_layers or tuple(range(self.config.depth))
        for layer in layers:
            if layer not in allowed:
                raise ValueError(f"layers: must be among {allowed}, got {layer}")
        tokens, rotary = self._embed(video, masks)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, rotary)
            if index in layers:
                outputs[index] = self._norm(tokens, index)
        return [outputs[layer] for layer in layers]

    def _norm(self, tokens: Tensor, layer: int) -> Tensor:
        norm = self.norms_block[self.config.norm_layers.index(layer)] if self.config.norm_layers else self.norm
        output: Tensor = norm(tokens)
        return output

    def _sees_image(self, video: Tensor) -> bool:
        """Whether the image stem takes this input: one frame, and a model that has such a stem."""
        return self.config.image_stem and video.shape[2] == 1

    def _embed(self, video: Tensor, masks: Masks | None) -> tuple[Tensor, RotaryTable | None]:
        """Tokens with their positions added (`sincos`) or to be rotated, and only those that `masks` keep."""
        video = as_clip(video, 1 if self.config.image_stem and is_image(video) else self.config.tubelet)
        grid = self.grid(video)
        tokens: Tensor
        if self._sees_image(video):
            tokens = self.patch_embed_img(video) + self.img_mod_embed
        else:
            tokens = self.patch_embed(video)
            if tokens.shape[1:] != (math.prod(grid), self.config.width):
                expected = (math.prod(grid), self.config.width)
                raise ValueError(f"stem: must give {expected} tokens and channels, got {tuple(tokens.shape[1:])}")
            if self.config.image_stem:
                tokens = tokens + self.video_mod_embed
        rotary = None
        if self.config.positions == "sincos":
            tokens = tokens + self._sincos(grid)
        else:
            rotary = self._rotary(grid, tokens)
        if masks is None:
            return tokens, rotary
        kept = [masks] if isinstance(masks, Tensor) else list(masks)
        if rotary is not None:
            rotary = rotary.at(torch.cat(kept))
        return torch.cat([tokens.take_along_dim(mask.unsqueeze(-1), dim=1) for mask in kept]), rotary

    def _rotary(self, grid: Grid, tokens: Tensor) -> RotaryTable:
        style = self.config.positions
        assert style != "sincos"
        dtype = table_dtype(tokens.dtype)

        def build() -> RotaryTable:
            positions = grid_positions(grid, tokens.device)
            if self.config.rotary_grid is not None:
                ends = [max(size - 1, 1) for size in grid[1:]]
                stretch = [1.0, *((self.config.rotary_grid - 1) / end for end in ends)]
                positions = positions * positions.new_tensor(stretch).unsqueeze(-1)
            return rotary_table(positions, self.config.width // self.config.heads, style, dtype)

        return self._tables.get((grid, tokens.device, dtype), build)

    def _sincos(self, grid: Grid) -> Float[Tensor, "1 tokens width"]:
        """The position table for `grid`: cut when only time is shorter, interpolated otherwise."""
        trained = self.config.sincos_grid
        assert trained is not None
        if grid[1:] == trained[1:] and grid[0] <= trained[0]:
            return self.pos_embed[:, : math.prod(grid)]
        volume = self.pos_embed.view(1, *trained, -1).movedim(-1, 1)
        return F.interpolate(volume, size=grid, mode="trilinear").flatten(2).transpose(1, 2)


def is_image(video: Tensor) -> bool:
    """Whether the input is single images: no time axis, or one frame."""
    return video.ndim == 4 or video.shape[2] == 1


def as_clip(video: Tensor, tubelet: int) -> Float[Tensor, "batch 3 time height w"]:
    """Check a clip's shape; an image, or a clip of one frame, is repeated to fill one tubelet."""
    if video.ndim not in (4, 5) or video.shape[1] != 3:
        raise ValueError(f"video: must be [batch, 3, time, height, width], got {list(video.shape)}")
    if video.ndim == 4:
        video = video.unsqueeze(2)
    if video.shape[2] == 1:
        video = video.expand(-1, -1, tubelet, -1, -1)
    if video.shape[2] < tubelet:
        raise ValueError(f"video frames: must be 1 or at least {tubelet}, got {video.shape[2]}")
    return video


def sincos_table(grid: Grid, width: int) -> Float[Tensor, "1 tokens width"]:
    """Sine-cosine positions with a third of the channels for each axis, sines before cosines."""
    part = 2 * math.ceil(width / 6)
    frequencies = 10000.0 ** -(torch.arange(part // 2, dtype=torch.float64) / (part / 2))
    angles = grid_positions(grid).unsqueeze(-1) * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return table.movedim(0, 1).flatten(1)[:, :width].float().unsqueeze(0)
