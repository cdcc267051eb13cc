"""Weight initialization and `init_from` for compact training, and the episodes as it is trained on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from model.compact.network import CompactNetwork
from model.compact.world_model import network_settings, read_config
from model.package import Package
from training.compact.latents import encoded
from training.compact.recipe import CompactRecipe
from training.data.episodes import Episodes


def begin(network: CompactNetwork, fitting: Episodes, recipe: CompactRecipe, initial: Package | None) -> Episodes:
    """Give the network its first weights; the episodes as it is trained on them, latents where it encodes no more.

    Raises ValueError where `initial` is missing or of other shapes.
    """
    if initial is not None:
        start_from(network, initial)
    elif recipe.frozen_encoder:
        raise ValueError("frozen_encoder must have a package to start from (init_from), got none")
    elif network.predictor.proprioception is not None:
        _standardize(network, fitting)
    if not recipe.frozen_encoder:
        return fitting
    return replace(fitting, frames=encoded(network, fitting.frames, recipe.bfloat16))


def labeled(episodes: Episodes) -> Episodes:
    """Episodes whose probe targets, of mean 0 and variance 1, are labels; ValueError where there are none."""
    targets = episodes.probe_targets
    if targets is None:
        raise ValueError(f"labels: episodes must say what latents are to tell, got none in {episodes.source}")
    recorded = episodes.recorded(targets)
    spread = recorded.std(axis=0)
    labels = (targets - recorded.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)
    return replace(episodes, labels=labels.astype(np.float32))


def start_from(network: CompactNetwork, package: Package) -> None:
    """Load a package's weights into a network of the same shapes; ValueError names the first shape that differs.

    Where only one of the two predictors is residual, the network's begins with predicting that nothing changes. A head
    that reads tokens in their places may start from one that reads their mean, and begins with doing the same.
    """
    wanted, found = network_settings(network.config), network_settings(read_config(package.config))
    tokens = wanted["placed_tokens"] if not found["placed_tokens"] else 0
    for name in sorted(wanted.keys() - {"residual"} - ({"placed_tokens"} if tokens else set())):
        if wanted[name] != found[name]:
            raise ValueError(f"init_from: {package.config.name} has {name} {found[name]}, this recipe {wanted[name]}")
    weights = {n: w.float() if w.is_floating_point() else w for n, w in package.weights().items()}
    if tokens:
        weights["head.0.weight"] = weights["head.0.weight"].repeat(1, tokens) / tokens
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"init_from: the weights of {package.config.name} do not fit its config: {error}") from error
    if wanted["residual"] != found["residual"]:
        network.predictor.change_nothing()


def _standardize(network: CompactNetwork, episodes: Episodes) -> None:
    """Have the network measure proprioception in spreads of the training episodes; what never varies stays as it is."""
    assert network.predictor.proprioception is not None
    recorded = episodes.recorded_proprioception().astype(np.float64)
    spread = recorded.std(axis=0)
    network.predictor.proprioception.mean.copy_(torch.from_numpy(recorded.mean(axis=0)))
    network.predictor.proprioception.std.copy_(torch.from_numpy(np.where(spread > 1e-6, spread, 1.0)))
