"""Distances that count what changes slowly: known changes come out white, and networks keep saying the same."""

from __future__ import annotations

import pytest
import torch

from model.compact.network import CompactConfig, CompactNetwork
from training.compact.latent_whitening import change_basis, slow_basis


def episodes() -> list[torch.Tensor]:
    """A quick and a slow coordinate of equal variance, mixed."""
    generator = torch.Generator().manual_seed(0)
    quick = torch.randn(40, 50, generator=generator)
    slow = torch.randn(40, 50, generator=generator).cumsum(dim=1)
    slow = (slow - slow.mean()) / slow.std()
    mixed = torch.stack([quick + slow, quick - slow], dim=-1) / 2**0.5
    return list(mixed)


def test_changes_become_white_and_the_latents_keep_their_size() -> None:
    basis = slow_basis(episodes(), floor=1e-9)
    moved = [latents.double() @ basis for latents in episodes()]
    changes = torch.cat([latents.diff(dim=0) for latents in moved])
    covariance = changes.T @ changes / len(changes)
    torch.testing.assert_close(covariance, covariance[0, 0] * torch.eye(2, dtype=torch.float64), rtol=1e-4, atol=1e-6)
    assert torch.cat(moved).var(dim=0).mean().item() == pytest.approx(torch.cat(episodes()).var(dim=0).mean().item())
    slow, quick = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])
    assert (slow.double() @ basis).norm() > 5 * (quick.double() @ basis).norm()


def test_a_floor_keeps_what_never_changes_from_ruling() -> None:
    still = [torch.cat([latents, torch.full((50, 1), 3.0)], dim=1) for latents in episodes()]
    basis = slow_basis(still, floor=0.1)
    values = torch.linalg.eigvalsh(basis)
    assert values[-1] / values[0] < (1 + 3 / 0.1) ** 0.5
    with pytest.raises(ValueError, match="slow_floor: an episode must be at least two model steps"):
        slow_basis([torch.zeros(1, 3)], floor=0.1)


@pytest.mark.parametrize("residual", [False, True])
def test_a_network_says_the_same_in_the_new_basis(residual: bool) -> None:
    torch.manual_seed(0)
    shapes = CompactConfig(action_width=4, latent=6, encoder_width=32, encoder_depth=1, residual=residual)
    network = CompactNetwork(shapes).eval()
    torch.nn.init.normal_(network.predictor.latent_out.weight)
    frames, actions = torch.rand(3, 3, 32, 32), torch.randn(3, 2, 4)
    basis = torch.eye(6, dtype=torch.float64) + 0.3 * torch.randn(6, 6, dtype=torch.float64)
    basis = basis @ basis.T
    with torch.no_grad():
        latents = network.encode(frames)
        predicted = network.predict(latents, actions)
        change_basis(network, basis)
        torch.testing.assert_close(network.encode(frames), latents @ basis.float(), rtol=1e-3, atol=1e-4)
        again = network.predict(network.encode(frames), actions)
    torch.testing.assert_close(again, predicted @ basis.float(), rtol=1e-3, atol=1e-3)
