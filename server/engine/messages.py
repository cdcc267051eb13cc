"""Messages between the front and an engine: jobs one way, results the other. Plain values.

Instants are readings of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from presage.limits import ActionLimits
from presage.values import Calibration, Model, Plan, PlannerSettings

from server.errors import Reason
from server.values.calls import EmbeddingKind, Frame

if TYPE_CHECKING:
    from model.interface import LoadedModel

Floats = NDArray[np.float32]
Precision = Literal["auto", "float32", "bfloat16", "float8", "int8"]
"""What a model computes in: the lowest that is measured to be faster and to choose the same actions, or as said."""
Graphs = Literal["auto", "on", "off"]
"""Whether rollouts are captured as graphs at the start: on, on devices that have them, or off."""
Batches = Literal["exact", "any"]
"""Which requests are computed together: those that change nothing in each other's numbers, or any."""
StopReason = Literal["converged", "budget", "deadline", "iterations"]
ITERATION_STEPS = 65_536
"""Most samples x horizon in one rollout: bounds an engine's memory."""
Loader = Callable[[str, str], "LoadedModel"]
"""Loads a model package by name or folder onto a device; a module-level function, so that an engine can import it."""


@dataclass(frozen=True)
class EngineSettings:
    """How an engine process is set up."""

    models: tuple[str, ...]
    device: str  # "auto" takes the best one present
    threads: int  # 0: as many as are measured to be fastest
    precision: Precision
    graphs: Graphs
    max_batch: int  # searches in one rollout
    loader: Loader | None  # None: model.registry.load
    batches: Batches = "exact"
    nice: int = 0  # added to the process's niceness
    silence_s: float = 10.0  # a warm engine without a heartbeat for so long is taken for stuck
    startup_timeout_s: float = 300.0  # to load and warm up; a process that takes longer is taken for stuck


@dataclass(frozen=True)
class SearchSize(PlannerSettings):
    """A search's settings, these of them known; any other as the request or the model has it."""

    samples: int
    iterations: int
    elites: int
    horizon: int  # model steps
    optimizer: str = "cem"
    dimensions: tuple[str, ...] = ()  # searched over; none: all
    discount: float = 1.0  # weight of each step's distance, relative to the step before
    cost: str = ""  # the steps that count, one of `presage.optimizers.COSTS`; empty: the optimizer's own choice
    replace_margin: float = 0.0  # of its cost by which a plan must beat what is left of the last one to replace it
    needed: int = 1  # iterations with fewer of which its plans are not to be trusted

    @property
    def steps_per_iteration(self) -> int:
        """Model steps rolled out in one iteration: what its time is about proportional to."""
        return self.samples * self.horizon

    @property
    def settings(self) -> PlannerSettings:
        """As a request would name them."""
        told = {each.name: getattr(self, each.name) for each in fields(PlannerSettings)}
        return PlannerSettings(**{**told, "cost": self.cost or None})


