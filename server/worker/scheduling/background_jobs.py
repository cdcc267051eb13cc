"""Background jobs of an engine: encoding goals, embedding, rolling out, scoring. Runs in the engine process.

A background job is a generator. Before each step it yields a work item that names the step, so that plans in progress
are answered first and calls can be cancelled between steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from model.interface import Classifier, ClipEmbedding, LoadedModel, Steps, Stepwise
from model.runtime.memory import to_device
from server.engine.messages import (
    CalibrateJob,
    ClassifyClipJob,
    ClassifyDone,
    Done,
    EmbedClipJob,
    EmbedDone,
    EmbedImagesJob,
    EncodeDone,
    EncodeJob,
    Floats,
    FromEngine,
    Job,
    Pace,
    RolloutDone,
    RolloutJob,
    SurpriseDone,
    SurpriseJob,
)
from server.worker import model_adapter
from server.worker.calibration import calibrate
from server.worker.scheduling.failures import failed
from server.worker.scheduling.job import BackgroundJob, WorkItem
from server.worker.scheduling.plan_scheduler import PlanScheduler

T = TypeVar("T")
FRAMES_AT_ONCE, CANDIDATES_AT_ONCE = 32, 512
FRAMES_TOGETHER = 64  # of a clip, at most, in one step of a model's own
PIECE_S = 0.05  # about as long as a piece of this work may take: whoever comes meanwhile waits for its end
FRAME_BY_FRAME = ("compact", "lewm", "dino_wm", "linear")  # families whose embedding of a frame knows no other frame


@dataclass(eq=False)
class Waiting:
    """An background_job between two pieces of work."""

    number: int
    background_job: BackgroundJob
    piece: WorkItem
    caller: str = ""


class BackgroundJobs:
    """Every background_job of one engine, one piece of work each in turn."""

    def __init__(
        self,
        models: Mapping[str, LoadedModel],
        scheduler: PlanScheduler,
        max_iteration_steps: int,
        send: Callable[[FromEngine], None],
        clock: Callable[[], float],
    ) -> None:
        self._models, self._scheduler, self._send, self._clock = models, scheduler, send, clock
        self._max_steps = max_iteration_steps
        self._queue: deque[Waiting] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    @property
    def callers(self) -> set[str]:
        """Those who have jobs here."""
        return {waiting.caller for waiting in self._queue}

    def add(self, number: int, job: Job, caller: str = "") -> None:
        model = self._models[job.model]
        pace = self._scheduler.pace(job.model)
        match job:
            case EncodeJob():
                background_job = encode(model, job, _frames_at_once(pace))
            case EmbedImagesJob():
                background_job = embed_images(model, job, _frames_at_once(pace))
            case EmbedClipJob():
                background_job = embed_clip(model, job, _frames_at_once(pace))
            case ClassifyClipJob():
                background_job = classify_clip(model, job)
            case RolloutJob():
                background_job = rollout(model, job, _candidates_at_once(job, model.block, pace, self._max_steps))
            case SurpriseJob():
                background_job = surprise(model, job, _frames_at_once(pace))
            case CalibrateJob():
                background_job = calibrate(model, job, self._max_steps)
            case _:
                raise TypeError(f"{type(job).__name__} is no background_job")
        self._advance(Waiting(number, background_job, WorkItem("nothing", 0), caller))

    def cancel(self, number: int) -> None:
        """Drop an background_job, if it is here."""
        self._queue = deque(waiting for waiting in self._queue if waiting.number != number)

    def step(self, caller: str | None = None) -> None:
        """One piece of work for this caller, if there is any; None: for whoever has waited longest."""
        waiting = next((each for each in self._queue if caller in (None, each.caller)), None)
        if waiting is None:
            return
        self._queue.remove(waiting)
        piece = waiting.piece
        predicted_s = self._scheduler.durations.predict(piece.kind, piece.count)
        self._scheduler.protect(predicted_s or 0.0, caller=caller)
        began = self._clock()
        with self._scheduler.watchdog.work(predicted_s):
            self._advance(waiting)
        seconds = self._clock() - began
        self._scheduler.durations.observe(piece.kind, piece.count, seconds)
        self._scheduler.fair.charge(seconds, {waiting.caller: 1.0}, self._scheduler.weights)

    def _advance(self, waiting: Waiting) -> None:
        """Run an background_job up to its next piece of work, or to its end."""
        try:
            waiting.piece = next(waiting.background_job)
        except StopIteration as end:
            self._send(Done(waiting.number, end.value))
        except Exception as error:
            self._send(failed(waiting.number, error))
        else:
            self._queue.append(waiting)


def _frames_at_once(pace: Pace) -> int:
    """How many frames are encoded together: a piece of work that nobody waits long for."""
    return _fitting(PIECE_S / pace.least_encode_s if pace.least_encode_s else FRAMES_AT_ONCE, FRAMES_AT_ONCE)


def _candidates_at_once(job: RolloutJob, block: int, pace: Pace, max_steps: int) -> int:
    """How many candidates are rolled out together."""
    horizon = job.candidates.shape[1] // block
    most = max(1, min(CANDIDATES_AT_ONCE, max_steps // horizon))
    each_s = horizon * pace.least_step_s
    return _fitting(PIECE_S / each_s if each_s else most, most)


def _fitting(count: float, most: int) -> int:
    """The largest power of two within the count, at least 1 and at most `most`: much the same on every day."""
    return min(most, 1 << max(0, int(min(count, most)).bit_length() - 1)) if count < most else most


def encode(model: LoadedModel, job: EncodeJob, at_once: int) -> BackgroundJob:
    """Latents of goals."""
    parts = []
    for part in _parts(len(job.frames), at_once):
        yield WorkItem(("encode", job.model), part.stop - part.start)
        parts.append(model_adapter.encode_frames(model, job.frames[part]))
    latents = torch.cat(parts)
    if job.proprioception is not None:
        latents = torch.stack([model_adapter.goal_of(model, latent, job.proprioception) for latent in latents])
    return EncodeDone(model_adapter.to_host(latents))


def embed_images(model: LoadedModel, job: EmbedImagesJob, at_once: int) -> BackgroundJob:
    """Unrelated images: each one's latent; a latent of several tokens is averaged unless the tokens are asked for."""
    latents, tokens = [], []
    if job.kind == "tokens" and len(model.package.config.latent_shape) == 1:  # a clip of one frame has both
        for frame in job.frames:
            yield WorkItem(("clip", job.model), 1)
            embedded = model.embed_clip(torch.tensor(frame)[None])
            latents.append(embedded.per_frame)
            tokens.append(embedded.tokens)
    else:
        for part in _parts(len(job.frames), at_once):
            yield WorkItem(("encode", job.model), part.stop - part.start)
            latents.append(model_adapter.encode_frames(model, job.frames[part]))
    together = torch.cat(latents)
    per_frame = together if together.ndim == 2 else together.flatten(1, -2).mean(1)
    match job.kind:
        case "tokens":
            embedding = torch.cat(tokens) if tokens else together.flatten(1, -2)
        case "per_frame":
            embedding = per_frame
        case "pooled":
            embedding = per_frame.mean(0)
    return EmbedDone(model_adapter.to_host(embedding), _to_goal(model, together, job.goal), ())


