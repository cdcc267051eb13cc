"""The attentive probe: a small head that names what a frozen encoder's latents show (actions, objects)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints.state_dict import load_strict, refuse_unknown, strip_prefixes
from model.interface import Steps, finished
from model.layers.transformer import Block, Mlp, initialize_blocks
from model.vjepa2.config import HARMLESS


@dataclass(frozen=True)
class ProbeConfig:
    """Shape of a probe; `depth` counts the self-attention blocks and the pooling block after them."""

    width: int
    classes: int
    heads: int = 16
    depth: int = 4
    mlp_hidden: int | None = None
    """None: four times the width."""
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in ("width", "classes", "heads", "depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: must be at least 1, got {getattr(self, field)}")


class CrossAttention(nn.Module):
    """Queries look at tokens. Unlike self-attention here it has no output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(
        self, queries: Float[Tensor, "batch queries width"], tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch queries width"]:
        asked = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(asked, keys, values).transpose(1, 2).flatten(2)


class CrossAttentionBlock(nn.Module):
    """Cross-attention, then an MLP, each added to the queries; the tokens are normed, the queries are not."""

    def __init__(self, width: int, heads: int, mlp_hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.xattn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_hidden)

    def forward(
        self, queries: Float[Tensor, "batch queries width"], tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch queries width"]:
        queries = queries + self.xattn(queries, self.norm1(tokens))
        refined: Tensor = queries + self.mlp(self.norm2(queries))
        return refined


class AttentivePooler(nn.Module):
    """Self-attention blocks without positions, then one learned query that gathers what it needs."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        hidden = config.mlp_hidden or 4 * config.width
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, config.width))
        self.cross_attention_block = CrossAttentionBlock(config.width, config.heads, hidden, config.layer_norm_eps)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, hidden, eps=config.layer_norm_eps) for _ in range(config.depth - 1)
        )
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        initialize_blocks(self.blocks)

    def steps(self, tokens: Float[Tensor, "batch tokens width"]) -> Steps[Float[Tensor, "batch width"]]:
        """A block at a time."""
        for block in self.blocks:
            tokens = block(tokens)
            yield
        pooled: Tensor = self.cross_attention_block(self.query_tokens.expand(len(tokens), -1, -1), tokens)
        return pooled.squeeze(1)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        return finished(self.steps(tokens))


class AttentiveProbe(nn.Module):
    """Class scores from an encoder's tokens (V-JEPA 2, arXiv 2506.09985)."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        self.pooler = AttentivePooler(config)
        self.linear = nn.Linear(config.width, config.classes)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> AttentiveProbe:
        """Build from a published configuration and its weights, strictly; `CheckpointError` names what does not fit."""
        known = HARMLESS | {"embed_dim", "num_heads", "depth", "num_classes", "mlp_ratio", "norm_eps", "complete_block"}
        refuse_unknown(config, known, "probe")
        width = int(config["embed_dim"])
        settings = ProbeConfig(
            width=width,
            classes=int(config["num_classes"]),
            heads=int(config["num_heads"]),
            depth=int(config.get("depth", 1)),
            mlp_hidden=int(width * float(config.get("mlp_ratio", 4.0))),
            layer_norm_eps=float(config.get("norm_eps", 1e-5)),
        )
        with torch.device("meta"):
            probe = cls(settings)
        load_strict(probe, strip_prefixes(state_dict), "probe")
        return probe

    def steps(self, tokens: Float[Tensor, "batch tokens width"]) -> Steps[Float[Tensor, "batch classes"]]:
        """What `forward` gives, a block at a time."""
        scores: Tensor = self.linear((yield from self.pooler.steps(tokens)))
        return scores

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch classes"]:
        """Unnormalized scores of every class."""
        return finished(self.steps(tokens))
