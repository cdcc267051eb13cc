"""Records of plans to write, and files of them to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from presage.values import Plan, PlannerSettings, Provenance, Timings

from model.interface import LoadedModel
from server.engine.messages import Done, FromEngine, PlanDone, PlanJob, SearchSize, Start
from server.recording.records import PlanRecord
from server.values.calls import Observation, PlanRequest
from server.worker.scheduling.plan_scheduler import PlanScheduler
from tests.support.server import linear

SIZE = SearchSize(samples=16, iterations=3, elites=4, horizon=3)


def job(model: str = "linear", seed: int = 3, side: int = linear.SIDE, latent: int = 2) -> PlanJob:
    """A plan from a random picture to a random goal."""
    generator = np.random.default_rng(seed)
    frame = generator.integers(0, 256, (side, side, 3), np.uint8)
    goal = generator.normal(size=latent).astype(np.float32)
    warm = generator.uniform(-0.1, 0.1, (5, 2)).astype(np.float32)
    return PlanJob(model, Start((frame,)), goal, SIZE, seed, warm_start=warm, previous_action=warm[0])


def done(asked: PlanJob, models: Mapping[str, LoadedModel]) -> PlanDone:
    """What an engine with these models finds."""
    answers: list[FromEngine] = []
    scheduler = PlanScheduler(models, 1, 65_536, answers.append, lambda: 0.0)
    scheduler.add(1, asked)
    while scheduler.busy:
        scheduler.step()
    (answer,) = answers
    assert isinstance(answer, Done), answer
    assert isinstance(answer.result, PlanDone)
    return answer.result


def record(asked: PlanJob | None, found: PlanDone | None, sequence: int = 1, digest: str = "0" * 64) -> PlanRecord:
    """The record of such a plan."""
    actions = np.zeros((6, 2), np.float32) if found is None else found.plan.actions
    name = "linear" if asked is None else asked.model
    provenance = Provenance(name, digest, "exact", "goal", PlannerSettings(), "cpu", "float32", "0")
    reply = Plan(
        actions, 0.0, (0.0,), 0.0, (), (), 3, "iterations", 3, False, True, sequence, None, 0, Timings(), provenance
    )
    seen = Observation(() if asked is None else asked.start.frames, sequence=sequence)
    request = PlanRequest(seen, session_id="the secret of the session", executed=1, request_id="r")
    return PlanRecord(1_700_000_000_000_000_000 + sequence, request, reply, asked, found)


def records(models: Mapping[str, LoadedModel], count: int, **kind: int) -> list[PlanRecord]:
    """Different plans with the first of these models."""
    (name, model), *_ = models.items()
    digest = model.package.weights_digest
    made = []
    for sequence in range(1, count + 1):
        asked = replace(job(name, seed=sequence, **kind))
        made.append(record(asked, done(asked, models), sequence, digest))
    return made
