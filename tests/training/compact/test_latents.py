"""What can be read off latents, and of which frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from model.compact.network import CompactConfig, CompactNetwork
from tests.support.training.dots import dot_episodes
from training.compact.latents import probe
from training.linear_probe import linear_probe


def test_a_probe_sees_only_what_was_recorded() -> None:
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(action_width=2, latent=8, encoder_width=32, encoder_depth=1))
    whole = dot_episodes(count=6)
    frames, targets = whole.frames.copy(), np.asarray(whole.probe_targets).copy()
    frames[:, 6:], targets[:, 6:] = 255, 1e6
    short = replace(whole, frames=frames, probe_targets=targets, lengths=np.full(6, 5))
    cut = replace(whole, frames=whole.frames[:, :6], actions=whole.actions[:, :5], probe_targets=targets[:, :6])
    assert probe(network, short) == probe(network, cut)


def test_a_linear_probe_finds_what_is_linear_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    y = torch.stack([x @ torch.arange(6.0), torch.randn(400, generator=generator), torch.full((400,), 3.0)], dim=1)
    found, noise, constant = linear_probe(x[:200], y[:200], x[200:], y[200:])
    assert found > 0.999
    assert noise < 0.1
    assert constant == 0
