"""How many requests are computed together: as many as change nothing in each other's numbers, measured at the start.

The same request and seed must give the same plan alone and in company. Libraries choose kernels by the size of what
they are given, so a row of a batch may differ in its last place from the same row alone, and a search in low precision
turns that into another plan. Where it does, requests are computed one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from model.interface import LoadedModel
from planner.world_model import WorldModel
from server.engine.messages import SearchSize
from server.worker import model_adapter

SAMPLES = (1, 17)  # of the searches that are compared, as when one is priced or descended from: more differ less
TOGETHER = 3  # requests in the batch that is compared with single ones


@dataclass(frozen=True)
class BatchSizes:
    """The most requests to one model that are computed together."""

    encoded: int  # observations in one encoding
    searched: int  # searches in one rollout

    def described(self) -> str:
        """In words, for `Model.computes`."""
        alone = [name for name, most in (("encodings", self.encoded), ("searches", self.searched)) if most == 1]
        return f"{' and '.join(alone)} one by one, so that batches change no plan" if alone else "batched"


@torch.no_grad()
def measured(model: LoadedModel, world: WorldModel, size: SearchSize, most: int) -> BatchSizes:
    """The sizes at which results are equal to the last bit; `most` where they are, and 1 where they are not."""
    if most == 1 or model_adapter.action_space(model) is None:
        return BatchSizes(most, most)
    image, config = model.package.config.image, model.package.config
    drawn = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (TOGETHER, image.height, image.width, 3), dtype=torch.uint8, generator=drawn)
    encoded = _alike(lambda some: model.encode(frames[some]))
    latents = [model.encode(frame[None])[0] for frame in frames]
    measurements = None
    if config.proprioception_names:
        measurements = torch.zeros(config.history, len(config.proprioception_names))
    contexts = [model_adapter.context(model, [each] * config.history, measurements, turn_rad=0.0) for each in latents]
    space = model_adapter.action_space(model)
    assert space is not None
    low, high = torch.tensor(space.low), torch.tensor(space.high)
    shape = (TOGETHER, max(SAMPLES), size.horizon * model.block, len(low))
    actions = (low + (high - low) * torch.rand(shape, generator=drawn)).to(model.device)

    def rolled_out(some: slice, samples: int) -> Tensor:
        joined = tuple(torch.cat(parts) for parts in zip(*contexts[some], strict=True))
        return world.rollout(joined, actions[some, :samples])

    searched = all(_alike(partial(rolled_out, samples=samples)) for samples in SAMPLES)
    return BatchSizes(most if encoded else 1, most if searched else 1)


def _alike(compute: Callable[[slice], Tensor]) -> bool:
    """Whether rows computed together are those computed alone; NaN is like NaN."""
    rows = compute(slice(0, TOGETHER)).nan_to_num()
    return all(torch.equal(rows[row], compute(slice(row, row + 1))[0].nan_to_num()) for row in range(TOGETHER))
