"""Values that a demo's report, GIF and JSON are made from. No drawing and no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.statistics import percentile, wilson_interval

Frames = NDArray[np.uint8]  # [time, height, width, 3] RGB


@dataclass(frozen=True)
class PlanRecord:
    """One plan as the robot got it. Durations in milliseconds: the round trip on the robot's clock, the rest told by
    the service."""

    step: int  # robot actions taken when it was asked for
    goal_distance: float
    cost: float
    step_costs: tuple[float, ...]
    iteration_costs: tuple[float, ...]
    round_trip_ms: float
    queue_ms: float
    decode_ms: float
    encode_ms: float
    plan_ms: float
    total_ms: float
    warm_started: bool
    stop_reason: str
    seed: int

    @property
    def overhead_ms(self) -> float:
        """What the service adds: the round trip less the time spent on encoding and planning."""
        return self.round_trip_ms - self.plan_ms - self.encode_ms

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PlanRecord:
        """A record from a line of the robot's; lists become tuples."""
        named: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
        lists = {name: tuple(value) for name, value in named.items() if isinstance(value, list)}
        return cls(**{**named, **lists})


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


@dataclass(frozen=True)
class ClipRecord:
    """The recorded episode as a video file, sent back to the service."""

    episode: int
    file: str
    bytes: int
    frames: int
    pooled_shape: tuple[int, ...]
    per_frame_shape: tuple[int, ...]
    goal_distances: tuple[float, ...]  # of every frame used
    frame_times_s: tuple[float, ...]
    upload_ms: float


@dataclass(frozen=True)
class ServiceRecord:
    """What served the demo."""

    model: str
    family: str
    weights_digest: str
    server_version: str
    device: str
    dtype: str
    crop_policy: str
    planner: Mapping[str, int]
    block: int
    rate_hz: float
    image_size: int  # pixels, height and width


@dataclass(frozen=True, eq=False)
class DemoRecord:
    """A whole demo."""

    task: str
    model: str
    transport: str
    seed: int
    budget_steps: int
    episodes: tuple[EpisodeRecord, ...]
    service: ServiceRecord
    clip: ClipRecord
    machine: Mapping[str, str]
    seconds: float

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
        plan_ms = [plan.plan_ms for plan in self.plans]
        overhead_ms = [plan.overhead_ms for plan in self.plans]
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
