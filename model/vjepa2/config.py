"""Shapes of the encoders: our settings, the published sizes, and how published configurations translate.

Nothing here computes; the network is `model.vjepa2.encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from model.checkpoints.state_dict import CheckpointError, refuse_unknown

Positions = Literal["tiled", "interleaved", "sincos"]
Grid = tuple[int, int, int]
"""Tokens along (time, height, width)."""

HARMLESS = frozenset(
    {
        *("qkv_bias", "use_sdpa", "in_chans", "init_std", "init_type", "uniform_power", "zero_init_mask_tokens"),
        *("handle_nonsquare_inputs", "use_activation_checkpointing", "wide_silu", "wide_SiLU"),
    }
)
"""Published settings that leave a loaded network's numbers alone, or that this code always reads."""


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
    """Grid of the sine-cosine table; required by `sincos`, unused otherwise."""
    rotary_grid: int | None = None
    """2.1: rows and columns are stretched to `0..rotary_grid-1` whatever the image size."""
    image_stem: bool = False
    """2.1: single images have a patch embedding of their own, and images and clips carry a learned mark."""
    norm_layers: tuple[int, ...] = ()
    """2.1: blocks followed by an output norm of their own, ending with the last block; empty: one final norm."""

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
        if self.norm_layers and self.norm_layers[-1] != self.depth - 1:
            raise ValueError(f"norm_layers: must end with the last block {self.depth - 1}, got {self.norm_layers}")

    @classmethod
    def vit_large(cls) -> EncoderConfig:
        return cls(width=1024, depth=24, heads=16, mlp_hidden=4096)

    @classmethod
    def vit_huge(cls) -> EncoderConfig:
        return cls(width=1280, depth=32, heads=16, mlp_hidden=5120)

    @classmethod
    def vit_giant(cls) -> EncoderConfig:
        return cls(width=1408, depth=40, heads=22, mlp_hidden=6144)

    @classmethod
    def vit_base_2_1(cls) -> EncoderConfig:
        return version_2_1(cls(width=768, depth=12, heads=12, mlp_hidden=3072))

    @classmethod
    def vit_large_2_1(cls) -> EncoderConfig:
        return version_2_1(cls.vit_large())

    @classmethod
    def vit_giant_2_1(cls) -> EncoderConfig:
        return version_2_1(cls.vit_giant())

    @classmethod
    def vit_gigantic_2_1(cls) -> EncoderConfig:
        return version_2_1(cls(width=1664, depth=48, heads=26, mlp_hidden=8192))


OUTPUT_NORMS_2_1 = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}
"""Blocks that 2.1 encoders read their levels from, by depth."""


def version_2_1(config: EncoderConfig, *, stretched: bool = True) -> EncoderConfig:
    """The 2.1 variant of a 2.0 encoder: true rotations, image stem, four output norms.

    `stretched` puts every image on the grid of 256 pixels, as the released encoders do (`interpolate_rope`).
    """
    if config.depth not in OUTPUT_NORMS_2_1:
        raise ValueError(f"depth: must be one of {sorted(OUTPUT_NORMS_2_1)} for 2.1, got {config.depth}")
    return replace(
        config,
        positions="interleaved",
        rotary_grid=256 // config.patch if stretched else None,
        image_stem=True,
        norm_layers=OUTPUT_NORMS_2_1[config.depth],
    )


ENCODER_SETTINGS = HARMLESS | {
    *("img_size", "patch_size", "num_frames", "tubelet_size", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("use_rope", "norm_eps", "img_temporal_dim_size", "interpolate_rope", "modality_embedding"),
    "n_output_distillation",
}


def encoder_config(config: Mapping[str, Any]) -> EncoderConfig:
    """Our settings for a published configuration (its names: `embed_dim`, `num_heads`, `mlp_ratio`, ...).

    A configuration with `img_temporal_dim_size` is a 2.1 encoder. `CheckpointError` for settings that would change the
    numbers in a way this code does not know.
    """
    refuse_unknown(config, ENCODER_SETTINGS, "encoder")
    later = config.get("img_temporal_dim_size") is not None
    _require(later, config)
    width, patch = int(config["embed_dim"]), int(config.get("patch_size", 16))
    frames = int(config.get("num_frames", 64))
    tubelet = 1 if frames == 1 else int(config.get("tubelet_size", 2))
    rope = bool(config.get("use_rope", True))
    height, wide = image_size(config)
    settings = EncoderConfig(
        width=width,
        depth=int(config["depth"]),
        heads=int(config["num_heads"]),
        mlp_hidden=int(width * float(config.get("mlp_ratio", 4.0))),
        patch=patch,
        tubelet=tubelet,
        positions="tiled" if rope else "sincos",
        layer_norm_eps=float(config.get("norm_eps", 1e-6)),
        qkv_bias=bool(config.get("qkv_bias", True)),
        sincos_grid=None if rope else (frames // tubelet, height // patch, wide // patch),
    )
    return version_2_1(settings, stretched=bool(config.get("interpolate_rope", False))) if later else settings


def _require(later: bool, config: Mapping[str, Any]) -> None:
    """Refuse what only one of the two versions has, and what the released 2.1 code has in one form alone."""
    if not later:
        for name in ("interpolate_rope", "n_output_distillation"):
            if config.get(name):
                raise CheckpointError(f"encoder: setting {name} is of 2.1 encoders alone, got {config[name]!r}")
        return
    wanted = {"img_temporal_dim_size": 1, "use_rope": True, "modality_embedding": True}
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"encoder: setting {name} must be {value} for a 2.1 encoder, got {config[name]!r}")
    if int(config.get("num_frames", 64)) == 1:
        raise CheckpointError("encoder: setting num_frames must be at least 2 for a 2.1 encoder, got 1")


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width in pixels of a published configuration's `img_size`, which may be one number."""
    size = config.get("img_size", 256)
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
