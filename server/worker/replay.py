"""Repeats recorded plans and compares them with the record.

The search is the engine's own, run in this process: model, seed, warm start, history and settings are the recorded
ones, and a search that time ended is stopped after as many iterations.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from presage.values import Plan
from torch import Tensor

from model import extras
from model.interface import LoadedModel, MeasuringModel, Rollouts, WrappedModel
from planner.world_model import Alike, shared_rollout
from server.engine.messages import Done, Failed, Floats, FromEngine, PlanDone, PlanJob
from server.recording import records
from server.recording.records import Recorded, RecordError
from server.worker.scheduling.plan_scheduler import PlanScheduler

RECORD_BYTES = 512 * 1024 * 1024  # a larger one is no record of ours
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8)
}
Verdict = Literal["same", "different", "not searched", "failed"]


@dataclass(frozen=True)
class Outcome:
    """One record's plan made again. Differences are the largest ones; those of actions in fractions of their range."""

    time_ns: int
    sequence: int
    verdict: Verdict
    actions: float = 0.0
    cost: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Recording:
    """A file of the flight recorder: which models it speaks of, and its records in order."""

    models: tuple[str, ...]
    records: tuple[Recorded, ...]
    is_whole: bool  # False: the service ended before it could finish the file


def read(path: Path) -> Recording:
    """Read a file. Raises RecordError, OSError for one that cannot be opened, MissingExtra without `service`."""
    extras.require("mcap", "service", f"reading {path}")
    from mcap.exceptions import McapError
    from mcap.records import Channel, Message, Metadata
    from mcap.stream_reader import StreamReader

    models: tuple[str, ...] = ()
    found: list[Recorded] = []
    topics: dict[int, str] = {}
    is_whole = False
    with path.open("rb") as stream:
        try:
            for entry in StreamReader(stream, record_size_limit=RECORD_BYTES).records:
                match entry:
                    case Metadata(name="presage", metadata=values):
                        models = tuple(str(name) for name in json.loads(values["models"]))
                    case Channel(id=number, topic=topic):
                        topics[number] = topic
                    case Message(channel_id=number, data=content) if topics.get(number) == records.TOPIC:
                        found.append(records.decode(content))
            is_whole = True
        except (McapError, EOFError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, RecordError):
                raise
            if not found:
                raise RecordError(f"{path} holds no plans: {type(error).__name__} {error}".rstrip()) from error
    return Recording(models, tuple(found), is_whole)


def replay(recording: Recording, models: Mapping[str, LoadedModel], tolerance: float) -> Iterator[Outcome]:
    """Make every plan again. `tolerance`: of actions, as a fraction of each one's range."""

    @cache
    def in_precision(name: str, dtype: torch.dtype) -> LoadedModel:
        return models[name].to_precision(dtype)

    for record in recording.records:
        yield _again(record, models, in_precision, tolerance)


def _again(
    record: Recorded,
    models: Mapping[str, LoadedModel],
    in_precision: Callable[[str, torch.dtype], LoadedModel],
    tolerance: float,
) -> Outcome:
    sequence, job, then = int(record.reply["observation_sequence"]), record.job, record.done
    if job is None or then is None:
        why = "the reply was what was left of an earlier plan"
        return Outcome(record.time_ns, sequence, "not searched", why=why)
    if then.plan.iterations_done == 0:
        return Outcome(record.time_ns, sequence, "not searched", why="there was no time for an iteration")
    model = models.get(job.model)
    if model is None:
        return Outcome(record.time_ns, sequence, "failed", why=f"model {job.model} is not here")
    dtype = str(record.reply["provenance"]["dtype"])
    if dtype not in _DTYPES:
        return Outcome(record.time_ns, sequence, "failed", why=f"dtype {dtype[:20]} is none of {', '.join(_DTYPES)}")
    made_by, here = record.reply["provenance"]["weights_digest"], model.package.weights_digest
    if made_by != here:
        why = f"model {job.model} has other weights: {here[:12]}, then {made_by[:12]}"
        return Outcome(record.time_ns, sequence, "failed", why=why)
    start = job.start
    if start.past_actions is not None and not (start.history or start.past_frames):
        why = "it looked back on pictures that were not recorded"
        return Outcome(record.time_ns, sequence, "failed", why=why)
    now = _planned(job, then, in_precision(job.model, _DTYPES[dtype]))
    if isinstance(now, Failed):
        return Outcome(record.time_ns, sequence, "failed", why=now.message)
    return _compared(record.time_ns, sequence, now.plan, then.plan, model, tolerance)


