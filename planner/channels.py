"""A goal distance of each group of a latent's channels, weighed: what a camera shows, and what a robot measures."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from planner.cost import GoalDistance, Residuals
from planner.types import PlanningError
from planner.world_model import Actions, Latents, StepCosts


@dataclass(frozen=True)
class ChannelDistance:
    """The sum of a distance over groups of channels of the last axis, each averaged by itself and weighed.

    `groups` are numbers of channels and their weights, in order. A goal may have fewer groups than a prediction, from
    the first on: then only these count (a goal image alone says nothing of what a robot should measure).
    """

    groups: tuple[tuple[int, float], ...]
    distance: GoalDistance = field(default_factory=lambda: GoalDistance("l2", over="last"))

    def __post_init__(self) -> None:
        if not self.groups:
            raise PlanningError("cost.groups", "must hold at least one group", self.groups)
        for channels, weight in self.groups:
            if channels < 1 or not (math.isfinite(weight) and weight >= 0):
                raise PlanningError("cost.groups", "must be channels >= 1 and weights >= 0", (channels, weight))

    def __call__(self, predicted: Latents, goal: Float[Tensor, "batch *latent"], actions: Actions) -> StepCosts:  # noqa: F821  # a shape
        parts = [weight * self.distance(*pair, actions) for weight, pair in self._split(predicted, goal)]
        return torch.stack(parts).sum(0)

    def residuals(self, predicted: Latents, goal: Float[Tensor, "batch *latent"], actions: Actions) -> Residuals:  # noqa: F821  # a shape
        """Those of every group, times the root of its weight."""
        pairs = self._split(predicted, goal)
        return torch.cat(
            [math.sqrt(weight) * self.distance.residuals(*pair, actions) for weight, pair in pairs], dim=-1
        )

    def _split(self, predicted: Latents, goal: Tensor) -> list[tuple[float, tuple[Tensor, Tensor]]]:
        """Every group that the goal has: its weight, and its channels of prediction and goal."""
        pairs, first = [], 0
        for channels, weight in self.groups:
            if first == goal.shape[-1]:
                break
            group = slice(first, first + channels)
            first += channels
            pairs.append((weight, (predicted[..., group], goal[..., group])))
        if first != goal.shape[-1] or first > predicted.shape[-1]:
            widths = [channels for channels, _ in self.groups]
            rule = f"must have the channels of whole groups {widths}, as predictions have"
            raise PlanningError("goal", rule, f"{goal.shape[-1]} of {predicted.shape[-1]}")
        return pairs
