"""The step predictor: one action block at a time, each prediction fed to the next; beside the one-call predictor.

A network that sees one block at a time has only that block's contact to explain, and is right after it where one that
predicts a whole horizon at once is not; fed with its own predictions its errors grow. The two err differently: a
package that has both predicts between them (`CompactConfig.step_share`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.compact.predictor import ProprioceptionEmbedding

CARRIED = 32  # numbers handed from step to step beside the latent: how fast things move, which no still image shows


class StepPredictor(nn.Module):
    """A multilayer perceptron that tells what one action block changes, and what it hands to its next step."""

    def __init__(self, latent: int, block_width: int, *, width: int, depth: int, proprioception: int = 0) -> None:
        """`block_width` is numbers per action block; `depth` counts hidden layers. It starts by changing nothing."""
        super().__init__()
        self.latent = latent
        self.start = ProprioceptionEmbedding(proprioception, CARRIED) if proprioception else None
        layers: list[nn.Module] = [nn.Linear(latent + block_width + CARRIED, width), nn.GELU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.GELU()]
        last = nn.Linear(width, latent + CARRIED)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(
        self,
        latent: Float[Tensor, "batch latent"],
        actions: Float[Tensor, "batch steps block"],
        proprioception: Float[Tensor, "batch numbers"] | None = None,
    ) -> Float[Tensor, "batch steps latent"]:
        """Latents after each of any number of action blocks (network units); `proprioception` is of the start."""
        carried = latent.new_zeros(len(latent), CARRIED)
        if self.start is not None:
            carried = carried + self.start(proprioception)
        predicted = []
        for block in actions.unbind(1):
            changed, carried = self.layers(torch.cat([latent, block, carried], dim=-1)).split(
                [self.latent, CARRIED], dim=-1
            )
            latent = latent + changed
            predicted.append(latent)
        return torch.stack(predicted, dim=1)
