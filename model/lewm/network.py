"""LeWM's network: images to latents, action blocks to embeddings, and the predictor that joins them (arXiv 2603.19312).

Parameter names are Presage's; `published.py` maps those of released files. Fast rollouts are in `rollout.py`: what is
here is the plain form, whose numbers the published code's outputs pin.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.row_linear import RowLinear
from model.layers.transformer import Block
from model.lewm.config import LeWMConfig

BLOCK_EPS = 1e-6  # of a predictor block's own two norms, which have no parameters
INNER_EPS = 1e-5  # of the norms with parameters that attention and MLP begin with, and of the last one


class ImageEncoder(nn.Module):
    """A ViT whose class token, after the last norm, stands for the image."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.patch_embed = nn.Conv2d(3, config.width, kernel_size=config.patch, stride=config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_hidden, eps=config.eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch tokens width"]:
        """Normalised tokens, the class token first; sides need not be multiples of the patch, the rest is cut."""
        patches = self.patch_embed(images)
        rows, columns = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.positions(rows, columns)
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.norm(x)
        return output

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 tokens width"]:
        """The position table, interpolated (bicubic) where the grid is not the network's own."""
        if (rows, columns) == (self.grid, self.grid):
            return self.pos_embed
        table = self.pos_embed[:, 1:].reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], table.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class NormedMlp(nn.Module):
    """Linear, batch norm with running statistics, GELU, linear: the head of the encoder and that of the predictor."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = RowLinear(width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = RowLinear(hidden, out)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        hidden = self.fc1(x)
        flat = hidden.flatten(0, -2)
        flat = F.batch_norm(flat, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        output: Tensor = self.fc2(F.gelu(flat).view(hidden.shape))
        return output


class ActionEmbedder(nn.Module):
    """An action block in network units to the embedding that conditions a prediction."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.smooth = RowLinear(config.action_width, config.action_smoothed)
        self.fc1 = RowLinear(config.action_smoothed, config.action_hidden)
        self.fc2 = RowLinear(config.action_hidden, config.action_embedding)

    def forward(self, blocks: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch width"]:
        output: Tensor = self.fc2(F.silu(self.fc1(self.smooth(blocks))))
        return output


class ConditionedAttention(nn.Module):
    """Causal attention over the window, with a norm of its own; heads x head size need not be the width."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.qkv = RowLinear(width, 3 * heads * head_dim, bias=False)
        self.proj = nn.Identity() if heads == 1 and head_dim == width else RowLinear(heads * head_dim, width)

    def forward(self, x: Float[Tensor, "batch steps width"]) -> Float[Tensor, "batch steps width"]:
        queries, keys, values = self.heads_of(self.qkv(self.norm(x)))
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        output: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output

    def heads_of(self, projected: Float[Tensor, "batch steps three_widths"]) -> tuple[Tensor, ...]:
        """Queries, keys and values, each [batch, heads, steps, head_dim]."""
        split = projected.view(*projected.shape[:2], 3, self.heads, self.head_dim)
        return split.permute(2, 0, 3, 1, 4).unbind(0)


class ConditionedMlp(nn.Module):
    """Norm, linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.fc1 = RowLinear(width, hidden)
        self.fc2 = RowLinear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        output: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return output


class ConditionedBlock(nn.Module):
    """A transformer block whose two norms are shifted, scaled and gated by the action of the same step (AdaLN)."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        width = config.predictor_width
        self.attn = ConditionedAttention(width, config.predictor_heads, config.head_dim)
        self.mlp = ConditionedMlp(width, config.predictor_mlp)
        self.modulation = RowLinear(width, 6 * width)

    def forward(
        self, x: Float[Tensor, "batch steps width"], condition: Float[Tensor, "batch steps width"]
    ) -> Float[Tensor, "batch steps width"]:
        """`condition` is the SiLU of the action's embedding."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attn(plain_norm(x) * (1 + scale1) + shift1)
        output: Tensor = x + gate2 * self.mlp(plain_norm(x) * (1 + scale2) + shift2)
        return output


class Predictor(nn.Module):
    """Latents and the action blocks that leave them, to the latents after each block; causal over a short window."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        width = config.predictor_width
        self.pos_embed = nn.Parameter(torch.zeros(1, config.window, config.latent))
        self.input_proj = _projection(config.latent, width)
        self.action_proj = _projection(config.latent, width)
        self.blocks = nn.ModuleList(ConditionedBlock(config) for _ in range(config.predictor_depth))
        self.norm = nn.LayerNorm(width, eps=INNER_EPS)
        self.output_proj = _projection(width, config.predictor_output)

    def forward(
        self, latents: Float[Tensor, "batch steps latent"], embedded: Float[Tensor, "batch steps width"]
    ) -> Float[Tensor, "batch steps out"]:
        """Positions count from 0 within the window given, whose length is at most the network's."""
        x = self.input_proj(latents + self.pos_embed[:, : latents.shape[1]])
        condition = F.silu(self.action_proj(embedded))
        for block in self.blocks:
            x = block(x, condition)
        output: Tensor = self.output_proj(self.norm(x))
        return output


class LeWM(nn.Module):
    """The whole model. Images and action blocks come in network units."""

    def __init__(self, config: LeWMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ImageEncoder(config)
        self.projector = NormedMlp(config.width, config.projector_hidden, config.latent)
        self.action_embedder = ActionEmbedder(config)
        self.predictor = Predictor(config)
        self.prediction_head = NormedMlp(config.predictor_output, config.prediction_hidden, config.latent)

    def encode(self, images: Float[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch latent"]:
        """One latent per image."""
        latent: Tensor = self.projector(self.encoder(images)[:, 0])
        return latent

    def predict(
        self, latents: Float[Tensor, "batch steps latent"], embedded: Float[Tensor, "batch steps width"]
    ) -> Float[Tensor, "batch steps latent"]:
        """The latent after each of up to `window` steps; `embedded` are `action_embedder`'s."""
        predicted: Tensor = self.prediction_head(self.predictor(latents, embedded))
        return predicted

    def rollout(
        self,
        latents: Float[Tensor, "batch seen latent"],
        past: Float[Tensor, "batch seen_less_one block"],
        blocks: Float[Tensor, "batch horizon block"],
    ) -> Float[Tensor, "batch horizon latent"]:
        """Predictions after each of `blocks`, one at a time, each from the newest `window` latents.

        `latents` are what was seen, oldest first; `past` the blocks executed between them. The loop as published, in
        which nothing is computed once that could be: `rollout.py` is the fast one, and is held to this.
        """
        embedded = self.action_embedder(torch.cat([past, blocks], dim=1))
        window, seen = self.config.window, latents.shape[1]
        for step in range(blocks.shape[1]):
            newest = slice(max(0, seen + step - window), seen + step)
            latents = torch.cat([latents, self.predict(latents[:, newest], embedded[:, newest])[:, -1:]], dim=1)
        return latents[:, seen:]


def plain_norm(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """A predictor block's own norm: without parameters, they come from the action."""
    return F.layer_norm(x, x.shape[-1:], eps=BLOCK_EPS)


def _projection(width: int, out: int) -> nn.Module:
    return nn.Identity() if width == out else RowLinear(width, out)
