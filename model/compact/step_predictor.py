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
from model.layers.row_linear import RowLinear

CARRIED = 32  # numbers handed from step to step beside the latent: how fast things move, which no still image shows


class StepPredictor(nn.Module):
    """A multilayer perceptron that tells what one action block changes, and what it hands to its next step."""

    latent_mean: Tensor
    latent_std: Tensor
    change: Tensor

    def __init__(
        self,
        latent: int,
        block_width: int,
        *,
        width: int,
        depth: int,
        proprioception: int = 0,
        products: bool = False,
    ) -> None:
        """`block_width` is numbers per action block; `depth` counts hidden layers. It starts by changing nothing.

        With `products` it reads those of every two numbers of a latent, and of a latent and an action, too: what one
        thing is to another in the other's own frame is a sum of them.
        """
        super().__init__()
        self.latent, self.products = latent, products
        self.register_buffer("latent_mean", torch.zeros(latent))  # of the training episodes
        self.register_buffer("latent_std", torch.ones(latent))
        self.register_buffer("change", torch.ones(latent))  # how much each number changes in a block
        self.start = ProprioceptionEmbedding(proprioception, CARRIED) if proprioception else None
        read = latent + block_width + (latent * latent + latent * block_width if products else 0)
        layers: list[nn.Module] = [RowLinear(read + CARRIED, width), nn.GELU()]
        for _ in range(depth - 1):
            layers += [RowLinear(width, width), nn.GELU()]
        last = RowLinear(width, latent + CARRIED)
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
            told = self.layers(torch.cat([*self._read(latent, block), carried], dim=-1))
            changed, carried = told.split([self.latent, CARRIED], dim=-1)
            latent = latent + changed * self.change
            predicted.append(latent)
        return torch.stack(predicted, dim=1)

    def _read(self, latent: Tensor, block: Tensor) -> list[Tensor]:
        """What the layers see of a latent and an action block, besides what is carried."""
        known = (latent - self.latent_mean) / self.latent_std
        if not self.products:
            return [known, block]
        both = torch.cat([known, block], dim=-1)
        return [known, block, (known.unsqueeze(-1) * both.unsqueeze(-2)).flatten(-2)]
