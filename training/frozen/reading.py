"""Latents as a straight line reads them: what labels say of a frame, and nothing else.

Where recordings say where things are, and a package's latents tell it by a straight line, that line can be folded into
the encoder's head. Distances of the new latents are of the labels, in the units a task counts in; the labels are needed
in training alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from model.package import Package, read_package, write_package
from training.data.episodes import Episodes
from training.frozen.windows import EncodedEpisodes, encoded_episodes

RIDGE = 1e-6


@dataclass(frozen=True)
class Reading:
    """A straight line from latents to labels in units of their `scale`, and how far off it is on held-out frames."""

    weight: Float[Tensor, "latent labels"]
    bias: Float[Tensor, " labels"]
    off: Float[Tensor, " labels"]  # root mean square, in the same units


def fit_reading(
    latents: Float[Tensor, "frames latent"], labels: Float[Tensor, "frames labels"], scale: tuple[float, ...]
) -> Reading:
    """Ridge regression on the first three quarters of the frames, measured on the rest.

    `scale` is what counts as one unit of each label. ValueError where it is not as long as there are labels.
    """
    if len(scale) != labels.shape[-1] or not all(unit > 0 for unit in scale):
        raise ValueError(f"reading must hold {labels.shape[-1]} numbers above 0, one for each label, got {list(scale)}")
    fitting = len(latents) * 3 // 4
    known = torch.nn.functional.pad(latents.double(), (0, 1), value=1.0)
    wanted = labels.double() / torch.tensor(scale, dtype=torch.float64)
    ridge = RIDGE * fitting * torch.eye(known.shape[1], dtype=torch.float64)
    line = torch.linalg.solve(known[:fitting].T @ known[:fitting] + ridge, known[:fitting].T @ wanted[:fitting])
    off = (known[fitting:] @ line - wanted[fitting:]).square().mean(dim=0).sqrt()
    return Reading(line[:-1].float(), line[-1].float(), off.float())


def folded_head(package: Package, reading: Reading) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The package's encoder with the line in its head, and the network's shapes; without anything that predicts."""
    weights = {
        name: weight for name, weight in package.weights().items() if not name.startswith(("predictor.", "stepper."))
    }
    told, bias = weights["head.3.weight"].double(), weights["head.3.bias"].double()
    line = reading.weight.double()
    # In float32: matrices in bfloat16 would put the readings of neighboring places 0.4 % of the table apart.
    weights["head.3.weight"] = (line.T @ told).float()
    weights["head.3.bias"] = (line.T @ bias + reading.bias.double()).float()
    return weights, {**package.config.network, "latent": len(reading.bias)}


def told_latents(
    labels: NDArray[np.float32], scale: Sequence[float], off: Sequence[float], seed: int
) -> NDArray[np.float32]:
    """What the folded head would say of frames with these labels [episodes, frames, labels], which nobody encodes: the
    labels in units of `scale`, and noise as large as the line is `off`."""
    noise = np.random.default_rng(seed).standard_normal(labels.shape, dtype=np.float32)
    told: NDArray[np.float32] = labels / np.asarray(scale, np.float32) + noise * np.asarray(off, np.float32)
    return told


def episode_reading(scale: tuple[float, ...], episodes: Episodes, latents: NDArray[np.float32], every: int) -> Reading:
    """The line from latents, of every so manyth frame of episodes, to their labels. ValueError where they have none."""
    if episodes.probe_targets is None:
        raise ValueError(f"reading: episodes must say what latents are to tell, got none in {episodes.source}")
    labels = episodes.probe_targets[:, ::every]
    lengths = np.array([episodes.steps_of(row) for row in range(len(labels))])
    known = np.arange(labels.shape[1]) * every <= lengths[:, None]
    told, seen = (torch.from_numpy(np.asarray(part)[known]) for part in (labels, latents))
    return fit_reading(seen, told, scale)


def reading_package(
    package: Package,
    scale: tuple[float, ...],
    episodes: Episodes,
    latents: NDArray[np.float32],
    every: int,
    folder: Path,
) -> Package:
    """Write the package with the line in its head into `folder`: an encoder that a step predictor is to be trained for.

    `latents` are of every so manyth frame of `episodes`. ValueError for episodes without labels.
    """
    reading = episode_reading(scale, episodes, latents, every)
    weights, network = folded_head(package, reading)
    record = {"scale": list(scale), "off": [round(value, 4) for value in reading.off.tolist()]}
    config = replace(
        package.config,
        latent_shape=(len(scale),),
        network=network,
        training={**package.config.training, "reading": record},
        proposer=None,
        scores={},
    )
    write_package(folder, config, weights, package.card())
    return read_package(folder)


def told_episodes(episodes: Episodes, scale: Sequence[float], off: Sequence[float], seed: int) -> EncodedEpisodes:
    """All frames of episodes as the line would read them, from their labels. ValueError where there are none."""
    if episodes.probe_targets is None:
        raise ValueError(f"reading: episodes must say what latents are to tell, got none in {episodes.source}")
    return encoded_episodes(episodes, told_latents(episodes.probe_targets, scale, off, seed), every=1)
