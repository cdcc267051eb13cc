"""The video encoder: tubelets to tokens, rotary positions, transformer, one latent per tubelet.

One body serves both families: V-JEPA 2 with its published weights and, at a small size and with a stem of its own, the
compact family. Pixels arrive normalised (`model.observation`); what latents mean is the world models' business.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers import Block, RotaryTable, grid_positions, initialise_blocks, rotary_table
from model.vjepa2.reference import load_strict, refuse_unknown, strip_prefixes

Positions = Literal["tiled", "interleaved", "sincos"]
Grid = tuple[int, int, int]
Masks = Int[Tensor, "batch kept"] | Sequence[Int[Tensor, "batch kept"]]
TABLES_KEPT = 8
KNOWN_SETTINGS = frozenset(
    {
        *("img_size", "patch_size", "num_frames", "tubelet_size", "embed_dim", "depth", "num_heads", "mlp_ratio"),
        *("qkv_bias", "use_rope", "norm_eps", "uniform_power", "use_sdpa"),
        *("in_chans", "init_std", "handle_nonsquare_inputs", "use_activation_checkpointing"),
    }
)


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder; any clip length and image size fit the same weights (except with `sincos` positions)."""

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    patch: int = 16
    """Side of a patch in pixels."""
    tubelet: int = 2
    """Frames per token."""
    positions: Positions = "tiled"
    """`tiled`: rotary as the 2.0 weights were trained; `interleaved`: true rotations (2.1, compact); `sincos`."""
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    fused_attention: bool = True
    sincos_grid: Grid | None = None
    """Grid (depth, height, width) in tokens of the sine-cosine table; required by `sincos`, unused otherwise."""

    def __post_init__(self) -> None:
        for field in ("width", "depth", "heads", "mlp_hidden", "patch", "tubelet"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"heads: must cut width {self.width} into even parts, got {self.heads}")
        if self.positions not in ("tiled", "interleaved", "sincos"):
            raise ValueError(f"positions: must be tiled, interleaved or sincos, got {self.positions!r}")
        if (self.positions == "sincos") != (self.sincos_grid is not None):
            raise ValueError(f"sincos_grid: must be given exactly with sincos positions, got {self.sincos_grid}")

    @classmethod
    def vit_large(cls) -> EncoderConfig:
        return cls(width=1024, depth=24, heads=16, mlp_hidden=4096)

    @classmethod
    def vit_huge(cls) -> EncoderConfig:
        return cls(width=1280, depth=32, heads=16, mlp_hidden=5120)

    @classmethod
    def vit_giant(cls) -> EncoderConfig:
        return cls(width=1408, depth=40, heads=22, mlp_hidden=6144)


class PatchEmbed(nn.Module):
    """Tubelets to tokens by one 3-D convolution with stride equal to its kernel: the published stem."""

    def __init__(self, width: int, patch: int, tubelet: int) -> None:
        super().__init__()
        size = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel_size=size, stride=size)

    def forward(self, video: Float[Tensor, "batch 3 time height w"]) -> Float[Tensor, "batch tokens width"]:
        tokens: Tensor = self.proj(video)
        return tokens.flatten(2).transpose(1, 2)


