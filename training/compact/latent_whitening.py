"""Whitens latents by their changes, so that distances count slow features as much as fast ones.

A planner searches by distances of latents. A robot's own pose changes with every action, what it handles only where it
touches it, so that in latents of equal variance the pose is most of every distance. Slow feature analysis (Wiskott &
Sejnowski 2002) divides by how much latents change in one model step. Networks take the new basis into their weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.compact.network import CompactNetwork


def slow_basis(episodes: Iterable[Float[Tensor, "steps latent"]], floor: float) -> Float[Tensor, "latent latent"]:
    """The symmetric matrix after which changes from row to row are white; the latents' mean variance stays as it is.

    `floor`, as a share of the mean change, is added in every direction, so that one which hardly ever changes, such as
    noise of the encoder, does not rule over all others. ValueError for episodes of fewer than two rows throughout.
    """
    rows = list(episodes)
    changes = torch.cat([latents.double().diff(dim=0) for latents in rows])
    if not len(changes):
        raise ValueError("slow_floor: an episode must be at least two model steps long, got none")
    covariance = changes.T @ changes / len(changes)
    values, vectors = torch.linalg.eigh(covariance)
    basis = vectors @ torch.diag((values + floor * values.mean()).rsqrt()) @ vectors.T
    everything = torch.cat([latents.double() for latents in rows])
    grown = (everything @ basis).var(dim=0).mean() / everything.var(dim=0).mean()
    return basis / grown.sqrt()


@torch.no_grad()
def change_basis(network: CompactNetwork, basis: Float[Tensor, "latent latent"]) -> None:
    """Make every latent `x` of a network `basis @ x`: those it encodes, starts from, and predicts."""
    told, read, predicted = network.head[-1], network.predictor.latent_in, network.predictor.latent_out
    for layer in (told, read, predicted):
        assert isinstance(layer, nn.Linear)
    for layer in (told, predicted):
        layer.weight.copy_(basis @ layer.weight.double())
        layer.bias.copy_(basis @ layer.bias.double())
    read.weight.copy_(read.weight.double() @ torch.linalg.inv(basis))
