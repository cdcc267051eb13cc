"""Plans of a recorded service made again, the same; and what keeps one from being the same is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch

from model import registry
from model.interface import LoadedModel
from server.recording.recorder import Recorder, RecorderSettings, files
from server.service.application import Application
from server.values.calls import GoalRequest, GoalStage, Observation, PlanRequest, SessionRequest
from server.worker.replay import Recording, read, replay
from tests.server.conftest import START_S, changed, start
from tests.support.server import linear
from tests.support.server.linear import SLOW_S, frame
from tests.support.server.requests import ENDLESS, QUICK, goal_at, plan

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOLERANCE = 1e-4


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def recordings(tmp_path_factory: pytest.TempPathFactory, compact_folder: Path) -> AsyncIterator[list[Recording]]:
    """The same plans, recorded with pictures and without."""
    found = []
    models = ("linear", "slow", "historian", str(compact_folder))
    folder = tmp_path_factory.mktemp("recorded")
    with_pictures = Recorder(RecorderSettings(folder / "with", models=models))
    without = Recorder(RecorderSettings(folder / "without", images=False, models=models))

    class Both(Recorder):
        def __init__(self) -> None: ...

        def put(self, record: object) -> None:
            for recorder in (with_pictures, without):
                recorder.put(record)  # type: ignore[arg-type]

    application = await start(changed(models=models), Both())
    await application.wait_ready(START_S)
    await fly(application)
    await application.stop(shutdown_grace_s=0.0)
    for recorder, name in ((with_pictures, "with"), (without, "without")):
        recorder.close(30.0)
        assert recorder.dropped == 0
        (path,) = files(folder / name)
        found.append(read(path))
    yield found


async def fly(application: Application) -> None:
    """Plans of every kind: alone, warm-started, committed, toward stages, with a history, out of time, in company."""
    goal, near = await goal_at(application, 0.9), await goal_at(application, 0.3)
    stages = (GoalStage(near, switch_below=1e-3), GoalStage(goal))
    session = (await application.create_session(SessionRequest(stages=stages, seed=5))).session_id
    for step in range(3):
        seen = Observation((frame(0.2 + 0.05 * step, 0.4),))
        asked = PlanRequest(seen, session, planner=QUICK, executed=2 * bool(step), committed=2 * bool(step))
        await plan(application, asked)
    feeling = await goal_at(application, 0.5, model="historian")
    session = (await application.create_session(SessionRequest("historian", feeling))).session_id
    for step in range(4):
        proprioception = Observation((frame(0.1 * step, 0.4),), np.array([step], np.float32))
        await plan(application, PlanRequest(proprioception, session, planner=QUICK, executed=1))
    slow = await goal_at(application, 0.5, model="slow")
    for optimizer in ("cem", "gradient"):  # gradient's steps depend on how many iterations there were to be
        hurried = PlanRequest(
            Observation((frame(0.2, 0.4),)), model="slow", goal_id=slow, seed=1, budget_ms=5 * SLOW_S * 1e3,
            planner=replace(ENDLESS, optimizer=optimizer),
        )  # fmt: skip
        await plan(application, hurried)
    generator = np.random.default_rng(2)
    pictures = generator.integers(0, 256, (4, 32, 32, 3), np.uint8)
    wanted = (await application.create_goal(GoalRequest("tiny", image=pictures[0]))).goal_id
    together = [PlanRequest(Observation((each,)), model="tiny", goal_id=wanted, seed=9) for each in pictures[1:]]
    await asyncio.gather(*(plan(application, each) for each in together))


@pytest.fixture(scope="module")
def models(compact_folder: Path) -> dict[str, LoadedModel]:
    tiny = registry.load(str(compact_folder), torch.device("cpu"))
    return {"tiny": tiny, **{name: linear.load(name, "cpu") for name in ("linear", "historian", "slow")}}


async def test_every_plan_is_the_same_again_with_its_picture_or_its_latent(
    recordings: list[Recording], models: dict[str, LoadedModel]
) -> None:
    for recording in recordings:
        assert len(recording.records) == 12
        outcomes = list(replay(recording, models, TOLERANCE))
        assert [outcome.verdict for outcome in outcomes] == ["same"] * 12, outcomes
    hurried = [each for each in recordings[0].records if each.reply["stop_reason"] == "budget"]
    assert len(hurried) == 2
    switched = [each for each in recordings[0].records if each.done is not None and each.done.goal_reached]
    assert len(switched) == 1


async def test_what_was_changed_is_found(recordings: list[Recording], models: dict[str, LoadedModel]) -> None:
    (first, *_) = recordings[0].records
    assert first.job is not None
    for change in ({"seed": first.job.seed + 1}, {"goal": first.job.goal + 1}):
        other = replace(first, job=replace(first.job, **change))
        (outcome,) = replay(Recording((), (other,), True), models, TOLERANCE)
        assert outcome.verdict == "different"
        assert outcome.actions > TOLERANCE
        assert "differs" in outcome.why
        (tolerant,) = replay(Recording((), (other,), True), models, 1.0)
        assert tolerant.verdict == "same"


async def test_other_weights_and_models_that_are_not_here_are_told(
    recordings: list[Recording], models: dict[str, LoadedModel]
) -> None:
    first = recordings[0].records[0]
    alone = Recording((), (first,), True)
    (absent,) = replay(alone, {}, TOLERANCE)
    assert (absent.verdict, absent.why) == ("failed", "model linear is not here")
    reply = {**first.reply, "provenance": {**first.reply["provenance"], "weights_digest": "f" * 64}}
    (other,) = replay(replace(alone, records=(replace(first, reply=reply),)), models, TOLERANCE)
    assert other.verdict == "failed"
    assert "other weights" in other.why
