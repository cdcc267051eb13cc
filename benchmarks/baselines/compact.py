"""A plain cross-entropy loop for the compact family, as a user would write it around the network of a package.

float32, batched over samples, white noise, the last step's distance. As in the published loops, the cost of candidates
starts from pixels: the current image and the goal are encoded in every iteration. `stepwise` (as published for
LeWorldModel and DINO-WM) asks the network for one step of the horizon at a time, each time over the whole prefix;
without it the whole horizon comes out of one call, which this family's network allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines.lewm import LeWMSettings
from model.compact.network import CompactNetwork, to_network_input
from model.compact.world_model import read_config
from model.package import ActionSpec, Package


def load_network(package: Package) -> CompactNetwork:
    """The package's network in float32."""
    network = CompactNetwork(read_config(package.config)).eval().requires_grad_(False)
    network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in package.weights().items()})
    return network


@dataclass(frozen=True)
class PlainLoop(LeWMSettings):
    """LeWorldModel's search, within the robot's bounds."""

    stepwise: bool = True

    @torch.no_grad()
    def plan(
        self,
        network: CompactNetwork,
        action: ActionSpec,
        image: Tensor,
        goal_image: Tensor,
        draw: Callable[[int], Tensor],
    ) -> Tensor:
        """Actions [horizon * block, action] from one uint8 image [height, width, 3] toward another.

        `draw(iteration)` gives standard normal noise [samples, time, action].
        """
        low, high = torch.tensor(action.low), torch.tensor(action.high)
        average, deviation = torch.tensor(action.mean), torch.tensor(action.std)
        mean = ((low + high) / 2).repeat(self.horizon * action.block, 1)
        std = ((high - low) / 4).repeat(self.horizon * action.block, 1)
        for iteration in range(self.iterations):
            candidates = mean + std * draw(iteration)
            candidates[0] = mean
            candidates = torch.max(torch.min(candidates, high), low)
            latent = network.encode(to_network_input(image.unsqueeze(0)))
            goal = network.encode(to_network_input(goal_image.unsqueeze(0)))
            scaled = (candidates - average) / deviation
            blocks = scaled.reshape(self.samples, self.horizon, -1)
            start = latent.expand(self.samples, -1)
            if self.stepwise:
                for step in range(self.horizon):
                    reached = network.predict(start, blocks[:, : step + 1])[:, -1]
            else:
                reached = network.predict(start, blocks)[:, -1]
            costs = (reached - goal).pow(2).mean(-1)
            elites = candidates[costs.topk(self.elites, largest=False).indices]
            mean, std = elites.mean(0), elites.std(0)
        return mean
