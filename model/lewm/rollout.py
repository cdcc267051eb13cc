"""Rollouts of LeWM's predictor as processors like them: all samples in one batch, and nothing computed twice.

The same numbers as `network.LeWM.rollout`, up to rounding, by four facts:

- An action conditions every layer through a matrix of its embedding alone, so it is multiplied once per action, for all
  layers together, and not again as the window slides.
- Attention is causal. While the window still fills, earlier tokens keep their places, and their keys and values stay.
  Once it slides, places are counted anew and everything in it changes: then it is computed anew.
- Tokens of what was seen, with the actions executed between, are the same for all samples of a robot.
- Only the newest token's prediction is asked for: the last layer computes nothing else but keys and values.

Batch norms are folded into the linear layers before them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.prepacked_linear import PackedLinear, pack_linears
from model.layers.transformer import KeyValue
from model.lewm.network import ConditionedBlock, LeWM, NormedMlp, plain_norm

Modulation = tuple[Tensor, ...]
"""Shift, scale and gate of the attention and of the MLP, each [batch, steps, width]; scales have their 1 added."""


class Rollout(nn.Module):
    """A copy of a network's predictor, laid out for rollouts in one precision."""

    def __init__(self, network: LeWM, dtype: torch.dtype) -> None:
        """Of bfloat16 are the large matrices and what they multiply; sums, norms and latents stay as in the network."""
        super().__init__()
        config, predictor = network.config, network.predictor
        self.window, self.width, self.dtype = config.window, config.predictor_width, dtype
        self.action_embedder = copy.deepcopy(network.action_embedder)
        self.pos_embed = predictor.pos_embed
        self.input_proj, self.action_proj = predictor.input_proj, predictor.action_proj
        self.output_norm, self.output_proj = predictor.norm, predictor.output_proj
        blocks = cast("list[ConditionedBlock]", list(predictor.blocks))
        modulations = [block.modulation for block in blocks]
        self.modulation = nn.Sequential(_modulations(modulations, self.width)).to(dtype)
        self.layers = nn.ModuleList(_Layer(block, last=index + 1 == len(blocks)) for index, block in enumerate(blocks))
        for layer in self.layers:
            cast(_Layer, layer).lower(dtype)
        self.head = _folded(network.prediction_head).to(dtype)
        for part in (self.modulation, self.head, self.layers):
            pack_linears(part)
        self.eval().requires_grad_(False)

    def forward(
        self,
        latents: Float[Tensor, "batch seen latent"],
        past: Float[Tensor, "batch seen_less_one block"],
        blocks: Float[Tensor, "batch samples horizon block"],
    ) -> Float[Tensor, "batch samples horizon latent"]:
        """Predicted latents after each of `blocks`; see `LeWM.rollout`."""
        batch, samples, horizon, _ = blocks.shape
        seen = latents.shape[1]
        executed = self._modulated(past) if seen > 1 else []  # [batch, ...]: the same for all samples
        chosen = self._modulated(blocks.flatten(0, 1))  # [batch x samples, ...]
        start = latents[:, -1].repeat_interleave(samples, dim=0) if samples > 1 else latents[:, -1]
        known = [latents[:, place] for place in range(seen - 1)]
        own = [start]  # latents that the samples do not share, the first one's action being theirs
        caches: list[KeyValue] | None = None
        for step in range(horizon):
            begin = max(0, seen + step - self.window)  # of the window, counted from the oldest latent
            shared = max(0, seen - 1 - begin)
            sliding = begin != max(0, seen + step - 1 - self.window)
            if step == 0 or sliding:
                caches = self._prefix(known[begin:], executed, begin, samples) if shared else None
                first = max(0, begin - (seen - 1))
            else:
                first = step  # of the samples' own: all before are in the caches
            tokens = torch.stack(own[first:], dim=1)
            places = slice(seen - 1 + first - begin, seen + step - begin)
            mods = [tuple(part[:, first : step + 1] for part in layer) for layer in chosen]
            output, caches = self._advance(tokens, places, mods, caches)
            own.append(output)
        predicted = torch.stack(own[1:], dim=1)
        return predicted.view(batch, samples, horizon, -1)

    def _modulated(self, blocks: Float[Tensor, "batch steps block"]) -> list[Modulation]:
        """What each action does to each layer."""
        condition = F.silu(self.action_proj(self.action_embedder(blocks))).to(self.dtype)
        every: Tensor = self.modulation(condition)
        every = every.to(self.pos_embed.dtype)
        parts = torch.split(every, self.width, dim=-1)
        return [parts[6 * layer : 6 * layer + 6] for layer in range(len(self.layers))]

    def _prefix(self, known: list[Tensor], executed: list[Modulation], begin: int, samples: int) -> list[KeyValue]:
        """Keys and values of what was seen before now, for every sample."""
        tokens = torch.stack(known, dim=1)
        mods = [tuple(part[:, begin:] for part in layer) for layer in executed]
        caches = self._advance(tokens, slice(0, len(known)), mods, None)[1]
        return [
            (keys.repeat_interleave(samples, dim=0), values.repeat_interleave(samples, dim=0))
            for keys, values in caches
        ]

    def _advance(
        self,
        latents: Float[Tensor, "batch steps latent"],
        places: slice,
        modulations: list[Modulation],
        caches: list[KeyValue] | None,
    ) -> tuple[Float[Tensor, "batch latent"], list[KeyValue]]:
        """The prediction of the newest of these tokens, and keys and values of them and of those before, by layer."""
        x = self.input_proj(latents + self.pos_embed[:, places])
        kept: list[KeyValue] = []
        for index, (layer, modulation) in enumerate(zip(self.layers, modulations, strict=True)):
            x, both = layer(x, modulation, None if caches is None else caches[index])
            kept.append(both)
        hidden = self.output_proj(self.output_norm(x[:, -1])).to(self.dtype)
        first, second = self.head[0], self.head[1]
        hidden = first.gelu(hidden) if isinstance(first, PackedLinear) else F.gelu(first(hidden))
        output: Tensor = second(hidden).to(latents.dtype)
        return output, kept


