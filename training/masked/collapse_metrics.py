"""Collapse metrics: effective rank and standard deviation of representations. Not losses."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def content(tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "samples width"]:
    """What of each token depends on the input: its difference from the batch's mean at the same place.

    An encoder that has collapsed to a function of the place alone has varied tokens and no content.
    """
    tokens = tokens.float()
    return (tokens - tokens.mean(dim=0, keepdim=True)).flatten(0, 1)


def feature_std(features: Float[Tensor, "samples width"]) -> float:
    """Root mean square over everything; near 0 says that the representation has collapsed."""
    return float(features.square().mean().sqrt())


def effective_rank(features: Float[Tensor, "samples width"]) -> float:
    """Dimensions in use, 1 to `width`: the exponential of the entropy of the spectrum (RankMe, arXiv 2210.02885).

    In float64 from the products on: what a float32 sum gets wrong, 1e-7 of the largest eigenvalue, has a root of 3e-4
    of the largest singular value, and a spectrum has many of them (a line in 24 dimensions came to 1.012).
    """
    features = features.double()
    spectrum = torch.linalg.eigvalsh(features.T @ features).clamp_min(0).sqrt()
    total = spectrum.sum()
    if not total > 0:
        return 1.0
    shares = spectrum / total
    return float(torch.exp(-(shares * torch.log(shares.clamp_min(1e-12))).sum()))
