"""Encodes recorded frames with a network in training, and probes the latents linearly."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from model.compact.network import CompactNetwork, to_network_input
from training.data.episodes import Episodes
from training.linear_probe import linear_probe

PROBED_FRAMES = 12  # of each held-out episode: neighbors tell a probe little, and encoding them takes time


@torch.no_grad()
def encoded(network: CompactNetwork, frames: NDArray[np.uint8], bfloat16: bool) -> NDArray[np.float32]:
    """Latents `[episodes, steps + 1, latent]` as the finished model will give them, of frames `[episodes, steps + 1,
    height, width, 3]`."""
    device = next(network.parameters()).device
    network.eval()
    latents = np.empty((*frames.shape[:2], network.config.latent), np.float32)
    for row in range(len(latents)):
        shown = to_network_input(torch.from_numpy(np.array(frames[row])).to(device))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            latents[row] = network.encode(shown).float().cpu().numpy()
    network.train()
    return latents


@torch.no_grad()
def probe(network: CompactNetwork, held_out: Episodes) -> tuple[float, ...]:
    """R2 of a linear probe from latents to `probe_targets`, fitted on half of the held-out episodes."""
    targets = held_out.probe_targets
    if targets is None or len(targets) < 2:
        return ()
    device = next(network.parameters()).device
    latents, wanted = [], []
    network.eval()
    for row in range(len(targets)):
        last = held_out.steps_of(row)
        shown = np.unique(np.linspace(0, last, min(PROBED_FRAMES, last + 1)).round().astype(np.int64))
        frames = torch.from_numpy(np.asarray(held_out.frames[row, shown])).to(device)
        latents.append(network.encode(to_network_input(frames)).cpu())
        wanted.append(torch.from_numpy(targets[row, shown]))
    network.train()
    half = len(targets) // 2
    fit, test = slice(half), slice(half, None)
    return linear_probe(*(torch.cat(part) for part in (latents[fit], wanted[fit], latents[test], wanted[test])))
