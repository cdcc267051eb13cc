"""Linear layers with oneDNN-prepacked bfloat16 weights.

A plain layer has oneDNN reorder its weights every time. Laid out once, 25 rows through 192 x 768 weights took 43 us and
not 69, and 2048 rows through 1024 x 4096 43 ms and not 47 (two cores with AVX512-bf16); results are the same bit for
bit. The operators are those that `torch.compile` puts into the code it writes for processors.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.replace_linear import replace_linears

NEEDED = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


def can_pack() -> bool:
    """Whether this processor and this build of PyTorch have such layers."""
    operators = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(operators, name) for name in NEEDED)
        and bool(operators._is_mkldnn_bf16_supported())
    )


class PackedLinear(nn.Module):
    """A linear layer for bfloat16 input, otherwise as it was; no faster where it is differentiated in its input."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        if _differentiated(x):
            return F.linear(x, self.weight.to_dense(), self.bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return output

    def gelu(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        """The exact GELU of what `forward` gives before it is rounded."""
        if _differentiated(x):
            return F.gelu(self(x))
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")
        return output


def pack_linears(network: nn.Module) -> None:
    """Put a `PackedLinear` in the place of every bfloat16 linear layer inside that lies on the processor."""
    if can_pack():
        replace_linears(network, lambda layer: PackedLinear(layer) if _fits(layer) else None)


def _fits(layer: nn.Linear) -> bool:
    return layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu"


def _differentiated(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad
