"""Candidates that a network suggests, followed through the world model: what a search's first iteration gets for free.

A proposer that sees where it is tells its next actions better than it tells those far ahead. So only the first block of
what it says is taken, the model predicts where that leads, and it is asked again from there, for several arrival times
at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from planner.anytime import Optimizer
from planner.optimizers.policy import Policy
from planner.receding import of_length
from planner.types import PlanningError, Problem
from planner.world_model import Context, Latents, WorldModel


class Proposer(Protocol):
    """Suggests actions from where the robot is, the goal, and the steps to go, counted in robot actions."""

    @property
    def longest(self) -> int:
        """The most steps to go that it knows of."""
        ...

    def propose(
        self,
        context: Context,
        goal: Float[Tensor, "batch *latent"],  # noqa: F821  # a shape
        steps_to_go: Float[Tensor, "batch proposals"],
    ) -> Float[Tensor, "batch proposals time action"]:
        """Actions in robot units, for at least one model step; those past the steps to go are rest."""
        ...

    def propose_from(
        self,
        latents: Latents,
        goal: Float[Tensor, "batch *latent"],  # noqa: F821  # a shape
        steps_to_go: Float[Tensor, "batch proposals"],
    ) -> Float[Tensor, "batch proposals time action"]:
        """The same from predicted latents [batch, proposals, *latent]."""
        ...


def arrivals(horizon: int, block: int, longest: int, carried: int | None = None) -> tuple[int, ...]:
    """Steps to go to ask a proposer about: every model step of the horizon that it knows, and what an earlier plan has
    left until it means to arrive; ascending, each once."""
    known = {step * block for step in range(1, horizon + 1) if step * block <= max(longest, block)}
    if carried is not None and 1 <= carried <= longest:
        known.add(carried)
    return tuple(sorted(known))


@torch.no_grad()
def proposals(
    proposer: Proposer, world_model: WorldModel, context: Context, goal: Tensor, horizon: int, steps: tuple[int, ...]
) -> Float[Tensor, "proposals time action"]:
    """One candidate of `horizon` model steps for each of these steps to go, for one robot (batch axis 1).

    Raises PlanningError for a proposer whose actions are not numbers.
    """
    block = world_model.block
    goals, left = goal.unsqueeze(0), torch.tensor([steps], dtype=torch.float32, device=goal.device)
    found = proposer.propose(context, goals, left)[:, :, :block]
    for step in range(1, horizon):
        reached = world_model.rollout(context, found)[:, :, -1]
        following = proposer.propose_from(reached, goals, left - step * block)[:, :, :block]
        found = torch.cat([found, following], dim=2)
    if not bool(found.isfinite().all()):
        raise PlanningError("proposer", "must propose finite actions", "NaN or infinity")
    return found[0]


def with_proposals(problem: Problem, proposer: Proposer, world_model: WorldModel, optimizer: Optimizer) -> Problem:
    """The problem with what its search is to be proposed: one pass where that is all there is, else several arrivals.

    Raises PlanningError as `proposals` does.
    """
    time = optimizer.horizon * world_model.block
    if isinstance(optimizer, Policy):
        ahead = min(problem.arrival or time, time, proposer.longest)
        left = torch.tensor([[float(ahead)]], device=problem.goal.device)
        told = proposer.propose(problem.context, problem.goal.unsqueeze(0), left)[0, 0]
        if not bool(told.isfinite().all()):
            raise PlanningError("proposer", "must propose finite actions", "NaN or infinity")
        return replace(problem, proposals=of_length(time, told, problem.space).unsqueeze(0))
    steps = arrivals(optimizer.horizon, world_model.block, proposer.longest, problem.arrival)
    told = proposals(proposer, world_model, problem.context, problem.goal, optimizer.horizon, steps)
    return replace(problem, proposals=told)
