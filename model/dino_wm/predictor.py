"""The predictors of DINO-WM and jepa-wms: a frame of patches, under an action, to the next frame of patches.

Both see a window of frames, each patch its own frame and those before it. So frames go through one after the other with
the keys and values of the earlier ones kept, which is exactly what predicting the whole window at once gives.
What a robot measures of itself lies beside every patch, and is predicted there too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints.state_dict import CheckpointError, load_strict, strip_prefixes
from model.dino_wm.config import PredictorConfig, predictor_config
from model.layers.transformer import (
    Attention,
    KeyValue,
    Mlp,
    RotaryCache,
    RotaryTable,
    grid_positions,
    rotary_table,
    table_dtype,
)

Memory = list[KeyValue]
"""For every block, the keys and values of the window's earlier frames."""
Frame = tuple[Tensor, "Tensor | None"]
"""Patch tokens `[batch, patches, latent]` and, where a model has it, proprioception `[batch, patches, width]`."""


class NumbersEmbed(nn.Module):
    """Numbers of one step to channels; in files a convolution over one step."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv1d(numbers, width, kernel_size=1)

    def forward(self, numbers: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch width"]:
        return F.linear(numbers, self.patch_embed.weight.squeeze(-1), self.patch_embed.bias)


class AdaptiveBlock(nn.Module):
    """A pre-norm block whose norms are shifted, scaled and gated by the frame's action."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        width, eps = config.block_width, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, config.mlp_hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def step(
        self, x: Tensor, condition: Tensor, rotary: RotaryTable, past: KeyValue | None, *, last: bool
    ) -> tuple[Tensor, KeyValue]:
        """The frame's tokens after the block, and the keys and values of all frames so far; `last`: only the latter."""
        modulation = self.adaLN_modulation(condition).unsqueeze(1)  # [batch, 1, 6 width]: of every patch alike
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        queries, keys, values = self.attn.project(self.norm1(x) * (1 + scale1) + shift1, rotary)
        keys, values = _after(past, keys, values)
        if not last:
            x = x + gate1 * self.attn.attend(queries, keys, values)
            x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x, (keys, values)


