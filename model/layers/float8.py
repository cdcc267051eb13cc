"""Linear layers in 8-bit floating point: weights quantized once, what they are multiplied with row by row as it comes.

Every token and every output channel has a scale of its own, so that no token's rounding depends on its company. The
devices that multiply such numbers in hardware, at twice the rate of bfloat16, are named by `has_units`; all others,
processors too, give the same results slowly. Which layers, and whether the result is good enough, is for others to say.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.replace_linear import replace_linears

E4M3 = torch.float8_e4m3fn
"""Four bits of exponent and three of mantissa: numbers up to 448, each known to a sixteenth of itself."""
LEAST_WEIGHTS = 1 << 16
"""In a layer worth quantizing: a smaller one takes longer to quantize its input for than it gains."""
ALIGNED = 16
"""What both sides of a matrix must be a multiple of for the hardware."""

_LARGEST = torch.finfo(E4M3).max
_TINY = 1e-12  # stands in for the largest entry of a row of zeros
_BY_ROW = F.ScalingType.RowWise


def has_units(device: torch.device) -> bool:
    """Whether the device multiplies 8-bit floating point in hardware: NVIDIA's from Ada and Hopper on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def quantize(rows: Float[Tensor, "rows width"]) -> tuple[Tensor, Float[Tensor, "rows 1"]]:
    """Rows as E4M3 numbers, the largest of each at 448, and the float32 factors that undo it.

    A row with a NaN or an infinite entry becomes NaN throughout.
    """
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=-1, keepdim=True)
    # Rounded to the rows' own precision, so that scaling needs no larger copy of them: in bfloat16 448 becomes 450 at
    # most, which still rounds to 448, and what undoes it is the inverse of the factor as rounded.
    factor = (_LARGEST / largest.float().clamp(min=_TINY)).to(rows.dtype)
    return (rows * factor).to(E4M3), factor.float().reciprocal()


class Float8Linear(nn.Module):
    """A linear layer for bfloat16 input, as it was but for the rounding. Differentiable in its input."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        quantized, scale = quantize(layer.weight.detach())
        self.register_buffer("weight", quantized, persistent=False)
        self.register_buffer("scale", scale.t().contiguous(), persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        output: Tensor = _Product.apply(x, self.weight, self.scale, self.bias)  # type: ignore[no-untyped-call]
        return output


class _Product(torch.autograd.Function):
    """x @ weight.T + bias. Its slope takes the quantized weight, and what was lost by quantizing x for nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        rows, row_scale = quantize(x.flatten(0, -2))
        product: Tensor = F.scaled_mm(
            rows, weight.t(), row_scale, _BY_ROW, scale, _BY_ROW, bias=bias, output_dtype=x.dtype, use_fast_accum=True
        )
        return product.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return slope @ (weight.to(slope.dtype) * scale.t().to(slope.dtype)), None, None, None


def quantize_linears(network: nn.Module) -> None:
    """Put a `Float8Linear` in the place of every linear layer inside that is large enough."""
    replace_linears(network, lambda layer: Float8Linear(layer) if _fits(layer) else None)


def _fits(layer: nn.Linear) -> bool:
    out, width = layer.weight.shape
    return out % ALIGNED == 0 and width % ALIGNED == 0 and layer.weight.numel() >= LEAST_WEIGHTS
