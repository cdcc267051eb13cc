"""The DINOv2 image encoder with the official arithmetic: patches, a class token, registers, scaled residuals.

Pixels arrive normalized (`model.dino_wm.world_model`). Official files and Hugging Face's hold the same numbers under
different names; their codes interpolate positions differently, and this is the official one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints.state_dict import CheckpointError, load_strict, strip_prefixes
from model.dino_wm.config import DinoConfig, dino_config
from model.layers.transformer import Attention, Mlp
from model.vjepa2.stems import ImagePatchEmbed

UNUSED = ("mask_token",)
"""What files carry for training, and no encoding uses."""


@dataclass(frozen=True)
class DinoFeatures:
    """What an encoder says of images, after its final norm."""

    summary: Float[Tensor, "batch width"]
    registers: Float[Tensor, "batch registers width"]
    patches: Float[Tensor, "batch tokens width"]


class LayerScale(nn.Module):
    """A learned factor for every channel of a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return x * self.gamma


class GatedMlp(nn.Module):
    """SwiGLU: one half of a projection, through SiLU, gates the other."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        gate, values = self.w12(x).chunk(2, dim=-1)
        output: Tensor = self.w3(F.silu(gate) * values)
        return output


class ScaledBlock(nn.Module):
    """A pre-norm block whose two residuals are scaled channel by channel."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, config.heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = GatedMlp(width, config.mlp_hidden) if config.gated_mlp else Mlp(width, config.mlp_hidden)
        self.ls2 = LayerScale(width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        output: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return output


class DinoEncoder(nn.Module):
    """DINOv2 (arXiv 2304.07193), with or without registers (arXiv 2309.16588)."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width))
        self.patch_embed = ImagePatchEmbed(width, config.patch)
        self.blocks = nn.ModuleList(ScaledBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> DinoEncoder:
        """Build from a published configuration and its weights, official or Hugging Face's, strictly.

        `CheckpointError` names what does not fit. The mask token of training is the one key left out.
        """
        with torch.device("meta"):
            encoder = cls(dino_config(config))
        load_strict(encoder, official_names(strip_prefixes(state_dict)), "DINOv2 encoder")
        return encoder

    def forward(self, images: Float[Tensor, "batch 3 height w"]) -> Float[Tensor, "batch tokens width"]:
        """Normed patch tokens, over rows, then columns."""
        return self.features(images).patches

    def features(self, images: Float[Tensor, "batch 3 height w"]) -> DinoFeatures:
        """Everything an encoder says of images. ValueError where their sides are no multiples of the patch."""
        rows, columns = self.grid(images)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images.unsqueeze(2))], dim=1)
        tokens = tokens + self.positions(rows, columns)
        count = self.config.registers
        if count:
            registers = self.register_tokens.expand(len(images), -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return DinoFeatures(tokens[:, 0], tokens[:, 1 : 1 + count], tokens[:, 1 + count :])

    def grid(self, images: Float[Tensor, "batch 3 height w"]) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch = self.config.patch
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: must be [batch, 3, height, width], got {list(images.shape)}")
        for name, size in zip(("height", "width"), images.shape[2:], strict=True):
            if size < patch or size % patch:
                raise ValueError(f"images {name}: must be a positive multiple of {patch}, got {size}")
        return images.shape[2] // patch, images.shape[3] // patch

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 tokens width"]:
        """The position table for a grid: as it is for the one it was trained on, else interpolated in float32."""
        trained = self.config.grid
        if rows == columns == trained:
            return self.pos_embed
        table = self.pos_embed.float()
        picture = table[:, 1:].view(1, trained, trained, -1).permute(0, 3, 1, 2)
        offset = self.config.offset
        scaled = F.interpolate(
            picture,
            size=None if offset else (rows, columns),
            # official: numbers a little too large, so that rounding never loses a row
            scale_factor=((rows + offset) / trained, (columns + offset) / trained) if offset else None,
            mode="bicubic",
            antialias=self.config.antialias,
        )
        assert scaled.shape[-2:] == (rows, columns)
        return torch.cat([table[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1).to(self.pos_embed.dtype)


_RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.w3."),
    (r"^encoder\.layer\.(\d+)\.(norm1|norm2|mlp)\.", r"blocks.\1.\2."),
)


def official_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the official names, without what no encoding uses; Hugging Face's are renamed and joined.

    `CheckpointError` names a key of Hugging Face's that is unknown, or whose companions are missing.
    """
    weights = {key.removeprefix("dinov2_with_registers.").removeprefix("dinov2."): w for key, w in weights.items()}
    if "embeddings.cls_token" in weights:
        weights = _joined({_official(key): tensor for key, tensor in weights.items()})
    return {_unchunked(key): tensor for key, tensor in weights.items() if key not in UNUSED}


def _unchunked(key: str) -> str:
    """Training in chunks of blocks leaves `blocks.CHUNK.BLOCK.`; the block's number counts through all of them."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key)


def _official(key: str) -> str:
    for pattern, replacement in _RENAMED:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    raise CheckpointError(f"key {key} is unknown (not a DINOv2 encoder in Hugging Face's layout)")


def _joined(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values as the one projection they are in official files."""
    joined: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        found = re.fullmatch(r"(blocks\.\d+\.attn)\.(query|key|value)\.(weight|bias)", key)
        if found is None:
            joined[key] = tensor
            continue
        parts = [f"{found[1]}.{part}.{found[3]}" for part in ("query", "key", "value")]
        missing = [part for part in parts if part not in weights]
        if missing:
            raise CheckpointError(f"key {missing[0]} is missing beside {key}")
        joined[f"{found[1]}.qkv.{found[3]}"] = torch.cat([weights[part] for part in parts])
    return joined
