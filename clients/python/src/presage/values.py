"""What calls take and give back, as frozen values. The meaning of each field is told once, in proto/presage/v1.

The service answers with these too. Fields are named as in the messages; an instant `x_time_ns` is the field `x_time`.
The codec reads the annotations, so they are written as Python 3.8 evaluates them. Values that hold arrays compare by
identity.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Dict, Optional, Protocol, Sequence, Tuple, Union

import numpy as np

from presage.errors import PresageError, invalid
from presage.limits import ActionLimits
from presage.protocol import arguments

if TYPE_CHECKING:
    from numpy.typing import NDArray  # numpy 1.21

    Array = NDArray[np.generic]
    Floats = NDArray[np.float32]
    Pixels = NDArray[np.uint8]
    PathLike = os.PathLike[str]
else:
    PathLike = os.PathLike
    Array = Floats = Pixels = np.ndarray


class ArrayInterface(Protocol):
    """An array of another library's, such as a PIL picture."""

    @property
    def __array_interface__(self) -> Dict[str, Any]: ...


# uint8 [height, width, 3] in RGB; the bytes or the path of a JPEG, PNG or WebP file; a PIL picture, which is taken
# upright.
ImageLike = Union["Pixels", bytes, str, PathLike, ArrayInterface]


@dataclass(frozen=True, eq=False)
class Observation:
    """What the robot's cameras and sensors measure at one instant.

    `images`: one per camera of the model, in its order. `proprioception`: [entries] in robot units, None if the model
    uses none. `capture_time_ns`: the robot's own clock, echoed untouched. `sequence` counts up within a session; 0 lets
    the server count. `past_images` and `past_actions` [time, action] are what was seen before, oldest first and a model
    step apart, and what was executed between: for models that look back on both, without a session.
    """

    images: Sequence[ImageLike]
    proprioception: Optional[Sequence[float]] = None
    capture_time_ns: Optional[int] = None
    sequence: int = 0
    past_images: Sequence[ImageLike] = ()
    past_actions: Optional[Sequence[Sequence[float]]] = None

    def __post_init__(self) -> None:
        if arguments.is_one_image(self.images) or isinstance(self.images, dict) or not hasattr(self.images, "__iter__"):
            rule = "must be a sequence with one image per camera"
            raise invalid("observation.images", rule, arguments.shown(self.images))
        arguments.whole("observation.sequence", self.sequence, 1 << 64)
        if self.capture_time_ns is not None:
            arguments.whole("observation.capture_time_ns", self.capture_time_ns, 1 << 63)


@dataclass(frozen=True)
class PlannerSettings:
    """How a plan is searched for. None takes the model's value."""

    samples: Optional[int] = None
    iterations: Optional[int] = None
    elites: Optional[int] = None
    horizon: Optional[int] = None
    optimizer: Optional[str] = None
    dimensions: Tuple[str, ...] = ()
    """Names of the action entries to search over; the others stay at rest. Empty takes the model's own."""
    discount: Optional[float] = None
    """Weight of each model step's distance to the goal, relative to the step before; above 1, later ones count more."""
    cost: Optional[str] = None
    """What of a plan's steps counts: "sum", "last" or "least" (the cheapest one)."""
    metric: Optional[str] = None
    """Distance of latents: "l2" (mean square), "l1", "rms" or "cosine"."""
    narrowing: Optional[float] = None
    """Of "mppi": share of the spread that is left one iteration later."""
    sample_decay: Optional[float] = None
    """Of searches by samples: share of the samples that is left one iteration later; 1 rolls out as many in all."""


@dataclass(frozen=True)
class ImageSpec:
    """The images a model takes, in pixels. Crop policy "exact" refuses other sizes."""

    height: int
    width: int
    crop_policy: str
    cameras: int


@dataclass(frozen=True)
class ActionSpec:
    """The actions a model predicts from, in robot units. `block` actions make one step of the model's horizon.

    `rest` leaves the robot at rest. `limits`: what plans keep to beside the bounds; None where nothing is stated.
    """

    names: Tuple[str, ...]
    units: Tuple[str, ...]
    low: Tuple[float, ...]
    high: Tuple[float, ...]
    rate_hz: float
    block: int
    rest: Tuple[float, ...] = ()
    limits: Optional[ActionLimits] = None


@dataclass(frozen=True)
class Limits:
    """What the server accepts at most."""

    message_bytes: int = 0
    image_pixels: int = 0
    clip_bytes: int = 0
    clip_frames: int = 0
    sessions: int = 0
    rollout_steps: int = 0


