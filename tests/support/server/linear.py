"""A world with a known answer: the latent is where a bright pixel is, actions push it. Loadable into a real engine.

`load` takes "linear", or a variant: "slow" sleeps through every rollout, "ponderous" for far longer, "nan" predicts NaN
from the right edge, "lost" predicts nothing but NaN, "embedder" has no actions, "historian" looks back and feels,
"guided" has a proposer, "limited" has limits on its actions, "table" has horizontal axes. Other names are packages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from presage.limits import ActionLimits
from torch import Tensor

from model import registry
from model.interface import ClipEmbedding, LoadedModel
from model.package import ActionSpec, ImageSpec, Package, PackageConfig, PlannerDefaults, limited
from server.values.calls import Frame

SIDE = 16
SLOW_S, PONDEROUS_S = 0.06, 0.4
GAIN = 0.05  # latent units per unit of action
ACTION = ActionSpec(
    names=("right", "down"),
    units=("m/s", "m/s"),
    low=(-1.0, -0.5),
    high=(1.0, 0.5),
    rate_hz=10.0,
    block=2,
    mean=(0.0, 0.0),
    std=(1.0, 1.0),
)
CONFIG = PackageConfig(
    name="linear",
    family="linear",
    image=ImageSpec(SIDE, SIDE),
    latent_shape=(2,),
    network={},
    action=ACTION,
    planner=PlannerDefaults(samples=64, iterations=6, elites=8, horizon=3),
)
CONFIGS = {
    "linear": CONFIG,
    "slow": replace(CONFIG, name="slow"),
    "ponderous": replace(CONFIG, name="ponderous"),
    "nan": replace(CONFIG, name="nan"),
    "lost": replace(CONFIG, name="lost"),
    "embedder": replace(CONFIG, name="embedder", action=None),
    "table": replace(CONFIG, name="table", action=replace(ACTION, names=("x", "y"))),
    "guided": replace(CONFIG, name="guided", planner=replace(CONFIG.planner, cost="least", replace_margin=0.2)),
    "limited": limited(replace(CONFIG, name="limited"), ActionLimits(slew=(0.25, 0.5), max_norm=0.75, dwell=(2, 1))),
    "historian": replace(CONFIG, name="historian", history=3, proprioception_names=("elbow",)),
}


def frame(right: float, down: float) -> Frame:
    """A picture of the world with the pixel at these coordinates in 0..1."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[0, 0, 0], image[0, 0, 1] = round(255 * right), round(255 * down)
    return image


def latent(right: float, down: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array([round(255 * right), round(255 * down)], np.float32) / 255


class Guide:
    """A proposer for this world: equal pushes that are at the goal in time."""

    longest = 8

    def propose(self, context: tuple[Tensor, ...], goal: Tensor, steps_to_go: Tensor) -> Tensor:
        return self.propose_from(context[0].unsqueeze(1).expand(-1, steps_to_go.shape[1], -1), goal, steps_to_go)

    def propose_from(self, latents: Tensor, goal: Tensor, steps_to_go: Tensor) -> Tensor:
        push = (goal.unsqueeze(1) - latents) / (GAIN * steps_to_go.clamp(min=1).unsqueeze(-1))
        pushes = push.unsqueeze(2).expand(-1, -1, self.longest, -1)
        under_way = torch.arange(self.longest) < steps_to_go.unsqueeze(-1)
        return torch.where(under_way.unsqueeze(-1), pushes, 0.0)


class Linear:
    """latent' = latent + GAIN * (sum of the block's actions). Satisfies `model.interface.LoadedModel`."""

    def __init__(self, config: PackageConfig) -> None:
        self.package = Package(config, Path("nowhere"), "0" * 64)
        self.device = torch.device("cpu")
        self.block = ACTION.block
        self.dtype = torch.float32
        self.proposer = Guide() if config.name == "guided" else None

    def to_precision(self, dtype: torch.dtype) -> LoadedModel:
        return self

    def encode(self, frames: Tensor) -> Tensor:
        return frames[:, 0, 0, :2].float() / 255

    def observation_warnings(self, frame: Tensor, proprioception: Tensor | None) -> tuple[str, ...]:
        return ("the pixel is in the corner",) if int(frame[0, 0, :2].max()) == 0 else ()

    def embed_clip(self, frames: Tensor) -> ClipEmbedding:
        latents = frames[:, 0, 0, :2].float() / 255
        return ClipEmbedding(latents.mean(0), latents, latents[:, None])

    def context(
        self, latents: Sequence[Tensor], proprioception: Tensor | None, past_actions: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if self.package.config.name == "historian":  # what it was given is what it starts from
            assert proprioception is not None
            assert len(latents) == len(proprioception)
            return (torch.stack(list(latents)).mean(0)[None],)
        return (latents[-1][None],)

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        name = self.package.config.name
        if name in ("slow", "ponderous"):
            time.sleep(SLOW_S if name == "slow" else PONDEROUS_S)
        pushes = GAIN * actions.unflatten(2, (-1, self.block)).sum(3).cumsum(2)
        predicted = context[0][:, None, None] + pushes
        if name == "nan":
            predicted[context[0][:, 0] == 1] = torch.nan
        return torch.full_like(predicted, torch.nan) if name == "lost" else predicted


def load(name: str, device: str) -> LoadedModel:
    return Linear(CONFIGS[name]) if name in CONFIGS else registry.load(name, torch.device(device))
