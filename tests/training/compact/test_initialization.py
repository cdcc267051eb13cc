"""What a training begins with: a package's weights where it is given one, and labels in their own spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.compact.network import CompactConfig, CompactNetwork
from model.package import read_package
from tests.support.training.dots import RECIPE, dot_episodes, ignore, run
from training.compact.initialization import labeled, start_from
from training.compact.train import train


def test_a_training_that_starts_from_a_package_has_its_weights(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "first")
    first = read_package(tmp_path / "first")
    still = replace(RECIPE, steps=1, learning_rate=1e-12)  # a step that moves nothing
    train(still, dot_episodes(), "dot", tmp_path / "next", ignore, provenance={}, initial=first)
    went_on = read_package(tmp_path / "next")
    assert first.weights_digest in went_on.config.training["initialized_from"]
    for name, weight in first.weights().items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(went_on.weights()[name], weight, rtol=0, atol=1e-9)


def test_a_residual_predictor_begins_with_nothing_changes_whatever_it_starts_from(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "first")
    first = read_package(tmp_path / "first")
    shapes = CompactConfig(**{**first.config.network, "residual": True})
    network = CompactNetwork(shapes)
    start_from(network, first)
    latent, actions = torch.randn(3, 16), torch.randn(3, 4, shapes.action_width)
    torch.testing.assert_close(network.predict(latent, actions), latent.unsqueeze(1).expand(3, 4, 16))
    kept = network.predictor.action_in[0].weight
    torch.testing.assert_close(kept, first.weights()["predictor.action_in.0.weight"].float())


def test_a_head_with_places_begins_with_what_the_mean_it_starts_from_says(tmp_path: Path) -> None:
    run(replace(RECIPE, placed=False), tmp_path / "first")
    first = read_package(tmp_path / "first")
    of_means = CompactNetwork(CompactConfig(**first.config.network))
    of_places = CompactNetwork(CompactConfig(**{**first.config.network, "placed_tokens": 4}))
    start_from(of_means, first)
    start_from(of_places, first)
    frames = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(of_places.eval().encode(frames), of_means.eval().encode(frames))
    run(RECIPE, tmp_path / "places")
    places = read_package(tmp_path / "places")
    with pytest.raises(ValueError, match="init_from: dot has placed_tokens 4, this recipe 0"):
        start_from(of_means, places)


def test_a_frozen_encoder_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen_encoder must have a package to start from"):
        run(replace(RECIPE, frozen_encoder=True), tmp_path / "dot")


def test_a_package_of_other_shapes_is_refused_by_the_shape(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "first")
    first, wider = read_package(tmp_path / "first"), replace(RECIPE, latent=32)
    with pytest.raises(ValueError, match="init_from: dot has latent 16, this recipe 32"):
        train(wider, dot_episodes(), "dot", tmp_path / "next", ignore, provenance={}, initial=first)


def test_labels_are_measured_in_their_own_spread_where_they_were_recorded() -> None:
    episodes = replace(dot_episodes(3, 4), lengths=np.array([4, 2, 3]))
    assert episodes.probe_targets is not None
    targets = np.concatenate([100.0 + 7.0 * episodes.probe_targets, np.full((3, 5, 1), 5.0)], axis=2)
    targets[1, 3:], targets[2, 4:] = 1e9, np.nan  # never recorded
    labels = labeled(replace(episodes, probe_targets=targets.astype(np.float32))).labels
    assert labels is not None
    recorded = np.concatenate([labels[0], labels[1, :3], labels[2, :4]])
    np.testing.assert_allclose(recorded.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(recorded.std(axis=0), [1.0, 1.0, 0.0], atol=1e-5)
    with pytest.raises(ValueError, match="labels: episodes must say what latents are to tell, got none in a dot"):
        labeled(replace(episodes, probe_targets=None))
