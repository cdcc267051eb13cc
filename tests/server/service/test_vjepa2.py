"""The V-JEPA 2 family behind the service, with tiny random weights: what it refuses, warns of, and shows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
import torch
from presage.values import PlannerSettings

from model.checkpoints.importer import import_checkpoint
from server.errors import Reason, ServiceError
from server.service.application import Application
from server.values.calls import Frame, GoalRequest, LandscapeRequest, Observation, PlanRequest
from tests.model.vjepa2.test_world_model import write_checkpoint
from tests.server.conftest import START_S, changed, start
from tests.support.model.tiny_vjepa2 import published
from tests.support.paths import SHARED

pytestmark = pytest.mark.asyncio(loop_scope="session")

TRANSITION = SHARED / "data" / "franka_example_traj.npz"
POSE = np.array([0.4, 0.0, 0.3, 3.1, 0.0, -1.9, 0.5], np.float32)
QUICK = PlannerSettings(samples=12, iterations=2, elites=3)
RNG = np.random.default_rng(0)
SEEN: Frame = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
GOAL: Frame = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def application(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Application]:
    folder = tmp_path_factory.mktemp("vjepa2")
    import_checkpoint(write_checkpoint(folder, acts=True), folder / "tiny", torch.float32, model=published(acts=True))
    started = await start(changed(models=(str(folder / "tiny"),)))
    await started.wait_ready(START_S)
    yield started
    await started.stop(shutdown_grace_s=0.0)


def seen(pose: np.ndarray[tuple[int], np.dtype[np.float32]] | None = POSE, image: Frame = SEEN) -> Observation:
    return Observation((image,), pose)


async def request(application: Application, observation: Observation) -> PlanRequest:
    goal = await application.create_goal(GoalRequest(image=GOAL))
    return PlanRequest(observation, goal_id=goal.goal_id, planner=QUICK, seed=1)


async def test_a_plan_follows_the_published_rules_and_says_so(application: Application) -> None:
    plan = await application.plan(await request(application, seen()), None, time.monotonic())
    (action,) = plan.actions
    assert (np.abs(action[:3]) <= 0.075).all()
    assert (action[3:6] == 0).all()
    assert action[6] == 0 or 0.25 <= abs(action[6]) <= 0.75
    made = plan.provenance
    assert (made.crop_policy, made.planner.optimizer) == ("planning", "vjepa2_ac")
    assert made.planner.dimensions == ("x", "y", "z", "gripper")
    assert plan.warnings == ()


async def test_rotations_are_searched_where_asked_for(application: Application) -> None:
    asked = await request(application, seen())
    asked = replace(asked, planner=replace(QUICK, dimensions=("x", "y", "z", "roll", "pitch", "yaw")))
    (action,) = (await application.plan(asked, None, time.monotonic())).actions
    assert (action[3:6] != 0).all()
    assert action[6] == 0


def with_entry(index: int, value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    pose = POSE.copy()
    pose[index] = value
    return pose


@pytest.mark.parametrize(
    ("observation", "reason", "field", "rule"),
    [
        (seen(with_entry(5, -109.0)), Reason.INVALID_FIELD, "observation.proprioception", "not in degrees"),
        (seen(with_entry(6, 1.4)), Reason.INVALID_FIELD, "observation.proprioception", "gripper in 0 (open) .. 1"),
        (seen(POSE[:6]), Reason.INVALID_FIELD, "observation.proprioception", "must be [7]"),
        (seen(None), Reason.INVALID_FIELD, "observation.proprioception", "must have 7 entries"),
        (seen(with_entry(0, np.nan)), Reason.INVALID_TENSOR, "observation.proprioception", "must be finite"),
        (seen(image=np.moveaxis(SEEN, 2, 0)), Reason.INVALID_IMAGE, "observation.images[0]", "[height, width, 3]"),
        (seen(image=SEEN / 255), Reason.INVALID_IMAGE, "observation.images[0]", "must be uint8"),  # type: ignore[arg-type]
        (seen(image=SEEN[:7]), Reason.INVALID_IMAGE, "images", "at least 8 x 8 pixels, a patch"),
    ],
)
async def test_input_that_cannot_be_meant_is_refused_with_field_rule_and_value(
    application: Application, observation: Observation, reason: Reason, field: str, rule: str
) -> None:
    with pytest.raises(ServiceError) as refusal:
        await application.plan(await request(application, observation), None, time.monotonic())
    error = refusal.value
    assert (error.reason, error.field) == (reason, field)
    assert rule in error.rule
    assert error.value


@pytest.mark.parametrize(
    ("observation", "warning"),
    [
        (seen(with_entry(6, 0.08)), "opening in meters"),
        (seen(with_entry(0, 410.0)), "millimeters"),
        (seen(image=SEEN // 255), "were pixels in 0..1 cast to uint8"),
        (seen(image=SEEN // 32 + 100), "is the camera covered"),
    ],
)
async def test_odd_but_legal_input_is_planned_for_with_a_warning(
    application: Application, observation: Observation, warning: str
) -> None:
    plan = await application.plan(await request(application, observation), None, time.monotonic())
    assert [told for told in plan.warnings if warning in told] == list(plan.warnings) != []


async def test_the_landscape_spans_the_positions(application: Application) -> None:
    goal = await application.create_goal(GoalRequest(image=GOAL))
    found = await application.landscape(LandscapeRequest(seen(), goal_id=goal.goal_id))
    assert found.dimensions == ("x", "y", "z")
    assert found.costs.shape == (5, 5, 5)
    np.testing.assert_allclose(found.values[0], [-0.075, -0.0375, 0, 0.0375, 0.075], atol=1e-7)
    assert len(np.unique(found.costs)) == 125
    assert found.best_cost == found.costs.min() < found.rest_cost


@pytest.mark.skipif(not TRANSITION.exists(), reason="needs ../shared/data, which a user's clone does not hold")
async def test_a_real_franka_transition_is_taken_as_it_is(application: Application) -> None:
    with np.load(TRANSITION) as recorded:
        (before, after), (pose, _) = recorded["observations"][0], recorded["states"][0]
    goal = await application.create_goal(GoalRequest(image=after))
    observation = Observation((before,), pose)
    asked = PlanRequest(observation, goal_id=goal.goal_id, planner=QUICK, seed=1)
    assert (await application.plan(asked, None, time.monotonic())).warnings == ()
    found = await application.landscape(LandscapeRequest(observation, goal_id=goal.goal_id, plot=True))
    assert np.isfinite(found.costs).all()
    assert found.plot.startswith(b"\x89PNG")
