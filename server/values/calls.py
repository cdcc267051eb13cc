"""What the application takes, free of any transport: plain values and numpy arrays. What it gives is `presage.values`.

Both transports read these by their types; the meaning of each field is told once, in proto/presage/v1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from presage.limits import ActionLimits
from presage.values import Model, PlannerSettings
from pydantic import Field

Frame = NDArray[np.uint8]  # [height, width, 3], RGB
Array = NDArray[np.generic]
EmbeddingKind = Literal["pooled", "per_frame", "tokens"]


@dataclass(frozen=True)
class Observation:
    """`images` are decoded frames, one per camera; `capture_time_ns` is the robot's own clock, echoed untouched."""

    images: tuple[Frame, ...]
    proprioception: NDArray[np.float32] | None = None
    capture_time_ns: int | None = None
    sequence: int = 0
    past_images: tuple[Frame, ...] = ()  # oldest first, a model step apart
    past_actions: NDArray[np.float32] | None = None  # [time, action], executed since the first of them


@dataclass(frozen=True)
class PlanRequest:
    observation: Observation
    session_id: str = ""
    model: str = ""
    goal_id: str = ""
    planner: PlannerSettings = field(default_factory=PlannerSettings)
    seed: int | None = None
    budget_ms: float | None = None
    executed: int = 0
    committed: int = 0
    request_id: str = ""
    plan_sequence: int = 0
    limits: ActionLimits | None = None  # narrower than the session's and the model's
    previous_action: tuple[float, ...] = ()  # the last action executed, where it was none of a plan's


@dataclass(frozen=True)
class GoalRequest:
    """Exactly one of `image` and `latent`."""

    model: str = ""
    image: Frame | None = None
    latent: NDArray[np.float32] | None = None
    proprioception: NDArray[np.float32] | None = None  # what the robot should measure there


@dataclass(frozen=True)
class GoalStage:
    """One goal of several; a rule of 0 never ends the stage."""

    goal_id: str
    switch_below: float = 0.0
    max_actions: int = 0


@dataclass(frozen=True)
class SessionRequest:
    model: str = ""
    goal_id: str = ""
    ttl_s: float = 0.0
    seed: int | None = None
    stages: tuple[GoalStage, ...] = ()
    limits: ActionLimits | None = None  # narrower than the model's


@dataclass(frozen=True)
class CalibrationMove:
    before: Observation
    action: NDArray[np.float32]  # [action]
    after: Observation


@dataclass(frozen=True)
class CalibrateRequest:
    session_id: str
    moves: Annotated[tuple[CalibrationMove, ...], Field(max_length=64)]


@dataclass(frozen=True)
class EmbedImagesRequest:
    images: Annotated[tuple[Frame, ...], Field(min_length=1)]
    model: str = ""
    kind: EmbeddingKind = "per_frame"
    goal_id: str = ""


@dataclass(frozen=True)
class FrameSampling:
    """At most one is set; none means every frame."""

    fps: float | None = None
    frames: int | None = None


@dataclass(frozen=True)
class EmbedClipRequest:
    """`path` is a spooled upload that the gateway owns and deletes."""

    path: Path
    model: str = ""
    kind: EmbeddingKind = "pooled"
    sampling: FrameSampling = field(default_factory=FrameSampling)
    goal_id: str = ""
    step_distances: bool = False


@dataclass(frozen=True)
class ClassifyClipRequest:
    """`path` is a spooled upload that the gateway owns and deletes."""

    path: Path
    model: str = ""
    sampling: FrameSampling = field(default_factory=FrameSampling)
    top_k: int = 5


@dataclass(frozen=True)
class RolloutRequest:
    observation: Observation
    actions: NDArray[np.float32]  # [time, action]
    session_id: str = ""
    model: str = ""
    goal_id: str = ""


@dataclass(frozen=True)
class ScoreRequest:
    observation: Observation
    candidates: NDArray[np.float32]  # [candidates, time, action]
    session_id: str = ""
    model: str = ""
    goal_id: str = ""


@dataclass(frozen=True)
class DistanceRequest:
    images: Annotated[tuple[Frame, ...], Field(min_length=1)]
    session_id: str = ""
    model: str = ""
    goal_id: str = ""


@dataclass(frozen=True)
class DistanceReply:
    distances: tuple[float, ...]


@dataclass(frozen=True)
class SurpriseRequest:
    observations: Annotated[tuple[Observation, ...], Field(min_length=2)]  # one per step of the model
    actions: NDArray[np.float32]  # [time, action], between them
    session_id: str = ""
    model: str = ""


@dataclass(frozen=True)
class LandscapeRequest:
    """The cost of a grid of actions around rest; no dimensions: the first three searched."""

    observation: Observation
    session_id: str = ""
    model: str = ""
    goal_id: str = ""
    dimensions: Annotated[tuple[str, ...], Field(max_length=3)] = ()
    points: int = 5
    extent: float = 1.0
    plot: bool = False


@dataclass(frozen=True)
class Empty:
    """Nothing to say."""


@dataclass(frozen=True)
class ModelName:
    name: str = ""


@dataclass(frozen=True)
class GoalId:
    goal_id: str


@dataclass(frozen=True)
class SessionId:
    session_id: str


@dataclass(frozen=True)
class ModelList:
    models: tuple[Model, ...]
