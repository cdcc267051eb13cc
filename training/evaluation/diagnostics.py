"""Open-loop diagnostics: prediction error by horizon, and the rank of the true actions by the model's cost.

Both are measured open loop, on recorded episodes that no training has seen; robots and planners are not needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from model.interface import LoadedModel
from planner.cost import GoalDistance

CANDIDATES_AT_ONCE = 64  # bounds memory


@dataclass(frozen=True)
class OpenLoop:
    """Errors of predictions 1, 2, ... model steps ahead, as mean squared differences of latents."""

    actions: tuple[int, ...]  # robot actions ahead
    error: tuple[float, ...]
    unchanged: tuple[float, ...]  # the same for the prediction that nothing changes: below it, a model knows something


@dataclass(frozen=True)
class PlanWorthiness:
    """Where the actions that were really taken come among candidates, by the cost to the image they led to.

    The candidates of an episode are the actions of all episodes. Rank 0 is the cheapest, 1 the dearest; a cost that
    knows nothing has a median of 0.5.
    """

    candidates: int
    median_rank: float
    first: float  # share of episodes whose true actions were cheapest


def open_loop(
    model: LoadedModel,
    frames: UInt8[NDArray[np.uint8], "episodes steps height width 3"],
    actions: Float[NDArray[np.float32], "episodes time action"],
    proprioception: Float[NDArray[np.float32], "episodes steps numbers"],
) -> OpenLoop:
    """Predict every episode from its first frame and all its actions, and compare with the frames that followed.

    `proprioception` is the proprioception beside each frame, for models that take it.
    """
    latents = _latents(model, frames)
    steps = latents.shape[1] - 1
    taken = torch.from_numpy(np.ascontiguousarray(actions[:, : steps * model.block])).to(model.device)
    errors, changes = [], []
    for row in range(len(latents)):
        start = _start(model, latents[row, 0], proprioception[row])
        predicted = model.rollout(start, taken[row, None, None])[0, 0]
        errors.append(_mean_square(predicted - latents[row, 1:]))
        changes.append(_mean_square(latents[row, :1] - latents[row, 1:]))
    return OpenLoop(
        tuple(model.block * (step + 1) for step in range(steps)),
        tuple(torch.stack(errors).mean(dim=0).tolist()),
        tuple(torch.stack(changes).mean(dim=0).tolist()),
    )


def plan_worthiness(
    model: LoadedModel,
    frames: UInt8[NDArray[np.uint8], "episodes steps height width 3"],
    actions: Float[NDArray[np.float32], "episodes time action"],
    proprioception: Float[NDArray[np.float32], "episodes steps numbers"],
    horizon: int,
) -> PlanWorthiness:
    """Rank each episode's own first `horizon` model steps among everybody's, by the last step's distance to its goal.

    The true actions end at the goal but need not hurry there: their last step alone can be compared with others'.
    Raises ValueError for episodes shorter than the horizon.
    """
    latents = _latents(model, frames[:, : horizon * model.block + 1])
    if latents.shape[1] < horizon + 1:
        raise ValueError(f"episodes must have {horizon * model.block} steps, got {frames.shape[1] - 1}")
    candidates = torch.from_numpy(np.ascontiguousarray(actions[:, : horizon * model.block])).to(model.device)
    cost, group = GoalDistance("l2", over="last"), []
    for row in range(len(latents)):
        start, goal = _start(model, latents[row, 0], proprioception[row]), latents[row, -1:]
        prices = torch.cat(
            [
                cost(model.rollout(start, part[None]), goal, part[None])[0].sum(dim=-1)
                for part in candidates.split(CANDIDATES_AT_ONCE)
            ]
        )
        group.append((prices < prices[row]).float().mean())
    found = torch.stack(group)
    return PlanWorthiness(len(candidates), found.median().item(), (found == 0).float().mean().item())


def _start(
    model: LoadedModel, latent: Float[Tensor, "*latent"], proprioception: NDArray[np.float32]
) -> tuple[Tensor, ...]:
    """What the rollouts of an episode start from: its first latent, and the first row of what was proprioception."""
    takes = bool(model.package.config.proprioception_names)
    return model.context([latent], torch.from_numpy(proprioception[:1]).to(model.device) if takes else None)


def _latents(model: LoadedModel, frames: NDArray[np.uint8]) -> Float[Tensor, "episodes steps *latent"]:
    """The latents of every block-th frame."""
    shown = np.ascontiguousarray(frames[:, :: model.block])
    return torch.stack([model.encode(torch.from_numpy(episode)) for episode in shown])


def _mean_square(difference: Float[Tensor, "steps *latent"]) -> Float[Tensor, " steps"]:  # noqa: F821  # a shape
    return difference.float().square().flatten(1).mean(dim=1)
