"""Plans between two iterations, and the observations that they start from."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from planner.anytime import Optimizer
from planner.search import Search
from server.engine.messages import Floats, PlanJob
from server.worker.scheduling.fitting import Fitted


@dataclass(frozen=True, eq=False)
class Seen:
    """An observation, encoded."""

    picture: Tensor  # uint8 [height, width, 3], on the host
    latent: Tensor
    on_host: Floats  # the latent
    began: float  # instant at which its encoding began
    encoded: float  # instant at which the search could begin


@dataclass(eq=False)
class Running:
    """A plan between two iterations."""

    number: int
    caller: str
    job: PlanJob  # as asked for; `chosen` is what fits the time
    chosen: Fitted
    optimizer: Optimizer
    search: Search
    beginning: Tensor  # what the search begins with, in its limits
    price_s: float  # to tell, at the end, what the plan costs by the model's own measure
    seen: Seen
    goal_distance: float
    goal_reached: bool  # of a stage: the search is for the next one's
    warnings: tuple[str, ...]
    measured: bool  # the goal says what should be measured there
    shapes: tuple[tuple[int, ...], ...]  # of what its rollouts start from

    @property
    def steps(self) -> int:
        """Model steps that its next iteration evaluates: what its time is about proportional to."""
        return self.optimizer.iteration_steps(self.search)

    @property
    def kind(self) -> Hashable:
        """Those alike can share a rollout, and take as long: a hybrid first samples much, then descends little."""
        return self.job.model, self.chosen.size, self.steps, self.shapes, self.measured, self.search.sent is None

    @property
    def limit(self) -> float:
        """The instant by which the next iteration must have ended. The first one runs whatever the budget."""
        if self.search.iterations == 0 and self.job.on_trust:
            return math.inf
        deadline = math.inf if self.job.deadline is None else self.job.deadline
        if self.search.iterations == 0 or self.job.budget_until is None:
            return deadline - self.price_s
        return min(deadline, self.job.budget_until) - self.price_s
