"""The published loop around a LeWM network, as its solver and cost do it, in float32.

Samples are batched, and that is all: in every iteration both images are encoded, every step of a rollout embeds all
actions anew and predicts every position of the window, of which the last is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.lewm.network import LeWM
from model.package import ActionSpec
from model.preprocessing import prepare


@dataclass(frozen=True)
class LeWMSettings:
    """LeWorldModel's settings (arXiv 2603.19312)."""

    samples: int = 300
    iterations: int = 30
    elites: int = 30
    horizon: int = 5


class LeWMLoop(LeWMSettings):
    """The cross-entropy search of stable-worldmodel with these settings."""

    @torch.no_grad()
    def plan(
        self,
        network: LeWM,
        action: ActionSpec,
        image: Tensor,
        goal_image: Tensor,
        draw: Callable[[int], Tensor],
    ) -> Tensor:
        """Actions [horizon * block, action] from one uint8 image [height, width, 3] toward another, not bounded.

        `draw(iteration)` gives standard normal noise [samples, time, action].
        """
        size = (network.config.image, network.config.image)
        width = network.config.action_width
        mean, std = torch.zeros(self.horizon, width), torch.ones(self.horizon, width)
        for iteration in range(self.iterations):
            candidates = mean + std * draw(iteration).reshape(self.samples, self.horizon, width)
            candidates[0] = mean
            goal = network.encode(prepare(goal_image[None], "short_side", size))
            start = network.encode(prepare(image[None], "short_side", size))
            reached = self._rollout(network, start.expand(self.samples, -1).unsqueeze(1), candidates)
            costs = (reached - goal).pow(2).sum(-1)
            elites = candidates[costs.topk(self.elites, largest=False).indices]
            mean, std = elites.mean(0), elites.std(0)
        return mean.reshape(-1, len(action.mean)) * torch.tensor(action.std) + torch.tensor(action.mean)

    def _rollout(self, network: LeWM, latents: Tensor, candidates: Tensor) -> Tensor:
        """The last latent [samples, latent]."""
        window = network.config.window
        for step in range(self.horizon):
            embedded = network.action_embedder(candidates[:, : step + 1])
            predicted = network.predict(latents[:, -window:], embedded[:, -window:])[:, -1:]
            latents = torch.cat([latents, predicted], dim=1)
        return latents[:, -1]
