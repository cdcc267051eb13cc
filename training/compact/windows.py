"""Random windows of episodes, drawn in the background so that the network need not wait for them.

Everything random in a training step is drawn here, in one order from one generator: the batches after an interruption
are those that would have come.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from training.compact.sigreg import random_directions
from training.data.episodes import Episodes
from training.distributed import ALONE, ProcessGroup


@dataclass(frozen=True)
class Windows:
    """What windows are cut to."""

    batch: int
    horizon: int  # model steps
    block: int  # robot actions per model step
    latent: int
    directions: int
    unmeasured: float | None = None  # share of frames whose proprioception is hidden; None: it is not drawn at all


@dataclass(frozen=True)
class Batch:
    """One batch of windows, and the generator's state after it was drawn."""

    frames: UInt8[Tensor, "batch times height width 3"]
    actions: Float[Tensor, "batch time action"]
    directions: Float[Tensor, "latent directions"]
    state: Tensor
    proprioception: Float[Tensor, "batch times numbers"] | None = None  # proprioception; NaN where it is hidden
    labels: Float[Tensor, "batch times labels"] | None = None


def sample_batch(
    episodes: Episodes, windows: Windows, generator: torch.Generator, group: ProcessGroup = ALONE
) -> Batch:
    """This process's part of a batch: frames a block apart, the actions between them, and SIGReg's directions.

    All processes draw the same and take their own rows. Raises ValueError where no episode is long enough.
    """
    span = windows.horizon * windows.block
    rows, starts = episodes.draw_windows(windows.batch, span, generator)
    directions = random_directions(windows.latent, windows.directions, generator)
    own = group.part(windows.batch)
    rows, starts = rows[own], starts[own]
    shown = starts[:, None] + np.arange(0, span + 1, windows.block)
    between = starts[:, None] + np.arange(span)
    proprioception = None
    if windows.unmeasured is not None:
        assert episodes.proprioception is not None
        hidden = torch.rand(windows.batch, windows.horizon + 1, generator=generator) < windows.unmeasured
        measured = torch.from_numpy(episodes.proprioception[rows[:, None], shown])
        proprioception = measured.masked_fill(hidden[own].unsqueeze(-1), torch.nan)
    return Batch(
        torch.from_numpy(episodes.frames[rows[:, None], shown]),
        torch.from_numpy(episodes.actions[rows[:, None], between]),
        directions,
        generator.get_state(),
        proprioception,
        None if episodes.labels is None else torch.from_numpy(episodes.labels[rows[:, None], shown]),
    )


def batches(
    episodes: Episodes, windows: Windows, generator: torch.Generator, group: ProcessGroup = ALONE
) -> Generator[Batch, None, None]:
    """Batches without end, the next always under way in a thread of its own; closing the iterator ends it."""
    with ThreadPoolExecutor(1, thread_name_prefix="windows") as pool:
        coming = pool.submit(sample_batch, episodes, windows, generator, group)
        while True:
            batch = coming.result()
            coming = pool.submit(sample_batch, episodes, windows, generator, group)
            yield batch
