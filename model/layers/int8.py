"""Linear layers in 8-bit integers for processors: weights quantized once, what they are multiplied with as it comes.

Every token and every output channel has a scale of its own, so that no token's rounding depends on its company. A
processor with VNNI multiplies such numbers at twice the rate of bfloat16: 2048 rows through 1024 x 3072 weights took 15
ms and not 29 (two AVX512 cores). The operators are those that PyTorch's quantized models are compiled to. Whether the
result is good enough is for others to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from model.layers.replace_linear import replace_linears

LEAST_WIDTH = 256
"""Of a layer worth quantizing: a narrower one takes longer to quantize its input for than it gains."""
AT_ONCE = 1 << 21
"""Numbers worked on at once where there is more than one thing to do with them: 4 MB, which are then in a cache."""
NEEDED = ("qlinear_prepack", "qlinear_pointwise")

# A row's largest entry becomes 126, not 127: the factor is rounded to bfloat16, and so is what it is multiplied with.
_LARGEST = 126.0
_RAISED = 128
_TINY = 1e-12  # stands in for the largest entry of a row of zeros


def has_vnni(device: torch.device) -> bool:
    """Whether the device is a processor with VNNI, and this build of PyTorch multiplies 8-bit integers with it.

    Without VNNI sums of two products saturate in some processors, and results are wrong.
    """
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.onednn, name) for name in NEEDED)
        and bool(torch.cpu._is_vnni_supported())
    )


def quantize(rows: Float[Tensor, "rows width"]) -> tuple[Int8[Tensor, "rows width"], Float[Tensor, "rows 1"]]:
    """Rows as integers within +-126, and the factors, in the rows' precision, that undo it.

    A row with a NaN or an infinite entry has a NaN for its factor.
    """
    whole, scales = rows.new_empty(rows.shape, dtype=torch.int8), []
    for given, place in _parts(rows, whole):
        largest = _largest(given)
        factor = (_LARGEST / largest.float().clamp(min=_TINY)).to(rows.dtype)
        place.copy_((given * factor).round_())
        scales.append(torch.where(largest.isfinite(), factor.float().reciprocal(), torch.nan).to(rows.dtype))
    return whole, torch.cat(scales)


def _parts(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each after the other, as many as make `AT_ONCE` numbers of the first."""
    at_once = max(1, AT_ONCE // rows[0].shape[1])
    return zip(*(torch.split(each, at_once) for each in rows), strict=True)


def _largest(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows 1"]:
    """The largest absolute entry of every row; NaN, or infinity, where there is one."""
    if rows.dtype != torch.bfloat16:
        return rows.abs().amax(dim=-1, keepdim=True)
    # Without signs these numbers are ordered as their bits are, and comparing those takes a third of the time.
    return rows.view(torch.int16).bitwise_and(0x7FFF).amax(dim=-1, keepdim=True).view(rows.dtype)


class Int8Linear(nn.Module):
    """A linear layer for bfloat16 input, as it was but for the rounding. Not differentiable."""

    weight: Tensor
    scale: Tensor
    zero: Tensor
    raised: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        whole, scale = quantize(layer.weight.detach().float())
        self.register_buffer("weight", torch.ops.onednn.qlinear_prepack(whole, None), persistent=False)
        self.register_buffer("scale", scale.flatten().contiguous(), persistent=False)
        self.register_buffer("zero", torch.zeros(len(whole), dtype=torch.int32), persistent=False)
        # The hardware multiplies unsigned integers with signed ones: input is raised by 128, and this takes it off.
        self.register_buffer("raised", -_RAISED * whole.float().sum(dim=1) * self.scale, persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        return self._product(x, None)

    def gelu(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """The exact GELU of what `forward` gives."""
        return self._product(x, torch.ops.aten.gelu_)

    def _product(self, x: Tensor, afterwards: Callable[[Tensor], Tensor] | None) -> Tensor:
        whole, row_scale = quantize(x.detach().flatten(0, -2))
        rows = whole.view(torch.uint8).bitwise_xor_(_RAISED)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, 0, self.weight, self.scale, self.zero, self.raised, 1.0, 0, x.dtype, "none", [], ""
        )
        # Scales of rows come last, the operator knows one for all; in place, since fresh memory takes longer to fill.
        for part, scale in _parts(product, row_scale):
            if self.bias is None:
                part.mul_(scale)
            else:
                torch.addcmul(self.bias, part, scale, out=part)
            if afterwards is not None:
                afterwards(part)
        return product.view(*x.shape[:-1], -1)


def quantize_linears(network: nn.Module) -> None:
    """Put an `Int8Linear` in the place of every linear layer inside that is large enough."""
    replace_linears(network, lambda layer: Int8Linear(layer) if min(layer.weight.shape) >= LEAST_WIDTH else None)