class ImagePatchEmbed(nn.Module):
    """Patches of single images to tokens: the stem of models trained on images alone (2-D convolution weights)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, video: Float[Tensor, "batch 3 1 height w"]) -> Float[Tensor, "batch tokens width"]:
        tokens: Tensor = self.proj(video.squeeze(2))
        return tokens.flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Vision transformer over video (V-JEPA 2, arXiv 2506.09985).

    `stem` maps `[batch, 3, time, height, width]` to tokens `[batch, tokens, config.width]` on the grid
    `(time // tubelet, height // patch, width // patch)`, width running fastest; by default the published one.
    """

    def __init__(self, config: EncoderConfig, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.width, config.patch, config.tubelet) if stem is None else stem
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
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        if config.sincos_grid is not None:
            self.pos_embed = nn.Parameter(sincos_table(config.sincos_grid, config.width), requires_grad=False)
        initialise_blocks(self.blocks)
        self._tables: OrderedDict[tuple[Grid, torch.device, torch.dtype], RotaryTable] = OrderedDict()

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Encoder:
        """Build from a published configuration and its weights, strictly; `CheckpointError` names what does not fit."""
        settings = encoder_config(config)
        with torch.device("meta"):
            images = int(config.get("num_frames", 2)) == 1
            encoder = cls(settings, stem=ImagePatchEmbed(settings.width, settings.patch) if images else None)
        load_strict(encoder, strip_prefixes(state_dict), "encoder")
        return encoder

    def grid(self, video: Float[Tensor, "batch 3 time height w"]) -> Grid:
        """Tokens along (time, height, width); frames that do not fill a tubelet are dropped."""
        frames, height, width = video.shape[-3:]
        for name, size in (("height", height), ("width", width)):
            if size < self.config.patch or size % self.config.patch:
                raise ValueError(f"video {name}: must be a positive multiple of {self.config.patch}, got {size}")
        return frames // self.config.tubelet, height // self.config.patch, width // self.config.patch

    def forward(
        self, video: Float[Tensor, "batch 3 time height w"], masks: Masks | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Encode clips, or images `[batch, 3, height, width]` (a still pair, as the published models see an image).

        `masks` keeps only the tokens it names (`[batch, kept]`); a list of masks gives their encodings one after the
        other along the batch. Tokens run over time, then rows, then columns.
        """
        tokens, rotary = self._embed(video, masks)
        for block in self.blocks:
            tokens = block(tokens, rotary)
        output: Tensor = self.norm(tokens)
        return output

    def layer_outputs(
        self, video: Float[Tensor, "batch 3 time height w"], layers: Sequence[int]
    ) -> list[Float[Tensor, "batch tokens width"]]:
        """The normed output of the given blocks (0 is the first), in the order of `layers`."""
        for layer in layers:
            if not 0 <= layer < self.config.depth:
                raise ValueError(f"layers: must lie in 0..{self.config.depth - 1}, got {layer}")
        tokens, rotary = self._embed(video, None)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, rotary)
            if index in layers:
                outputs[index] = self.norm(tokens)
        return [outputs[layer] for layer in layers]

    def _embed(self, video: Tensor, masks: Masks | None) -> tuple[Tensor, RotaryTable | None]:
        """Tokens with their positions added (`sincos`) or to be rotated, and only those that `masks` keep."""
        video = as_clip(video, self.config.tubelet)
        grid = self.grid(video)
        tokens: Tensor = self.patch_embed(video)
        if tokens.shape[1:] != (math.prod(grid), self.config.width):
            raise ValueError(f"stem: must give {(math.prod(grid), self.config.width)}, got {tuple(tokens.shape[1:])}")
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
        """The grid's table, computed once and kept: rebuilding it per call costs more than attention on a CPU."""
        assert self.config.positions != "sincos"
        dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        key = (grid, tokens.device, dtype)
        if key not in self._tables:
            with torch.inference_mode(False), torch.no_grad():
                positions = grid_positions(grid, tokens.device)
                table = rotary_table(positions, self.config.width // self.config.heads, self.config.positions, dtype)
            self._tables[key] = table
            while len(self._tables) > TABLES_KEPT:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def _sincos(self, grid: Grid) -> Float[Tensor, "1 tokens width"]:
        """The position table for `grid`: cut when only time is shorter, interpolated otherwise."""
        trained = self.config.sincos_grid
        assert trained is not None
        if grid[1:] == trained[1:] and grid[0] <= trained[0]:
            return self.pos_embed[:, : math.prod(grid)]
        volume = self.pos_embed.view(1, *trained, -1).movedim(-1, 1)
        return F.interpolate(volume, size=grid, mode="trilinear").flatten(2).transpose(1, 2)


def as_clip(video: Tensor, tubelet: int) -> Float[Tensor, "batch 3 time height w"]:
    """Check a clip's shape; an image, or a clip of one frame, is repeated to fill one tubelet."""
    if video.ndim == 4:
        video = video.unsqueeze(2)
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"video: must be [batch, 3, time, height, width], got {list(video.shape)}")
    if video.shape[2] == 1 and tubelet > 1:
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


def encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Our settings for a published configuration (its names: `embed_dim`, `num_heads`, `mlp_ratio`, ...)."""
    refuse_unknown(config, KNOWN_SETTINGS, "encoder")
    width, patch = int(config["embed_dim"]), int(config.get("patch_size", 16))
    frames = int(config.get("num_frames", 64))
    tubelet = 1 if frames == 1 else int(config.get("tubelet_size", 2))
    rope = bool(config.get("use_rope", True))
    side = config.get("img_size", 256)
    height, wide = (side, side) if isinstance(side, int) else side
    return EncoderConfig(
        width=width,
        depth=int(config["depth"]),
        heads=int(config["num_heads"]),
        mlp_hidden=int(width * float(config.get("mlp_ratio", 4.0))),
        patch=patch,
        tubelet=tubelet,
        positions="tiled" if rope else "sincos",
        layer_norm_eps=float(config.get("norm_eps", 1e-6)),
        qkv_bias=bool(config.get("qkv_bias", True)),
        sincos_grid=None if rope else (frames // tubelet, int(height) // patch, int(wide) // patch),
    )