def embed_clip(model: LoadedModel, job: EmbedClipJob, at_once: int) -> BackgroundJob:
    """The frames of one clip, encoded as a clip; distances are between its frames' latents as observations."""
    frames = torch.from_numpy(job.frames)
    # A model that looks at each frame for itself is interrupted between a few of them.
    by_frame = model.package.config.family in FRAME_BY_FRAME
    embeddings = []
    if isinstance(model, Stepwise) and not by_frame:
        embeddings.append((yield from _stepwise(("clip step", job.model), len(frames), model.clip_steps(frames))))
    else:
        for part in _parts(len(frames), at_once if by_frame else len(frames)):
            yield WorkItem(("clip", job.model), part.stop - part.start)
            embeddings.append(model.embed_clip(frames[part]))
    embedded = embeddings[0] if len(embeddings) == 1 else _whole_clip(embeddings)
    latents: Tensor = embedded.per_frame
    compares = job.goal is not None or job.step_distances
    if compares and tuple(latents.shape) != (len(frames), *model.package.config.latent_shape):
        parts = []  # per tubelet, or of another width: not what the planner compares
        for part in _parts(len(frames), at_once):
            yield WorkItem(("encode", job.model), part.stop - part.start)
            parts.append(model.encode(frames[part]))
        latents = torch.cat(parts)
    steps: list[float] = []
    if job.step_distances and len(latents) > 1:
        steps = model_adapter.distances(model_adapter.cost_of(model), latents[1:], latents[:-1]).tolist()
    chosen = {"pooled": embedded.pooled, "per_frame": embedded.per_frame, "tokens": embedded.tokens}[job.kind]
    return EmbedDone(model_adapter.to_host(chosen), _to_goal(model, latents, job.goal), tuple(steps))


