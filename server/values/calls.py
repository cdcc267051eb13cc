"""Requests and replies of the application: plain values and numpy arrays, free of any transport.

Both doors translate to and from these; the meaning of each field is told once, in proto/presage/v1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [height, width, 3], RGB
Array = NDArray[np.generic]
EmbeddingKind = Literal["pooled", "per_frame", "tokens"]
METRICS = ("l2", "l1", "rms", "cosine")  # of latents
SAMPLING = ("cem", "icem", "hybrid", "gauss_newton", "vjepa2_ac", "lewm", "dino_wm", "jepa_wms")  # of OPTIMIZERS
LEAST_DISCOUNT, MOST_DISCOUNT = 0.1, 10.0  # of a planner's settings
LAST_STEP_ALONE = ("vjepa2_ac", "lewm", "dino_wm", "jepa_wms")  # of OPTIMIZERS
OPTIMIZERS = ("cem", "icem", "mppi", "gradient", "hybrid", "gauss_newton", *LAST_STEP_ALONE)
"""Names a request may ask for; `planner.registry` makes them, where torch is."""


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
class PlannerSettings:
    """None takes the model's value."""

    samples: int | None = None
    iterations: int | None = None
    elites: int | None = None
    horizon: int | None = None
    optimizer: str | None = None
    dimensions: tuple[str, ...] = ()  # empty: the model's
    discount: float | None = None
    metric: str | None = None
    narrowing: float | None = None
    sample_decay: float | None = None


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


@dataclass(frozen=True)
class Timings:
    """Monotonic durations in milliseconds."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    encode_ms: float = 0.0
    plan_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class Provenance:
    model: str
    weights_digest: str
    crop_policy: str
    goal_id: str
    planner: PlannerSettings
    device: str
    dtype: str
    server_version: str


@dataclass(frozen=True)
class PlanReply:
    actions: NDArray[np.float32]  # [time, action], robot units
    step_costs: tuple[float, ...]
    cost: float
    goal_distance: float
    iteration_costs: tuple[float, ...]
    elite_spread: tuple[float, ...]
    iterations_done: int
    stop_reason: Literal["converged", "budget", "deadline", "iterations"]
    seed: int
    degraded: bool
    warm_started: bool
    observation_sequence: int
    capture_time_ns: int | None
    epoch: int
    timings: Timings
    provenance: Provenance
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class GoalRequest:
    """Exactly one of `image` and `latent`."""

    model: str = ""
    image: Frame | None = None
    latent: NDArray[np.float32] | None = None
    proprioception: NDArray[np.float32] | None = None  # what the robot should measure there


@dataclass(frozen=True)
class GoalReply:
    goal_id: str
    model: str
    cached: bool
    create_time_ns: int


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


@dataclass(frozen=True)
class Calibration:
    """How the robot's horizontal axes are turned as the model sees them."""

    angle_rad: float
    residual: float
    residual_before: float
    moves: int


@dataclass(frozen=True)
class CalibrationMove:
    before: Observation
    action: NDArray[np.float32]  # [action]
    after: Observation


@dataclass(frozen=True)
class CalibrateRequest:
    session_id: str
    moves: tuple[CalibrationMove, ...]


@dataclass(frozen=True)
class SessionReply:
    session_id: str
    model: str
    goal_id: str
    epoch: int
    plans: int
    last_sequence: int
    ttl_s: float
    create_time_ns: int
    stage: int | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True)
class EmbedImagesRequest:
    images: tuple[Frame, ...]
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


@dataclass(frozen=True)
class ClassifyClipRequest:
    """`path` is a spooled upload that the gateway owns and deletes."""

    path: Path
    model: str = ""
    sampling: FrameSampling = field(default_factory=FrameSampling)
    top_k: int = 5


@dataclass(frozen=True)
class ClassScore:
    """How likely one of a model's classes is."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class ClassifyReply:
    """What a clip shows, the likeliest first."""

    classes: tuple[ClassScore, ...]
    model: str
    frame_times_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class EmbedReply:
    embedding: NDArray[np.float32]
    model: str
    frame_times_s: tuple[float, ...] = ()
    goal_distances: tuple[float, ...] = ()
    step_distances: tuple[float, ...] = ()


@dataclass(frozen=True)
class RolloutRequest:
    observation: Observation
    actions: NDArray[np.float32]  # [time, action]
    session_id: str = ""
    model: str = ""
    goal_id: str = ""


@dataclass(frozen=True)
class RolloutReply:
    latents: NDArray[np.float32]  # [steps, *latent]
    goal_distances: tuple[float, ...] = ()


@dataclass(frozen=True)
class ScoreRequest:
    observation: Observation
    candidates: NDArray[np.float32]  # [candidates, time, action]
    session_id: str = ""
    model: str = ""
    goal_id: str = ""


@dataclass(frozen=True)
class ScoreReply:
    costs: NDArray[np.float32]  # [candidates]
    step_costs: NDArray[np.float32]  # [candidates, steps]


@dataclass(frozen=True)
class DistanceRequest:
    images: tuple[Frame, ...]
    session_id: str = ""
    model: str = ""
    goal_id: str = ""


@dataclass(frozen=True)
class DistanceReply:
    distances: tuple[float, ...]


@dataclass(frozen=True)
class SurpriseRequest:
    observations: tuple[Observation, ...]  # one per step of the model
    actions: NDArray[np.float32]  # [time, action], between them
    session_id: str = ""
    model: str = ""


@dataclass(frozen=True)
class SurpriseReply:
    errors: tuple[float, ...]  # one per step
    scores: tuple[float, ...] = ()
    steps_known: int = 0


@dataclass(frozen=True)
class LandscapeRequest:
    """The cost of a grid of actions around rest; no dimensions: the first three searched."""

    observation: Observation
    session_id: str = ""
    model: str = ""
    goal_id: str = ""
    dimensions: tuple[str, ...] = ()
    points: int = 5
    extent: float = 1.0
    plot: bool = False


@dataclass(frozen=True)
class LandscapeReply:
    dimensions: tuple[str, ...]
    values: NDArray[np.float32]  # [dimensions, points]
    costs: NDArray[np.float32]  # [points, ...]
    best_action: NDArray[np.float32]  # [action]
    best_cost: float
    rest_cost: float
    plot: bytes = b""


@dataclass(frozen=True)
class ModelReply:
    """What a robot must know before it asks for a plan."""

    name: str
    family: str
    weights_digest: str
    image_height: int
    image_width: int
    crop_policy: str
    cameras: int
    latent_shape: tuple[int, ...]
    proprioception_names: tuple[str, ...]
    action_names: tuple[str, ...]  # empty: the model only embeds
    action_units: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    rate_hz: float
    block: int
    planner: PlannerSettings
    card: str
    execute: int = 0  # robot actions to take before planning again
    computes: str = ""  # precision, device, and which rollouts are replayed as graphs, or why none
    license: str = ""  # of the weights, as far as known
    labels: tuple[str, ...] = ()  # of the classes of clips; empty: it classifies nothing
    clip_frames: int = 0  # of a clip, as its classifier was trained; 0: not known
    measures_goals: bool = False  # a goal may say what the robot should measure there
