"""SIGReg: the fast statistic equals the written-down one, and tells a Gaussian from what is not."""

from __future__ import annotations

import pytest
import torch

from training.compact.sigreg import _EppsPulley, epps_pulley_reference, random_directions, sigreg
from training.distributed import ALONE


def latents(seed: int, batch: int = 256) -> torch.Tensor:
    return torch.randn(2, batch, 16, generator=torch.Generator().manual_seed(seed))


def directions(count: int, seed: int) -> torch.Tensor:
    return random_directions(16, count, torch.Generator().manual_seed(seed))


def test_the_fast_statistic_and_its_gradient_equal_the_reference() -> None:
    projected = torch.randn(3, 20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    projected.requires_grad_()
    expected = epps_pulley_reference(projected)
    value = _EppsPulley.apply(projected, ALONE)
    torch.testing.assert_close(value, expected)
    (slow,) = torch.autograd.grad(expected, projected)
    (fast,) = torch.autograd.grad(3 * value, projected)
    torch.testing.assert_close(fast, 3 * slow)


def test_a_gaussian_batch_scores_about_one_whatever_its_size() -> None:
    for batch in (64, 512):
        value = sigreg(latents(1, batch), directions(256, 2))
        assert 0.7 < value.item() < 1.4


@pytest.mark.parametrize("spoil", [lambda z: 0 * z, lambda z: 3 * z, lambda z: z + 2, lambda z: z.abs()])
def test_what_is_not_a_standard_gaussian_scores_far_more(spoil: object) -> None:
    assert callable(spoil)
    value = sigreg(spoil(latents(3)), directions(256, 4))
    assert value.item() > 5.0


def test_descent_on_the_statistic_makes_a_collapsed_batch_gaussian() -> None:
    z = (0.1 * latents(5) + 1.0).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    generator = torch.Generator().manual_seed(6)
    for _ in range(200):
        optimizer.zero_grad()
        sigreg(z, random_directions(16, 64, generator)).backward()
        optimizer.step()
    covariance = torch.cov(z.detach()[0].T)
    assert z.mean().abs().item() < 0.1
    assert (covariance.diagonal().mean() - 1).abs().item() < 0.2