def _whole_clip(parts: list[ClipEmbedding]) -> ClipEmbedding:
    """Of a clip whose frames were embedded each for itself."""
    per_frame = torch.cat([part.per_frame for part in parts])
    return ClipEmbedding(per_frame.mean(0), per_frame, torch.cat([part.tokens for part in parts]))


def classify_clip(model: LoadedModel, job: ClassifyClipJob) -> BackgroundJob:
    """What the frames of one clip show; the front asks this of models with labels alone."""
    if not isinstance(model, Classifier):
        raise TypeError(f"{job.model} has labels and classifies nothing")
    frames = torch.from_numpy(job.frames)
    if isinstance(model, Stepwise):
        classes = yield from _stepwise(("class step", job.model), len(frames), model.class_steps(frames))
    else:
        yield WorkItem(("classify", job.model), len(frames))
        classes = model.classify(frames)
    return ClassifyDone(model_adapter.to_host(classes))


def _stepwise(kind: Hashable, frames: int, steps: Steps[T]) -> Generator[WorkItem, None, T]:
    """A model's own steps, each a piece of work: about as long as any other of a clip of so many frames."""
    while True:
        yield WorkItem(kind, min(frames, FRAMES_TOGETHER))
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def rollout(model: LoadedModel, job: RolloutJob, at_once: int) -> BackgroundJob:
    """Where candidates lead, and what that costs: a number of them at a time."""
    yield WorkItem(("encode", job.model), 1)
    latent = model_adapter.encode_frames(model, job.start.frames[:1])[0]
    context = model_adapter.context_of(model, job.start, latent, model_adapter.measured_at(job.start))
    goal = None
    if job.goal is not None:
        goal = model_adapter.seen_part(model, model_adapter.to_device(model, job.goal))[None]
    world = model_adapter.world_model(model)
    candidates = torch.from_numpy(job.candidates)
    horizon = candidates.shape[1] // model.block
    cost = model_adapter.cost_of(model)
    if not job.costs_only:
        cost = replace(cost, over="sum")  # how far each predicted latent is, whatever the search makes of it
    latents, costs = [], []
    for part in _parts(len(candidates), at_once):
        yield WorkItem(("rollout", job.model, horizon), part.stop - part.start)
        actions = to_device(candidates[part], model.device)[None]
        with torch.no_grad():
            predicted = world.rollout(context, actions)
            if goal is not None:
                costs.append(model_adapter.to_host(cost(predicted, goal, actions)[0]))
            if not job.costs_only:
                latents.append(model_adapter.to_host(predicted[0]))
    return RolloutDone(_joined(latents), _joined(costs))


def surprise(model: LoadedModel, job: SurpriseJob, at_once: int) -> BackgroundJob:
    """One prediction per step, each from the observations before it as far as the model looks back."""
    encoded = []
    for part in _parts(len(job.frames), at_once):
        yield WorkItem(("encode", job.model), part.stop - part.start)
        encoded.append(model_adapter.encode_frames(model, job.frames[part]))
    seen, cost = torch.cat(encoded), model_adapter.cost_of(model)
    measured = None if job.proprioception is None else torch.tensor(job.proprioception)
    actions = model_adapter.to_device(model, job.actions).reshape(len(seen) - 1, model.block, -1)
    errors: list[float] = []
    for step, taken in enumerate(actions):
        yield WorkItem(("rollout", job.model, 1), 1)
        back = slice(max(0, step + 1 - model.package.config.history), step + 1)
        with torch.no_grad():
            done = job.actions[back.start * model.block : step * model.block]
            start = model_adapter.context(
                model, list(seen[back]), None if measured is None else measured[back], job.turn_rad, done
            )
            predicted = model_adapter.world_model(model).rollout(start, taken[None, None])[0, 0]
        errors += model_adapter.distances(cost, predicted, seen[step + 1 : step + 2]).tolist()
    return SurpriseDone(tuple(errors))


def _to_goal(model: LoadedModel, latents: Tensor, goal: Floats | None) -> tuple[float, ...]:
    if goal is None:
        return ()
    cost = model_adapter.cost_of(model)
    near = model_adapter.seen_part(model, model_adapter.to_device(model, goal))
    return tuple(model_adapter.distances(cost, latents, near[None]).tolist())


def _parts(count: int, at_once: int) -> Iterator[slice]:
    return (slice(begin, min(begin + at_once, count)) for begin in range(0, count, at_once))


def _joined(parts: list[Floats]) -> Floats | None:
    return np.concatenate(parts) if parts else None
