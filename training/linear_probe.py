"""Linear probe of latents. A check on training, not part of it."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_probe(fit_x: Tensor, fit_y: Tensor, test_x: Tensor, test_y: Tensor) -> tuple[float, ...]:
    """R2 per target of ridge regression fitted on one set of latents, scored on another; 0 for what never varies there.

    Inputs end in [..., features] and [..., targets]; leading axes are flattened.
    """
    with_one = [torch.nn.functional.pad(x.flatten(0, -2).double(), (0, 1), value=1.0) for x in (fit_x, test_x)]
    targets = [y.flatten(0, -2).double() for y in (fit_y, test_y)]
    ridge = 1e-4 * len(with_one[0]) * torch.eye(with_one[0].shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(with_one[0].T @ with_one[0] + ridge, with_one[0].T @ targets[0])
    residual = (with_one[1] @ weights - targets[1]).square().mean(dim=0)
    spread = targets[1].var(dim=0, unbiased=False)
    return tuple(torch.where(spread > 0, 1 - residual / spread, 0.0).tolist())