class AdaptiveTransformer(nn.Module):
    """The predictor of jepa-wms: rotary positions, actions through the norms."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.predictor_embed = nn.Linear(config.latent, config.width)
        self.action_encoder = nn.Linear(config.action, config.block_width)
        self.predictor_blocks = nn.ModuleList(AdaptiveBlock(config) for _ in range(config.depth))
        self.predictor_norm = nn.LayerNorm(config.block_width, eps=config.layer_norm_eps)
        self.predictor_proj = nn.Linear(config.width, config.latent)
        self._tables = RotaryCache()

    def step(
        self, frame: Frame, action: Tensor, place: int, past: Memory | None, *, read: bool
    ) -> tuple[Frame | None, Memory]:
        patches, measured = frame
        x = self.predictor_embed(patches)
        x = x if measured is None else torch.cat([x, measured], dim=-1)
        condition, rotary = self.action_encoder(action), self._rotary(place, x)
        memory: Memory = []
        for index, block in enumerate(self.predictor_blocks):
            last = not read and index + 1 == len(self.predictor_blocks)
            assert isinstance(block, AdaptiveBlock)
            x, kept = block.step(x, condition, rotary, past[index] if past else None, last=last)
            memory.append(kept)
        if not read:
            return None, memory
        x = self.predictor_norm(x)
        width = self.config.width
        return (self.predictor_proj(x[..., :width]), None if measured is None else x[..., width:]), memory

    def _rotary(self, place: int, x: Tensor) -> RotaryTable:
        """Positions of the window's frame number `place`."""
        dtype = table_dtype(x.dtype)

        def build() -> RotaryTable:
            positions = grid_positions((1, self.config.grid, self.config.grid), x.device)
            positions[0] = place
            return rotary_table(positions, self.config.block_width // self.config.heads, "tiled", dtype)

        return self._tables.get((place, x.device, dtype), build)


class PlainAttention(nn.Module):
    """Attention that norms its input itself and whose heads need not cut the width."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        width, inner = config.block_width, config.heads * config.head_dim
        self.heads = config.heads
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.to_qkv = nn.Linear(width, 3 * inner, bias=False)
        alone = config.heads == 1 and config.head_dim == width  # such an attention was published without a projection
        self.to_out: nn.Module = nn.Identity() if alone else nn.Sequential(nn.Linear(inner, width))

    def project(self, x: Float[Tensor, "batch tokens width"]) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.to_qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Float[Tensor, "batch tokens width"]:
        mixed = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        output: Tensor = self.to_out(mixed)
        return output


class FeedForward(nn.Module):
    """Norm, two linear layers, an exact GELU between them; the numbers of its parts are those of the files."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        width, hidden = config.block_width, config.mlp_hidden
        self.net = nn.ModuleDict(
            {
                "0": nn.LayerNorm(width, eps=config.layer_norm_eps),
                "1": nn.Linear(width, hidden),
                "4": nn.Linear(hidden, width),
            }
        )

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        output: Tensor = self.net["4"](F.gelu(self.net["1"](self.net["0"](x))))
        return output


class PlainLayers(nn.Module):
    """Attention and feed-forward by turns, and a norm at the end."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([PlainAttention(config), FeedForward(config)]) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.block_width, eps=config.layer_norm_eps)


class PlainTransformer(nn.Module):
    """The predictor of DINO-WM (arXiv 2411.04983): a position table, actions as channels of every patch."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_embedding = nn.Parameter(torch.zeros(1, config.frames * config.patches, config.block_width))
        self.transformer = PlainLayers(config)

    def step(
        self, frame: Frame, action: Tensor, place: int, past: Memory | None, *, read: bool
    ) -> tuple[Frame | None, Memory]:
        """`action` is what the network's action encoder made of it."""
        patches, measured = frame
        count = self.config.patches
        spread = action.unsqueeze(1).expand(-1, count, -1)
        x = torch.cat([part for part in (patches, measured, spread) if part is not None], dim=-1)
        x = x + self.pos_embedding[:, place * count : (place + 1) * count]
        memory: Memory = []
        for index, layer in enumerate(self.transformer.layers):
            assert isinstance(layer, nn.ModuleList)
            attention, feed = layer
            assert isinstance(attention, PlainAttention)
            queries, keys, values = attention.project(x)
            keys, values = _after(past[index] if past else None, keys, values)
            memory.append((keys, values))
            if read or index + 1 < len(self.transformer.layers):
                x = x + attention.attend(queries, keys, values)
                x = x + feed(x)
        if not read:
            return None, memory
        x = self.transformer.norm(x)
        latent, beside = self.config.latent, self.config.proprioception_width
        return (x[..., :latent], None if measured is None else x[..., latent : latent + beside]), memory


class PatchPredictor(nn.Module):
    """A predictor with the encoders of actions and of proprioception that belong to it."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        adaptive = config.kind == "adaln"
        self.predictor = AdaptiveTransformer(config) if adaptive else PlainTransformer(config)
        self.action_encoder = None if adaptive else NumbersEmbed(config.action, config.action_width)
        self.proprio_encoder = (
            NumbersEmbed(config.proprioception, config.proprioception_width) if config.proprioception else None
        )

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], weights: Mapping[str, Any]) -> PatchPredictor:
        """Build from a published configuration and its weights, strictly: sections as in a file, or one dictionary.

        `CheckpointError` names what does not fit.
        """
        with torch.device("meta"):
            predictor = cls(predictor_config(config))
        load_strict(predictor, network_names(weights), "predictor")
        return predictor

    def measured(self, numbers: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch patches width"]:
        """Standardized proprioception as it lies beside every patch. ValueError for a model that takes none."""
        if self.proprio_encoder is None:
            raise ValueError("proprioception: must not be given to this model")
        encoded: Tensor = self.proprio_encoder(numbers)
        return encoded.unsqueeze(-2).expand(*encoded.shape[:-1], self.config.patches, -1)

    def step(
        self, frame: Frame, action: Float[Tensor, "batch action"], place: int, past: Memory | None, *, read: bool = True
    ) -> tuple[Frame | None, Memory]:
        """The frame after this one under a standardized action, and what later frames of the window need of this one.

        `place` is the frame's number in the window and `past` the memory of those before it. Without `read` nothing is
        predicted, only remembered.
        """
        given = action if self.action_encoder is None else self.action_encoder(action)
        result: tuple[Frame | None, Memory] = self.predictor.step(frame, given, place, past, read=read)
        return result

    def forward(
        self,
        patches: Float[Tensor, "batch time patches latent"],
        actions: Float[Tensor, "batch time action"],
        measured: Float[Tensor, "batch time patches width"] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """For every frame of a window, the patches (and the proprioception beside them) of the frame after it."""
        if (measured is None) == bool(self.config.proprioception):
            raise ValueError(f"measured: must {'' if self.config.proprioception else 'not '}be given to this model")
        found: list[Frame] = []
        past: Memory | None = None
        for time in range(patches.shape[1]):
            frame = patches[:, time], None if measured is None else measured[:, time]
            predicted, past = self.step(frame, actions[:, time], time, past)
            assert predicted is not None
            found.append(predicted)
        beside = None if measured is None else torch.stack([part for _, part in found if part is not None], dim=1)
        return torch.stack([part for part, _ in found], dim=1), beside


def rollout(
    predictor: PatchPredictor, start: Frame, actions: Float[Tensor, "rows time action"]
) -> tuple[Float[Tensor, "rows time patches latent"], Float[Tensor, "rows time patches width"] | None]:
    """Predictions fed back, each seen from a window of the newest frames, whose first is frame 0 of every window.

    While the window grows, the keys and values of its earlier frames stand; once it moves, a frame's place changes and
    what it saw is gone, so that its frames go through anew. Exact either way.
    """
    frames: list[Frame] = [start]
    past: Memory | None = None
    for time in range(actions.shape[1]):
        first = max(0, time + 1 - predictor.config.window)
        if first:  # the window moved
            past = None
            for older in range(first, time):
                _, past = predictor.step(frames[older], actions[:, older], older - first, past, read=False)
        predicted, past = predictor.step(frames[-1], actions[:, time], time - first, past)
        assert predicted is not None
        frames.append(predicted)
    patches = torch.stack([patches for patches, _ in frames[1:]], dim=1)
    beside = [measured for _, measured in frames[1:] if measured is not None]
    return patches, torch.stack(beside, dim=1) if beside else None


def network_names(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """A file's sections (or one dictionary with their names in front) under the names of `PatchPredictor`.

    Wrappers' prefixes go, as do the masks that files of DINO-WM's predictor hold as `transformer.layers.N.0.bias`.
    """
    flat: dict[str, Tensor] = {}
    for section in SECTIONS:
        held = weights.get(section)
        if held is None:
            continue
        if not isinstance(held, Mapping):
            raise CheckpointError(f"{section}: must be a dictionary of tensors, got {type(held).__name__}")
        flat |= {f"{section}.{key}": tensor for key, tensor in strip_prefixes(held).items()}
    if not flat:
        flat = {key: tensor for key, tensor in weights.items() if isinstance(tensor, Tensor)}
    return {name: tensor for key, tensor in flat.items() if (name := network_name(key)) is not None}


SECTIONS = ("predictor", "action_encoder", "proprio_encoder")


def network_name(key: str) -> str | None:
    """One of a file's keys, its section in front, as `PatchPredictor` calls it; None for a mask, which is no weight."""
    return None if re.fullmatch(r"predictor\.transformer\.layers\.\d+\.0\.bias", key) else key


def _after(past: KeyValue | None, keys: Tensor, values: Tensor) -> KeyValue:
    if past is None:
        return keys, values
    return torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
