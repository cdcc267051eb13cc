"""Parts of transformers: rotary positions, attention, MLP, pre-norm block.

Every network of this package is built from these. Nothing here knows a model family, an image or a file.
Parameter names (`qkv`, `proj`, `fc1`, `fc2`, `norm1`, `norm2`) are those of the published V-JEPA 2 weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.blocked_attention import attention_in_pieces, favors_pieces, rotate_in_pieces
from model.layers.int8 import Int8Linear
from model.layers.prepacked_linear import PackedLinear
from model.layers.row_linear import RowLinear

RotaryStyle = Literal["tiled", "interleaved"]
KeyValue = tuple[Tensor, Tensor]
"""Keys and values of attention, each `[batch, heads, tokens, head_dim]`, keys already rotated."""


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and signed sines for every token and channel of a head, in float32 or float64.

    Shapes are `[tokens, head_dim]`, or `[batch, tokens, head_dim]` when samples differ in their positions.
    The sine is negated on even channels, so that applying the table is two multiplications and an addition.
    """

    cos: Float[Tensor, "*batch tokens head_dim"]
    sin: Float[Tensor, "*batch tokens head_dim"]

    def at(self, tokens: Int[Tensor, "*batch kept"]) -> RotaryTable:
        """The rows of the given tokens; a `[batch, kept]` index gives a table per sample."""
        return RotaryTable(self.cos[tokens], self.sin[tokens])

    def rotate(self, heads: Float[Tensor, "batch tokens *heads head_dim"]) -> Tensor:
        """Rotate queries or keys `[batch, tokens, ..., head_dim]`; computed in the table's precision or better."""
        extra = heads.ndim - 3
        shape = (*self.cos.shape[:-1], *(1,) * extra, self.cos.shape[-1])
        odd = heads.shape[-1] % 2  # then the last channel is one that is left over
        pairs: Tensor = heads[..., : heads.shape[-1] - odd]
        swapped = pairs.reshape(*pairs.shape[:-1], -1, 2).flip(-1).flatten(-2)
        swapped = F.pad(swapped, (0, odd)) if odd else swapped
        return torch.addcmul(heads * self.cos.view(shape), swapped, self.sin.view(shape)).to(heads.dtype)