class _Layer(nn.Module):
    """A predictor block's matrices; the last one's queries apart, for only the newest token has one there."""

    def __init__(self, block: ConditionedBlock, *, last: bool) -> None:
        super().__init__()
        attn, mlp = block.attn, block.mlp
        self.heads, self.head_dim, self.last = attn.heads, attn.head_dim, last
        self.dtype = attn.qkv.weight.dtype
        self.norm1, self.norm2 = attn.norm, mlp.norm
        inner = self.heads * self.head_dim
        self.queries = _part(attn.qkv, slice(0, inner)) if last else None
        self.qkv = _part(attn.qkv, slice(inner, None)) if last else copy.deepcopy(attn.qkv)
        self.proj = copy.deepcopy(attn.proj)
        self.fc1, self.fc2 = copy.deepcopy(mlp.fc1), copy.deepcopy(mlp.fc2)

    def lower(self, dtype: torch.dtype) -> None:
        """The large matrices in another precision."""
        self.dtype = dtype
        for part in (self.queries, self.qkv, self.proj, self.fc1, self.fc2):
            if part is not None:
                part.to(dtype)

    def forward(
        self, x: Float[Tensor, "batch steps width"], modulation: Modulation, cache: KeyValue | None
    ) -> tuple[Float[Tensor, "batch steps_or_1 width"], KeyValue]:
        """The tokens after this layer (in the last one the newest alone), and all keys and values so far."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        normed = self.norm1(torch.addcmul(shift1, plain_norm(x), scale1)).to(self.dtype)
        if self.queries is not None:
            keys, values = self._split(self.qkv(normed), 2)
            (queries,) = self._split(self.queries(normed[:, -1:]), 1)
            x = x[:, -1:]
            gate1, shift2, scale2, gate2 = (part[:, -1:] for part in (gate1, shift2, scale2, gate2))
        else:
            queries, keys, values = self._split(self.qkv(normed), 3)
        if cache is not None:
            keys, values = torch.cat([cache[0], keys], dim=2), torch.cat([cache[1], values], dim=2)
        x = torch.addcmul(x, gate1, self.proj(_attend(queries, keys, values)).to(x.dtype))
        normed = self.norm2(torch.addcmul(shift2, plain_norm(x), scale2)).to(self.dtype)
        hidden = self.fc1.gelu(normed) if isinstance(self.fc1, PackedLinear) else F.gelu(self.fc1(normed))
        return torch.addcmul(x, gate2, self.fc2(hidden).to(x.dtype)), (keys, values)

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Each [batch, heads, steps, head_dim]."""
        split = projected.view(*projected.shape[:2], parts, self.heads, self.head_dim)
        return split.permute(2, 0, 3, 1, 4).unbind(0)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Float[Tensor, "batch steps width"]:
    """Causal attention where the newest query sees the newest key."""
    new, all_ = queries.shape[2], keys.shape[2]
    if all_ == 1:  # all there is to see
        return values.transpose(1, 2).flatten(2)
    mask = None
    if 1 < new < all_:
        mask = torch.ones(new, all_, dtype=torch.bool, device=queries.device).tril(all_ - new)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=1 < new == all_)
    return mixed.transpose(1, 2).flatten(2)


def _modulations(layers: Sequence[nn.Linear], width: int) -> nn.Linear:
    """The blocks' modulations as one layer, the scales' 1 added to its bias."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = torch.cat([layer.bias.detach() for layer in layers]).clone().view(len(layers), 6, width)
    bias[:, [1, 4]] += 1
    return _linear(weight, bias.flatten())


def _folded(mlp: NormedMlp) -> nn.Sequential:
    """The MLP with its batch norm inside its first layer."""
    norm = mlp.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    weight = mlp.fc1.weight.detach() * scale.unsqueeze(-1)
    bias = (mlp.fc1.bias.detach() - norm.running_mean) * scale + norm.bias.detach()
    return nn.Sequential(_linear(weight, bias), copy.deepcopy(mlp.fc2))


def _part(layer: nn.Linear, rows: slice) -> nn.Linear:
    return _linear(layer.weight.detach()[rows].clone(), None)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer
