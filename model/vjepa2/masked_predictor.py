"""The action-free predictor: from the tokens a mask kept, the latents at the places it hid.

This is the predictor V-JEPA 2 was pretrained with. Predictions under robot actions are `model.vjepa2.action_predictor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.checkpoints.state_dict import CheckpointError, load_strict, refuse_unknown, strip_prefixes
from model.layers.transformer import Block, RotaryStyle, initialize_blocks, rotary_table, table_dtype
from model.vjepa2.config import HARMLESS, image_size


@dataclass(frozen=True)
class MaskedPredictorConfig:
    """Shape of a masked predictor. The defaults are those of the published 2.0 predictors but for `latent_width`."""

    latent_width: int
    """Width of the encoder whose tokens it takes."""
    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_hidden: int = 1536
    grid: tuple[int, int] = (16, 16)
    """Rows and columns of one frame of tokens, by which token numbers become positions."""
    mask_tokens: int = 10
    positions: RotaryStyle = "tiled"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    levels: int = 1
    """2.1: encoder levels concatenated at the input, `latent_width` channels each."""
    output_width: int | None = None
    """2.1: channels predicted, where they are not `latent_width`."""
    context_output: bool = False
    """2.1: context tokens come out too, through a projection of their own."""
    modality_embeddings: bool = False
    """2.1: images and clips carry a learned mark."""

    def __post_init__(self) -> None:
        for field in ("latent_width", "width", "depth", "heads", "mlp_hidden", "mask_tokens", "levels"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")
        if min(self.grid) < 1:
            raise ValueError(f"grid: must be at least 1 x 1, got {self.grid}")

    @classmethod
    def published_2_1(
        cls, latent_width: int, depth: int, levels: int, output_width: int | None = None
    ) -> MaskedPredictorConfig:
        return cls(
            latent_width=latent_width,
            depth=depth,
            grid=(24, 24),
            mask_tokens=8,
            positions="interleaved",
            levels=levels,
            output_width=output_width,
            context_output=True,
            modality_embeddings=True,
        )


class MaskedPredictor(nn.Module):
    """Predict the latents of hidden tokens from those of visible ones (V-JEPA 2, arXiv 2506.09985)."""

    def __init__(self, config: MaskedPredictorConfig) -> None:
        super().__init__()
        self.config = config
        taken, predicted = config.latent_width * config.levels, config.output_width or config.latent_width
        self.predictor_embed: nn.Module = nn.Linear(taken, config.width)
        if config.levels > 1:
            hidden, predicted = config.latent_width, predicted * config.levels
            self.predictor_embed = nn.Sequential(nn.Linear(taken, hidden), nn.GELU(), nn.Linear(hidden, config.width))
        self.mask_tokens = nn.ParameterList(
            [nn.Parameter(torch.zeros(1, 1, config.width)) for _ in range(config.mask_tokens)]
        )
        if config.modality_embeddings:
            self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, config.width))
            self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, config.width))
        self.predictor_blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_hidden, eps=config.layer_norm_eps, qkv_bias=config.qkv_bias)
            for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.predictor_proj = nn.Linear(config.width, predicted)
        if config.context_output:
            self.predictor_proj_context = nn.Linear(config.width, predicted)
        initialize_blocks(self.predictor_blocks)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> MaskedPredictor:
        """Build from a published configuration and its weights, strictly; `CheckpointError` names what does not fit.

        The position table that files of rotary models may carry along (`predictor_pos_embed`) is the one key left out.
        """
        with torch.device("meta"):
            predictor = cls(masked_predictor_config(config))
        weights = strip_prefixes(state_dict)
        weights.pop("predictor_pos_embed", None)
        load_strict(predictor, weights, "masked predictor")
        return predictor

    def forward(
        self,
        context: Float[Tensor, "batch visible latent"],
        context_at: Int[Tensor, "batch visible"],
        target_at: Int[Tensor, "batch hidden"],
        mask_index: int = 1,
        image: bool = False,
    ) -> Float[Tensor, "batch hidden latent"]:
        """Latents at the token numbers `target_at`, given those at `context_at` (numbers run over time, row, column).

        `mask_index` chooses the learned query, modulo their number; `image` chooses the mark of 2.1 models.
        """
        tokens = self._transform(context, context_at, target_at, mask_index, image)
        predicted: Tensor = self.predictor_proj(tokens[:, context.shape[1] :])
        return predicted

    def all_tokens(
        self,
        context: Float[Tensor, "batch visible latent"],
        context_at: Int[Tensor, "batch visible"],
        target_at: Int[Tensor, "batch hidden"],
        mask_index: int = 1,
        image: bool = False,
    ) -> Float[Tensor, "batch tokens latent"]:
        """`forward` for context and targets together, in the order of their token numbers."""
        tokens = self._transform(context, context_at, target_at, mask_index, image)
        visible = context.shape[1]
        project_context = self.predictor_proj_context if self.config.context_output else self.predictor_proj
        predicted = torch.cat([project_context(tokens[:, :visible]), self.predictor_proj(tokens[:, visible:])], dim=1)
        order = torch.cat([context_at, target_at], dim=1).argsort(dim=1)
        return predicted.take_along_dim(order.unsqueeze(-1), dim=1)

    def _transform(
        self, context: Tensor, context_at: Tensor, target_at: Tensor, mask_index: int, image: bool
    ) -> Float[Tensor, "batch tokens width"]:
        """Context tokens, then mask tokens, through the blocks. Attention is blind to order; positions are rotary."""
        if context.shape[:2] != context_at.shape or len(context_at) != len(target_at):
            shapes = f"{list(context.shape)}, {list(context_at.shape)}, {list(target_at.shape)}"
            raise ValueError(f"context, context_at, target_at: must agree in batch and tokens, got {shapes}")
        embedded = self.predictor_embed(context)
        queries = self.mask_tokens[mask_index % self.config.mask_tokens].expand(*target_at.shape, -1)
        tokens = torch.cat([embedded, queries.to(embedded.dtype)], dim=1)
        if self.config.modality_embeddings:
            tokens = tokens + (self.img_mod_embed if image else self.video_mod_embed)
        numbers = torch.cat([context_at, target_at], dim=1)
        rows, columns = self.config.grid
        positions = torch.stack([numbers // (rows * columns), numbers % (rows * columns) // columns, numbers % columns])
        head_dim = self.config.width // self.config.heads
        rotary = rotary_table(positions, head_dim, self.config.positions, table_dtype(tokens.dtype))
        for block in self.predictor_blocks:
            tokens = block(tokens, rotary)
        normed: Tensor = self.predictor_norm(tokens)
        return normed


MASKED_PREDICTOR_SETTINGS = HARMLESS | {
    *("img_size", "patch_size", "num_frames", "tubelet_size", "embed_dim", "predictor_embed_dim", "out_embed_dim"),
    *("depth", "num_heads", "mlp_ratio", "norm_eps", "use_rope", "use_mask_tokens", "num_mask_tokens"),
    *("return_all_tokens", "img_temporal_dim_size", "teacher_embed_dim", "n_output_distillation"),
    *("interpolate_rope", "modality_embedding"),
}


def masked_predictor_config(config: Mapping[str, Any]) -> MaskedPredictorConfig:
    """Our settings for a published configuration.

    The published code numbers tokens on a square grid of as many rows as the image has, whatever its width.
    """
    refuse_unknown(config, MASKED_PREDICTOR_SETTINGS, "masked predictor")
    for name, default in (("use_rope", True), ("use_mask_tokens", True)):
        if not config.get(name, default):
            raise CheckpointError(f"masked predictor: setting {name} must be true, got {config[name]!r}")
    if config.get("interpolate_rope"):  # the released predictors leave positions as they are, whatever the image
        raise CheckpointError(
            f"masked predictor: setting interpolate_rope must be false, got {config['interpolate_rope']!r}"
        )
    width = int(config["predictor_embed_dim"])
    rows = image_size(config)[0] // int(config.get("patch_size", 16))
    later = config.get("img_temporal_dim_size") is not None
    levels = int(config.get("n_output_distillation", 4)) if later else 1
    teacher = config.get("teacher_embed_dim")
    return MaskedPredictorConfig(
        latent_width=int(config["embed_dim"]),
        width=width,
        depth=int(config["depth"]),
        heads=int(config["num_heads"]),
        mlp_hidden=int(width * float(config.get("mlp_ratio", 4.0))),
        grid=(rows, rows),
        mask_tokens=int(config.get("num_mask_tokens", 2)),
        positions="interleaved" if later else "tiled",
        layer_norm_eps=float(config.get("norm_eps", 1e-6)),
        qkv_bias=bool(config.get("qkv_bias", True)),
        levels=levels,
        output_width=config.get("out_embed_dim") or (int(teacher) // levels if teacher else None),
        context_output=later and bool(config.get("return_all_tokens", False)),
        modality_embeddings=later and bool(config.get("modality_embedding", True)),
    )
