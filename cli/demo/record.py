"""Values that a demo's report, GIF and JSON are made from. No drawing and no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from presage import ActionSpec, ClipEmbedding, Model, Plan, Provenance

from training.evaluation.statistics import percentile, wilson_interval

Frames = NDArray[np.uint8]  # [time, height, width, 3] RGB


@dataclass(frozen=True, eq=False)
class PlanRecord:
    """One plan as the robot got it, after `step` of its actions, and the round trip on the robot's clock."""

    step: int
    plan: Plan
    round_trip_ms: float

    @property
    def overhead_ms(self) -> float:
        """What the service adds: the round trip less the time spent on encoding and planning."""
        return self.round_trip_ms - self.plan.timings.plan_ms - self.plan.timings.encode_ms


@dataclass(frozen=True, eq=False)
class EpisodeRecord:
    """One try at one pair, and the random policy's try at the same pair."""

    number: int  # 0, 1, ... within the demo
    pair: int  # in the manifest
    success: bool
    initially_solved: bool
    steps: int
    plans: tuple[PlanRecord, ...]
    goal_distances: tuple[float, ...]  # of every frame, in the planner's cost
    frames: Frames  # what the camera saw: [steps + 1, height, width, 3]
    goal: NDArray[np.uint8]  # [height, width, 3]
    random_success: bool
    random_steps: int
    random_end: NDArray[np.uint8]  # [height, width, 3]


@dataclass(frozen=True, eq=False)
class ClipRecord:
    """The recorded episode as a video file, sent back to the service."""

    episode: int
    file: str
    bytes: int
    frames: int
    pooled_shape: tuple[int, ...]
    embedding: ClipEmbedding  # per frame
    upload_ms: float


@dataclass(frozen=True, eq=False)
class DemoRecord:
    """A whole demo."""

    task: str
    model: str
    transport: str
    seed: int
    budget_steps: int
    episodes: tuple[EpisodeRecord, ...]
    served: Model
    clip: ClipRecord
    machine: Mapping[str, str]
    seconds: float

    @property
    def action(self) -> ActionSpec:
        """The actions that the robot was driven with."""
        assert self.served.action is not None
        return self.served.action

    @property
    def made_by(self) -> Provenance:
        """What made the last plan; of nothing where there was none to make."""
        return self.plans[-1].plan.provenance if self.plans else Provenance()

    @property
    def tried(self) -> tuple[EpisodeRecord, ...]:
        """The episodes that count: those that were not solved at their start."""
        return tuple(episode for episode in self.episodes if not episode.initially_solved)

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.tried)

    @property
    def random_successes(self) -> int:
        return sum(episode.random_success for episode in self.tried)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate."""
        return wilson_interval(self.successes, len(self.tried)) if self.tried else (0.0, 1.0)

    @property
    def plans(self) -> tuple[PlanRecord, ...]:
        return tuple(plan for episode in self.episodes for plan in episode.plans)

    def summary(self) -> dict[str, Any]:
        """The numbers under their fixed names; rates are 0 to 1, over the pairs that were not solved at their start."""
        plan_ms = [record.plan.timings.plan_ms for record in self.plans]
        overhead_ms = [record.overhead_ms for record in self.plans]
        count = len(self.tried)
        return {
            "task": self.task,
            "model": self.model,
            "transport": self.transport,
            "episodes": count,
            "successes": self.successes,
            "success_rate": self.successes / count if count else None,
            "random_success_rate": self.random_successes / count if count else None,
            "initially_solved": len(self.episodes) - count,
            "plan_ms_p50": _rounded(percentile(plan_ms, 50)),
            "plan_ms_p95": _rounded(percentile(plan_ms, 95)),
            "overhead_ms_p50": _rounded(percentile(overhead_ms, 50)),
            "overhead_ms_p95": _rounded(percentile(overhead_ms, 95)),
            "seed": self.seed,
        }


def _rounded(milliseconds: float | None) -> float | None:
    """To whole microseconds: clocks do not tell more."""
    return None if milliseconds is None else round(milliseconds, 3)