@dataclass(frozen=True)
class Model:
    """What a robot must know before it asks for a plan. `action` is None for a model that only embeds.

    `execute`: actions of a plan to carry out before planning again, as the model was measured. `computes`: in which
    precision and on which device the server computes, and which of its rollouts are replayed as graphs. `license`: of
    the weights, as far as known. `labels`: of the classes of clips, empty for a model that classifies nothing;
    `clip_frames`: those of a clip that its classifier was trained on, 0 where that is not known. `measures_goals`:
    whether a goal may say what the robot should measure there. `history`: observations a model step apart that a
    prediction starts from; `past_actions`: whether also from the actions executed between them.
    """

    name: str
    family: str
    weights_digest: str
    image: ImageSpec
    action: Optional[ActionSpec]
    latent_shape: Tuple[int, ...]
    proprioception_names: Tuple[str, ...] = ()
    planner: PlannerSettings = PlannerSettings()
    limits: Limits = Limits()
    card: str = ""
    server_version: str = ""
    execute: int = 0
    computes: str = ""
    license: str = ""
    labels: Tuple[str, ...] = ()
    clip_frames: int = 0
    measures_goals: bool = False
    history: int = 1
    past_actions: bool = False


@dataclass(frozen=True)
class Goal:
    """A goal embedded and kept by the server. `cached`: it was there already."""

    goal_id: str
    model: str
    cached: bool
    create_time_ns: int


@dataclass(frozen=True)
class GoalStage:
    """One goal of several on the way, given as the goal or its id, and when to go on to the next.

    `switch_below`: once an observation's goal_distance is at or below it; 0 never does. `max_actions`: after so many
    executed actions, whatever the distance; 0 waits for `switch_below`. The last stage stays.
    """

    goal: Union[Goal, str]
    switch_below: float = 0.0
    max_actions: int = 0

    def __post_init__(self) -> None:
        arguments.not_negative("stage.switch_below", self.switch_below)
        arguments.whole("stage.max_actions", self.max_actions)


@dataclass(frozen=True)
class CalibrationMove:
    """One exploratory move: what was seen before it, the action commanded [action], robot units, and what after it."""

    before: Observation
    action: Sequence[float]
    after: Observation


@dataclass(frozen=True)
class Calibration:
    """How the robot's horizontal axes are turned as the model sees them.

    `residual`: root mean square, in the action's unit, of what the turn does not explain of the commanded moves;
    `residual_before`: the same without a turn.
    """

    angle_rad: float
    residual: float
    residual_before: float
    moves: int


@dataclass(frozen=True)
class SessionStatus:
    """The server's side of an episode. `goal_id` is empty if none is set; `epoch` counts resets.

    `stage`: which of the session's stages is pursued, counted from 0; None without stages. `execute`: actions of a plan
    to carry out before planning again, as the model was measured. `limits`: what its plans keep to, the model's limits
    among them; None where the model's bounds alone hold.
    """

    session_id: str
    model: str
    goal_id: str
    epoch: int
    plans: int
    last_sequence: int
    ttl_s: float
    create_time_ns: int
    stage: Optional[int] = None
    calibration: Optional[Calibration] = None
    execute: int = 0
    limits: Optional[ActionLimits] = None


@dataclass(frozen=True)
class Timings:
    """Monotonic durations on the server, in milliseconds."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    encode_ms: float = 0.0
    plan_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class Provenance:
    """What made a plan: enough to make it again.

    `limits`: what its actions keep to, those of model, session and request together; None where only bounds hold.
    """

    model: str = ""
    weights_digest: str = ""
    crop_policy: str = ""
    goal_id: str = ""
    planner: PlannerSettings = PlannerSettings()
    device: str = ""
    dtype: str = ""
    server_version: str = ""
    unbounded_search: bool = False
    limits: Optional[ActionLimits] = None


@dataclass(frozen=True, eq=False)
class Plan:
    """Actions to take, and what is known of them.

    `actions`: float32 [time, action], robot units, read-only. `cost` is the model's own, what `Score` says of the
    actions; `step_costs` sum to it; `goal_distance` is the observation's own. `objective`: what the search made small,
    None where there was no search; `iteration_costs` are of it, and never rise. `elite_spread` is a fraction of the
    action range. `stop_reason`: "converged", "budget", "deadline" or "iterations". `degraded`: for want of time the
    search was made smaller, cut below what it needs, or found nothing better than what it began with; `shortage` names
    what is lacking and `warnings` give the numbers, beside legal but suspicious things about the request. `arrival`:
    the action after which the plan means to be at the goal, where that is known. `kept`: it is what was left of the
    last plan, which nothing found beat by the model's own margin. `proposal_share`: of a proposer's candidates among
    those that the search went on from.
    """

    actions: Floats
    cost: float
    step_costs: Tuple[float, ...]
    goal_distance: float
    iteration_costs: Tuple[float, ...]
    elite_spread: Tuple[float, ...]
    iterations_done: int
    stop_reason: str
    seed: int
    degraded: bool = False
    warm_started: bool = False
    observation_sequence: int = 0
    capture_time_ns: Optional[int] = None
    epoch: int = 0
    timings: Timings = Timings()
    provenance: Provenance = Provenance()
    warnings: Tuple[str, ...] = ()
    objective: Optional[float] = None
    shortage: Tuple[str, ...] = ()
    arrival: Optional[int] = None
    kept: bool = False
    proposal_share: float = 0.0

    def __str__(self) -> str:
        """A few lines to read; the fields hold everything."""
        size = f"{len(self.actions)} actions of {self.actions.shape[-1]} entries"
        ends = f", predicted {self.step_costs[-1]:.4g} after the last step" if self.step_costs else ""
        stop = f"stopped by {self.stop_reason} after {self.iterations_done} iterations, {self.timings.total_ms:.0f} ms"
        made = [f"seed {self.seed}", *(["warm start"] if self.warm_started else []), *(["DEGRADED"] * self.degraded)]
        lines = [
            f"plan: {size}, the first {_numbers(self.actions[0])}",
            f"  cost {self.cost:.4g}; goal distance {self.goal_distance:.4g} now{ends}",
            f"  {stop}; {', '.join(made)}",
            *(f"  warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """What a notebook shows: the lines of `str`, and a curve for each action entry."""
        return f"<pre>{escape(str(self))}</pre>{_curves(self.actions)}"


def _numbers(values: Floats) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.tolist()) + "]"


def _curves(actions: Floats) -> str:
    """Each action entry over time as a small SVG, scaled to its own range."""
    drawn = []
    for entry in range(actions.shape[-1]):
        series = actions[:, entry].tolist()
        low, high = min(series), max(series)
        span = (high - low) or 1.0
        points = " ".join(
            f"{4 + 112 * at / max(1, len(series) - 1):.1f},{34 - 30 * (value - low) / span:.1f}"
            for at, value in enumerate(series)
        )
        drawn.append(
            f'<svg width="120" height="52"><polyline points="{points}" fill="none" stroke="currentColor"/>'
            f'<text x="4" y="48" font-size="9" fill="currentColor">{entry}: {low:.3g} to {high:.3g}</text></svg>'
        )
    return "".join(drawn)


@dataclass(frozen=True, eq=False)
class ControlPlan:
    """A plan from a control loop.

    `skipped_sequences`: observations passed over for a newer one since the last plan, here or on the server.
    `round_trip_s`: from the observation's send to the plan's arrival, on this machine's monotonic clock.
    """

    plan: Plan
    skipped_sequences: Tuple[int, ...]
    round_trip_s: float


@dataclass(frozen=True, eq=False)
class FailedObservation:
    """An observation that got no plan, and why. `sequence` is 0 where the fault was not an observation's."""

    sequence: int
    error: PresageError


