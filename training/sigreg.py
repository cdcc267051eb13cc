"""SIGReg: how far a batch of latents is from an isotropic Gaussian, as a loss (LeJEPA, arXiv 2511.08544).

Random directions reduce the question to one dimension; there the Epps-Pulley statistic compares the empirical
characteristic function with the Gaussian's. It is what keeps a world model trained from pixels from collapsing.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

KNOTS = 17
LARGEST_KNOT = 3.0


def sigreg(
    latents: Float[Tensor, "groups batch latent"], directions: int, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean statistic over groups (time steps) and `directions` fresh random directions.

    Each group is one batch of independent samples. The statistic is scaled by the batch size, as is usual for
    Epps-Pulley: samples of a true Gaussian give about 1 whatever their number, a collapsed batch far more.
    """
    axes = torch.randn(latents.shape[-1], directions, generator=generator).to(latents.device)
    statistic: Tensor = _EppsPulley.apply(latents.float() @ (axes / axes.norm(dim=0)))  # type: ignore[no-untyped-call]
    return statistic


def epps_pulley_reference(projected: Float[Tensor, "groups batch directions"]) -> Float[Tensor, ""]:
    """The statistic as it is written down, differentiated by autograd: slow; the fast one is tested against it."""
    knots, gaussian, weights = _quadrature(projected)
    angles = projected.unsqueeze(-1) * knots
    real, imaginary = angles.cos().mean(dim=1) - gaussian, angles.sin().mean(dim=1)
    return projected.shape[1] * ((real.square() + imaginary.square()) * weights).sum(dim=-1).mean()


def _quadrature(like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Knots on [0, 3], the Gaussian's characteristic function there, and trapezoid weights times that function."""
    knots = torch.linspace(0.0, LARGEST_KNOT, KNOTS, dtype=like.dtype, device=like.device)
    gaussian = torch.exp(-knots.square() / 2)
    weights = torch.full_like(knots, 2 * LARGEST_KNOT / (KNOTS - 1))  # the integrand is even: both halves of the line
    weights[0] = weights[-1] = weights[1] / 2
    return knots, gaussian, weights * gaussian


class _EppsPulley(torch.autograd.Function):
    """Value and gradient in one pass over the knots.

    Knots are evenly spaced, so cos(k x) and sin(k x) follow from cos(x) and sin(x) by the angle-addition rule: on a
    CPU 20 times faster than 16 cosines under autograd (5 x 128 x 1024 projections, forward and backward, 2 threads).
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        groups, batch, directions = projected.shape
        knots, gaussian, weights = (values.tolist() for values in _quadrature(projected))
        first_cos, first_sin = torch.cos(projected * knots[1]), torch.sin(projected * knots[1])
        cos, sin = first_cos, first_sin
        total = projected.new_zeros(())
        gradient = torch.zeros_like(projected)
        for k in range(1, KNOTS):
            if k > 1:
                cos, sin = cos * first_cos - sin * first_sin, sin * first_cos + cos * first_sin
            real, imaginary = cos.mean(dim=1, keepdim=True) - gaussian[k], sin.mean(dim=1, keepdim=True)
            total = total + weights[k] * (real.square() + imaginary.square()).sum()
            scale = 2 * weights[k] * knots[k]
            gradient.addcmul_(cos, imaginary, value=scale).addcmul_(sin, real, value=-scale)
        ctx.save_for_backward(gradient / (groups * directions))
        return total * batch / (groups * directions)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return upstream[0] * gradient