def grid_positions(grid: tuple[int, int, int], device: torch.device | None = None) -> Float[Tensor, "3 tokens"]:
    """Depth, row and column of every token of a `(depth, height, width)` grid, width running fastest, as float64."""
    axes = [torch.arange(size, device=device, dtype=torch.float64) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def rotary_table(
    positions: Float[Tensor, "3 ..."], head_dim: int, style: RotaryStyle, dtype: torch.dtype
) -> RotaryTable:
    """Rotary table of tokens at the given (depth, row, column) positions, which may be fractional.

    A head is cut into three equal even parts, one per axis; the channels left over are not rotated. Part width d has
    frequencies `10000^(-2i/d)`. `interleaved` gives both channels of a pair the same frequency, which is a rotation;
    `tiled` repeats the list of frequencies end to end over the same interleaved pairs, which is not, but is what the
    V-JEPA 2.0 weights were trained with. Angles are always computed in float64.
    """
    half = (head_dim // 3) // 2
    frequencies = 10000.0 ** -(torch.arange(half, device=positions.device, dtype=torch.float64) / max(half, 1))
    spread = frequencies.repeat(2) if style == "tiled" else frequencies.repeat_interleave(2)
    angles = torch.cat([axis.double().unsqueeze(-1) * spread for axis in positions], dim=-1)
    angles = F.pad(angles, (0, head_dim - angles.shape[-1]))
    sign = 2.0 * (torch.arange(head_dim, device=positions.device, dtype=torch.float64) % 2) - 1.0
    return RotaryTable(angles.cos().to(dtype), (angles.sin() * sign).to(dtype))


class RotaryCache:
    """The tables a network used last, so that each is computed once per shape of its input."""

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._tables: OrderedDict[Hashable, RotaryTable] = OrderedDict()

    def get(self, key: Hashable, build: Callable[[], RotaryTable]) -> RotaryTable:
        """The table kept under `key`, or `build()`, kept from now on in place of the one unused for longest."""
        if key not in self._tables:
            with torch.inference_mode(False), torch.no_grad():  # a table made while serving must also do for training
                self._tables[key] = build()
            if len(self._tables) > self._limit:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]


def table_dtype(activations: torch.dtype) -> torch.dtype:
    """Precision of rotary tables for activations of a type: float64 for float64, float32 for all others."""
    return torch.float64 if activations == torch.float64 else torch.float32


class Attention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True, fused: bool = True) -> None:
        """`fused=False` writes the softmax out, whose backward is the faster one on a CPU at tiny sizes."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width: must be heads x a head size, got width {width} with {heads} heads")
        self.heads = heads
        self.head_dim = width // heads
        self.fused = fused
        self.qkv = RowLinear(width, 3 * width, bias=qkv_bias)
        self.proj = RowLinear(width, width)

    def project(
        self, x: Float[Tensor, "batch tokens width"], rotary: RotaryTable | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both rotated) and values, each `[batch, heads, tokens, head_dim]`."""
        return self.heads_of(self.qkv(x), rotary)

    def heads_of(
        self, projected: Float[Tensor, "batch tokens three_widths"], rotary: RotaryTable | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same, of what `qkv` gave."""
        qkv = projected.view(*projected.shape[:2], 3, self.heads, self.head_dim)
        if rotary is None:
            queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        elif self.fused and rotary.cos.ndim == 2 and self.head_dim % 2 == 0 and favors_pieces(qkv.shape[1], qkv):
            queries, keys, values = qkv.permute(2, 0, 3, 1, 4).contiguous().unbind(0)
            for part in (queries, keys):
                rotate_in_pieces(part.flatten(0, 1), rotary.cos, rotary.sin)
        else:
            queries, keys = rotary.rotate(qkv[:, :, :2]).permute(2, 0, 3, 1, 4).unbind(0)
            values = qkv[:, :, 2].transpose(1, 2)
        return queries, keys, values

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Mix values by attention and project. `mask` is boolean, True where a query may look."""
        output: Tensor = self.proj(self.mix(queries, keys, values, mask))
        return output

    def mix(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """The same before it is projected."""
        if self.fused and mask is None and favors_pieces(keys.shape[2], queries, keys, values):
            mixed = attention_in_pieces(queries, keys, values)
        elif self.fused:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        else:
            scores = (queries * self.head_dim**-0.5) @ keys.transpose(-2, -1)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            mixed = scores.softmax(dim=-1) @ values
        return mixed.transpose(1, 2).flatten(2)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], rotary: RotaryTable | None = None, mask: Tensor | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        return self.attend(*self.project(x, rotary), mask)


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = RowLinear(width, hidden)
        self.fc2 = RowLinear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        hidden = self.fc1.gelu(x) if isinstance(self.fc1, (PackedLinear, Int8Linear)) else F.gelu(self.fc1(x))
        output: Tensor = self.fc2(hidden)
        return output


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to its input."""

    def __init__(
        self, width: int, heads: int, mlp_hidden: int, *, eps: float = 1e-6, qkv_bias: bool = True, fused: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias, fused=fused)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_hidden)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], rotary: RotaryTable | None = None, mask: Tensor | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        x = x + self.attn(self.norm1(x), rotary, mask)
        x = x + self.mlp(self.norm2(x))
        return x

    def step(
        self, x: Float[Tensor, "batch tokens width"], rotary: RotaryTable, past: KeyValue | None
    ) -> tuple[Float[Tensor, "batch tokens width"], KeyValue]:
        """`forward` for the newest tokens alone: they see `past` and each other. Also returns all keys and values."""
        queries, keys, values = self.attn.project(self.norm1(x), rotary)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        x = x + self.attn.attend(queries, keys, values)
        x = x + self.mlp(self.norm2(x))
        return x, (keys, values)


def initialize_blocks(blocks: nn.ModuleList) -> None:
    """Starting weights for training: normal(0.02) cut at two deviations, residual outputs scaled down with depth."""
    for depth, block in enumerate(blocks, start=1):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(block, Block):
            with torch.no_grad():
                block.attn.proj.weight.div_((2.0 * depth) ** 0.5)
                block.mlp.fc2.weight.div_((2.0 * depth) ** 0.5)