@dataclass(frozen=True, eq=False)
class Embedding:
    """Latents of images, float32: [width], [images, width] or [images, tokens, width] by `kind`.

    `goal_distances`: each image's, empty without a goal.
    """

    embedding: Floats
    kind: str
    model: str
    goal_distances: Tuple[float, ...] = ()


@dataclass(frozen=True)
class ClassScore:
    """How likely one of a model's classes is; `index` is its place among the model's labels."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class ClipClasses:
    """What a clip shows, the likeliest class first. `frame_times_s`: when each used frame is shown, from the start."""

    classes: Tuple[ClassScore, ...]
    model: str
    frame_times_s: Tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class ClipEmbedding:
    """Latents of a clip, float32: [width], [tubelets, width] or [time, tokens, width] by `kind`.

    `frame_times_s`: when each used frame is shown, seconds from the start. `goal_distances`: each frame's, empty
    without a goal. `step_distances`: from each frame's latent to the next one's, [frames - 1], where they were asked
    for. `stream`: which of the file's streams was read, counted from 0.
    """

    embedding: Floats
    kind: str
    model: str
    frame_times_s: Tuple[float, ...] = ()
    goal_distances: Tuple[float, ...] = ()
    step_distances: Tuple[float, ...] = ()
    stream: int = 0


@dataclass(frozen=True, eq=False)
class Rollout:
    """What given actions lead to: latents [steps, ...latent]; `goal_distances` is empty without a goal."""

    latents: Array
    goal_distances: Tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Score:
    """What candidates cost: costs float64 [candidates], step_costs float32 [candidates, steps]."""

    costs: Array
    step_costs: Floats


@dataclass(frozen=True)
class Surprise:
    """How far what happened is from what the model predicted, step by step.

    `errors`: distance between the predicted and the observed latent. `scores`: the same in standard deviations above
    the session's mean before the call; empty without a session, and while it knows fewer than 8 steps. `steps_known`:
    what the session has learned from by now.
    """

    errors: Tuple[float, ...]
    scores: Tuple[float, ...] = ()
    steps_known: int = 0


@dataclass(frozen=True, eq=False)
class Landscape:
    """The cost of a grid of actions around rest. `plot` is a PNG drawing, empty if none was asked for."""

    dimensions: Tuple[str, ...]
    values: Floats  # [dimensions, points], robot units
    costs: Floats  # [points, ...], one axis for each of the dimensions
    best_action: Floats  # [action]
    best_cost: float
    rest_cost: float
    plot: bytes = b""

    def _repr_png_(self) -> Optional[bytes]:
        """What a notebook shows, where a plot was asked for."""
        return self.plot or None


@dataclass(frozen=True)
class Health:
    """What the server says of itself: "serving", "not_serving" or "unknown"."""

    status: str

    @property
    def ready(self) -> bool:
        return self.status == "serving"