def needed_iterations(optimizer: str, iterations: int, of_model: int) -> int:
    """Iterations that a search needs: half of the model's own, or of those asked for where they are fewer.

    Real-time iteration spreads them over the plans of a control loop, and needs one for each.
    """
    return 1 if optimizer == "real_time_iteration" else -(-min(iterations, of_model) // 2)


@dataclass(frozen=True)
class ServedModel:
    """A model as an engine loaded it."""

    reply: Model  # but for what the front knows: limits, version
    search: SearchSize | None  # its own settings; None: it only embeds
    device: str
    dtype: str
    why_dtype: str  # how it came to be that
    graphs: str = ""  # which rollouts are replayed as graphs, or why none
    proposes: bool = False  # whether its package has a proposer
    digest: str = ""  # of all in its package that decides what it answers


@dataclass(frozen=True)
class Start:
    """Where predictions start: what a robot sees now, and what it saw before."""

    frames: tuple[Frame, ...]
    history: tuple[Floats, ...] = ()  # earlier latents, oldest first
    proprioception: Floats | None = None  # [history and now, proprioception]
    turn_rad: float = 0.0  # takes the model's x and y to the robot's
    past_frames: tuple[Frame, ...] = ()  # earlier frames, in place of `history`, where they are yet to be encoded
    past_actions: Floats | None = None  # [time, action]: executed between earlier latents and up to now


@dataclass(frozen=True)
class PlanJob:
    model: str
    start: Start
    goal: Floats  # [*latent]
    size: SearchSize
    seed: int
    warm_start: Floats | None = None  # [at least 1, action]: what is left of the plan being executed
    previous_action: Floats | None = None
    committed: Floats | None = None
    deadline: float | None = None  # instant at which the result must leave the engine
    on_trust: bool = False  # begin its first iteration whatever is predicted: predictions may be out of date
    budget_until: float | None = None  # instant until which thinking is worth it
    next_goal: Floats | None = None  # [*latent]: searched for instead where the observation is near enough the goal
    switch_below: float = 0.0  # a goal_distance that is near enough
    stop_after: int | None = None  # iterations: where a search that time ended is repeated
    arrival: int | None = None  # actions after which the plan that `warm_start` is left of means to be there
    limits: ActionLimits | None = None  # narrower than the model's own, in their place; None: these hold
    held: tuple[float, ...] | None = None  # actions for which each dimension of `previous_action` was kept


@dataclass(frozen=True)
class PlanDone:
    plan: Plan  # as far as an engine knows it: its cost is the model's own, warnings are about the observation
    size: SearchSize  # of the search that ran: the job's, or one that fits the time
    fitting: int  # iterations of the job's search that were predicted to fit the time; all of them where it ran
    unimproved: bool  # time ended it before anything better was found than what it began with
    goal_reached: bool  # so the next goal was searched for
    latent: Floats  # of the observation
    began: float  # instant at which its encoding began
    encoded: float  # instant at which the search could begin
    ended: float  # instant at which the search ended


@dataclass(frozen=True)
class EncodeJob:
    """One latent per frame, as observations and goals are encoded; with what should be measured at a goal, if said."""

    model: str
    frames: tuple[Frame, ...]
    proprioception: Floats | None = None  # [p], of every frame


@dataclass(frozen=True)
class EncodeDone:
    latents: Floats  # [frames, *latent]


@dataclass(frozen=True)
class EmbedImagesJob:
    """Unrelated images as embeddings."""

    model: str
    frames: tuple[Frame, ...]
    kind: EmbeddingKind
    goal: Floats | None = None


@dataclass(frozen=True)
class EmbedClipJob:
    """The frames of one clip as an embedding."""

    model: str
    frames: NDArray[np.uint8]  # [time, height, width, 3]
    kind: EmbeddingKind
    goal: Floats | None = None
    step_distances: bool = False


@dataclass(frozen=True)
class ClassifyClipJob:
    """What the frames of one clip show."""

    model: str
    frames: NDArray[np.uint8]  # [time, height, width, 3]


@dataclass(frozen=True)
class ClassifyDone:
    probabilities: Floats  # [classes], in the order of the model's labels


@dataclass(frozen=True)
class EmbedDone:
    embedding: Floats
    goal_distances: tuple[float, ...]  # one per frame; empty without a goal
    step_distances: tuple[float, ...]  # between neighboring frames, where they were asked for


@dataclass(frozen=True)
class RolloutJob:
    """The latents that each candidate leads to, or (`costs_only`) what they cost toward the goal."""

    model: str
    start: Start
    candidates: Floats  # [candidates, time, action]
    goal: Floats | None = None
    costs_only: bool = False


@dataclass(frozen=True)
class RolloutDone:
    latents: Floats | None  # [candidates, horizon, *latent]
    step_costs: Floats | None  # [candidates, horizon]; None without a goal


@dataclass(frozen=True)
class SurpriseJob:
    """How far each observation is from the prediction made from those before it."""

    model: str
    frames: tuple[Frame, ...]  # one per model step, at least two
    actions: Floats  # [(frames - 1) x block, action]
    proprioception: Floats | None = None  # [frames, proprioception]
    turn_rad: float = 0.0  # as in Start


@dataclass(frozen=True)
class SurpriseDone:
    errors: tuple[float, ...]  # one per step


@dataclass(frozen=True)
class Move:
    """An exploratory move: what was seen before and after it, and the action between, [action]."""

    before: Start
    action: Floats
    after: Frame


@dataclass(frozen=True)
class CalibrateJob:
    """How the camera is turned, from moves and how the model understands them."""

    model: str
    moves: tuple[Move, ...]
    size: SearchSize  # of the search for what the model thinks happened


@dataclass(frozen=True)
class CalibrateDone:
    calibration: Calibration


Job = PlanJob | EncodeJob | EmbedImagesJob | EmbedClipJob | ClassifyClipJob | RolloutJob | SurpriseJob | CalibrateJob
Result = PlanDone | EncodeDone | EmbedDone | ClassifyDone | RolloutDone | SurpriseDone | CalibrateDone


@dataclass(frozen=True)
class Submit:
    number: int
    job: Job
    caller: str = ""  # whose turn it takes
    weight: float = 1.0  # of that caller's turns


@dataclass(frozen=True)
class Cancel:
    number: int


@dataclass(frozen=True)
class Pace:
    """How fast an engine is with one model: what admission predicts from."""

    encode_s: float  # one observation
    step_s: float  # one model step of one sample, in the batches of late
    # The shortest ever seen, which tell what is too much on any day:
    least_encode_s: float = 0.0  # one observation
    least_step_s: float = 0.0  # one model step of one sample
    least_serial_s: float = 0.0  # one model step, however few the samples

    def least_rollout_s(self, samples: int, horizon: int) -> float:
        """The least that rolling out so many samples takes."""
        return horizon * max(self.least_serial_s, samples * self.least_step_s)


@dataclass(frozen=True)
class Loaded:
    """The models can be described; they still have to warm up."""

    models: tuple[ServedModel, ...]
    threads: int


@dataclass(frozen=True)
class LoadFailed:
    """A model cannot be loaded: starting again would not help."""

    message: str


@dataclass(frozen=True)
class Ready:
    """Every model has encoded and planned once."""

    paces: dict[str, Pace]


@dataclass(frozen=True)
class Heartbeat:
    """Sent periodically by an engine, but while its work is overdue."""


@dataclass(frozen=True)
class Done:
    number: int
    result: Result
    paces: dict[str, Pace] | None = None  # of the job's model, where it was measured anew


@dataclass(frozen=True)
class Failed:
    number: int
    reason: Reason
    message: str
    field: str = ""
    rule: str = ""
    value: str = ""


ToEngine = Submit | Cancel
FromEngine = Loaded | LoadFailed | Ready | Heartbeat | Done | Failed
