"""The action-conditioned predictor: from one latent and a sequence of action blocks, the latent after each block.

Every step of a horizon comes out of one call (no step feeds on an earlier prediction), so errors do not compound and a
rollout costs one pass. Conditioning is by adaptive layer norm with gates that start at zero (DiT, arXiv 2212.09748);
predicting whole action prefixes at once follows Fast-LeWM (arXiv 2606.26217).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.compact.sharing import Sharing
from model.layers.float8 import E4M3, quantize_linears
from model.layers.prepacked_linear import pack_linears
from model.layers.row_linear import RowLinear
from model.layers.transformer import Attention, Mlp


class ProprioceptionEmbedding(nn.Module):
    """What the robot measures of itself, as part of where a prediction starts; NaN in a row says: not measured."""

    mean: Tensor
    std: Tensor

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(numbers))  # of the training episodes, kept with the weights
        self.register_buffer("std", torch.ones(numbers))
        self.project = RowLinear(numbers, width)
        self.unmeasured = nn.Parameter(torch.zeros(width))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, proprioception: Float[Tensor, "batch numbers"] | None) -> Float[Tensor, "#batch width"]:
        """`proprioception` in the robot's units; None where no row was measured."""
        if proprioception is None:
            return self.unmeasured.unsqueeze(0)
        measured = proprioception.isfinite().all(dim=-1, keepdim=True)
        known = self.project(((proprioception - self.mean) / self.std).nan_to_num(0.0, 0.0, 0.0))
        return torch.where(measured, known, self.unmeasured)


class AdaptiveBlock(nn.Module):
    """A pre-norm block whose norms are scaled, shifted and gated by the action of the same step."""

    def __init__(self, width: int, heads: int, mlp_hidden: int, *, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, fused=fused)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, mlp_hidden)
        self.modulation = RowLinear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "batch steps width"],
        condition: Float[Tensor, "batch steps width"],
        mask: Tensor,
        shared: Sharing | None = None,
    ) -> Float[Tensor, "batch steps width"]:
        """With `shared`, `condition` holds different action blocks, and `x` the ends of different beginnings."""
        lowered = condition.dtype  # of the matrices; sums and norms stay in the precision of `x`
        modulation = self.modulation(condition)
        if shared is not None:
            modulation = modulation.index_select(1, shared.block_of)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = x + gate1 * self._attend((self.norm1(x) * (1 + scale1) + shift1).to(lowered), mask, shared)
        output: Tensor = x + gate2 * self.mlp((self.norm2(x) * (1 + scale2) + shift2).to(lowered))
        return output

    def _attend(self, x: Tensor, mask: Tensor, shared: Sharing | None) -> Tensor:
        """Attention over the steps of each sample."""
        if shared is None:
            return self.attn(x, mask=mask)  # type: ignore[no-any-return]  # a module's call
        batch, samples = len(x), len(shared.beginning_of) // len(mask)
        of_samples = self.attn.qkv(x).index_select(1, shared.beginning_of).view(batch * samples, len(mask), -1)
        mixed = self.attn.mix(*self.attn.heads_of(of_samples), mask)
        return self.attn.proj(mixed.view(batch, -1, x.shape[-1]).index_select(1, shared.rows))  # type: ignore[no-any-return]


class Predictor(nn.Module):
    """Causal over action blocks: a later action changes no earlier prediction."""

    causal: Tensor

    def __init__(
        self,
        latent: int,
        block_width: int,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_hidden: int,
        horizon: int,
        residual: bool = False,
        proprioception: int = 0,
    ) -> None:
        """`block_width` is numbers per action block (actions x dimensions); `horizon` the steps it is trained for.

        With `proprioception`, that many numbers measured at the start are given beside the latent.
        A `residual` predictor adds what it computes to the latent it starts from, and starts by adding nothing.
        """
        super().__init__()
        self.residual = residual
        self.horizon = horizon
        self.latent_in = RowLinear(latent, width)
        self.proprioception = ProprioceptionEmbedding(proprioception, width) if proprioception else None
        self.action_in = nn.Sequential(RowLinear(block_width, 4 * width), nn.SiLU(), RowLinear(4 * width, width))
        self.blocks = nn.ModuleList(AdaptiveBlock(width, heads, mlp_hidden, fused=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.latent_out = RowLinear(width, latent)
        if residual:
            self.change_nothing()
        self.step = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.register_buffer("causal", torch.ones(horizon, horizon, dtype=torch.bool).tril(), persistent=False)

    def lower(self, dtype: torch.dtype) -> None:
        """Compute the large matrix products in `dtype`; with 8-bit floats, what is too small for them in bfloat16.

        What comes in and goes out keeps its own precision, and so does the sum that runs from block to block: of 300
        samples' latents, the worst entry was 0.03 off in bfloat16 so, and 0.07 with everything lowered.
        """
        between = torch.bfloat16 if dtype == E4M3 else dtype
        self.blocks.to(between)
        self.action_in[2].to(between)
        if dtype == E4M3:
            quantize_linears(self.blocks)
        for part in (self.blocks, self.action_in):
            pack_linears(part)

    def forward(
        self,
        latent: Float[Tensor, "batch latent"],
        actions: Float[Tensor, "batch steps block"],
        proprioception: Float[Tensor, "batch numbers"] | None = None,
    ) -> Float[Tensor, "batch steps latent"]:
        """Latents after each action block; `actions` in network units, at most `horizon` steps."""
        steps = self._checked(actions.shape[1])
        x = self._start(latent, proprioception) + self.step[:steps]
        return self._predicted(latent, x, actions, self.causal[:steps, :steps])

    def forward_shared(
        self,
        latent: Float[Tensor, "batch latent"],
        actions: Float[Tensor, "batch samples steps block"],
        proprioception: Float[Tensor, "batch numbers"] | None,
        shared: Sharing,
    ) -> Float[Tensor, "batch samples steps latent"]:
        """`forward` of several samples for each latent, with what they share computed once."""
        samples, steps = actions.shape[1], self._checked(actions.shape[2])
        x = self._start(latent, proprioception) + self.step.index_select(0, shared.steps)
        blocks = actions.flatten(1, 2).index_select(1, shared.action_rows)
        found = self._predicted(latent, x, blocks, self.causal[:steps, :steps], shared)
        return found.index_select(1, shared.beginning_of).view(len(found), samples, steps, -1)

    def _checked(self, steps: int) -> int:
        if steps > self.horizon:
            raise ValueError(f"steps must be at most {self.horizon} in one call, got {steps}")
        return steps

    def _start(self, latent: Tensor, proprioception: Tensor | None) -> Float[Tensor, "batch 1 width"]:
        start: Tensor = self.latent_in(latent)
        if self.proprioception is not None:
            start = start + self.proprioception(proprioception)
        return start.unsqueeze(1)

    def _predicted(
        self, latent: Tensor, x: Tensor, actions: Tensor, mask: Tensor, shared: Sharing | None = None
    ) -> Float[Tensor, "batch steps latent"]:
        enlarge, mix = self.action_in[:2], self.action_in[2]
        condition = F.silu(mix(enlarge(actions).to(mix.weight.dtype)))
        for block in self.blocks:
            x = block(x, condition, mask, shared)
        output: Tensor = self.latent_out(self.norm(x))
        return latent.unsqueeze(1) + output if self.residual else output

    def change_nothing(self) -> None:
        """Make a residual predictor predict that nothing changes, whatever it has learned of latents and actions."""
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)
