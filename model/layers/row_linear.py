"""A linear layer that gives a row the same numbers in whatever company it is computed.

Matrix libraries choose their kernels by the number of rows, and sum few rows in another order than many: with oneMKL
15 or fewer in float32 differed in the last places from the same rows among 16 or more, and a search in bfloat16 turned
that into another plan. So few rows are computed as part of 16. That suffices for inputs of fewer than 1024 numbers;
wider ones are also summed in parts by several threads, and `server.worker.batch_invariance` measures what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST_ROWS = 16


class RowLinear(nn.Linear):
    """`nn.Linear`, its rows independent of each other's number on processors."""

    def forward(self, input: Tensor) -> Tensor:  # named as the base class names it
        rows = input.numel() // self.in_features
        if not 0 < rows < LEAST_ROWS or input.device.type != "cpu":
            return F.linear(input, self.weight, self.bias)
        flat = input.reshape(rows, self.in_features)
        padded = torch.cat([flat, flat.new_zeros(LEAST_ROWS - rows, self.in_features)])
        return F.linear(padded, self.weight, self.bias)[:rows].view(*input.shape[:-1], self.out_features)