def _planned(job: PlanJob, then: PlanDone, model: LoadedModel) -> PlanDone | Failed:
    """The search once more, alone and without a clock."""
    if not job.start.frames:  # recorded without pictures: what the encoder made of them stands in
        config = model.package.config
        black = np.zeros((config.image.height, config.image.width, 3), np.uint8)
        job = replace(job, start=replace(job.start, frames=(black,)))
        model = _Blind(model, then.latent)
    job = replace(
        job, size=then.size, deadline=None, budget_until=None, on_trust=True, stop_after=then.plan.iterations_done
    )
    answers: list[FromEngine] = []
    scheduler = PlanScheduler({job.model: model}, 1, job.size.steps_per_iteration, answers.append, time.monotonic)
    scheduler.add(1, job)
    while scheduler.busy:
        scheduler.step()
    (answer,) = answers
    if isinstance(answer, Failed):
        return answer
    assert isinstance(answer, Done)
    assert isinstance(answer.result, PlanDone)
    return answer.result


def _compared(time_ns: int, sequence: int, now: Plan, then: Plan, model: LoadedModel, tolerance: float) -> Outcome:
    spec = model.package.config.action
    assert spec is not None
    cost = abs(now.cost - then.cost)
    if now.actions.shape != then.actions.shape:
        why = f"{list(now.actions.shape)} actions, then {list(then.actions.shape)}"
        return Outcome(time_ns, sequence, "different", 1.0, cost, why)
    reach = np.maximum(np.subtract(spec.high, spec.low), 1e-12)
    actions = float((np.abs(now.actions.astype(np.float64) - then.actions) / reach).max(initial=0.0))
    if actions > tolerance:
        why = f"an action differs by {actions:.3g} of its range, cost {now.cost:.6g}, then {then.cost:.6g}"
        return Outcome(time_ns, sequence, "different", actions, cost, why)
    return Outcome(time_ns, sequence, "same", actions, cost)


class _Blind(WrappedModel):
    """A model that has seen already: every picture is the recorded latent. Satisfies `model.interface.LoadedModel`."""

    def __init__(self, model: LoadedModel, latent: Floats) -> None:
        self.model = model
        self._latent = torch.tensor(latent, device=model.device)

    def to_precision(self, dtype: torch.dtype) -> LoadedModel:
        return _Blind(self.model.to_precision(dtype), self._latent.cpu().numpy())

    def encode(self, frames: Tensor) -> Tensor:
        return self._latent.expand(len(frames), *self._latent.shape)

    def observation_warnings(self, frame: Tensor, proprioception: Tensor | None) -> tuple[str, ...]:
        return ()  # of a picture that is not there

    @property
    def goal_groups(self) -> tuple[tuple[int, float], ...]:
        if isinstance(self.model, MeasuringModel):
            return self.model.goal_groups
        return ((self.package.config.latent_shape[-1], 1.0),)

    def goal(self, latent: Tensor, proprioception: Tensor | None) -> Tensor:
        assert isinstance(self.model, MeasuringModel)
        return self.model.goal(latent, proprioception)

    def measuring(self) -> Rollouts:
        assert isinstance(self.model, MeasuringModel)
        return self.model.measuring()

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        return self.model.rollout(context, actions)

    def rollout_shared(self, context: tuple[Tensor, ...], actions: Tensor, alike: Alike) -> Tensor:
        return shared_rollout(self.model, context, actions, alike)
