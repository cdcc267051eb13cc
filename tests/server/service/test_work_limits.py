"""What takes too long is refused before it begins, by field, rule and value; what a package is made for never is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from presage.values import ActionSpec, ImageSpec, Model, PlannerSettings

from server.config import Limits
from server.engine.messages import Pace, SearchSize
from server.errors import Reason, ServiceError
from server.service import work_limits
from server.service.application import Application
from server.values.calls import EmbedImagesRequest, PlanRequest, RolloutRequest, ScoreRequest
from tests.server.conftest import START_S, changed, start
from tests.support.server.linear import frame
from tests.support.server.requests import HERE, goal_at, plan, refused

OWN = SearchSize(samples=100, iterations=8, elites=10, horizon=5)
PACE = Pace(0.01, 1e-3, least_encode_s=0.005, least_step_s=1e-5, least_serial_s=1e-3)
ACTION = ActionSpec(("x", "y"), ("m/s", "m/s"), (-1.0, -1.0), (1.0, 1.0), rate_hz=10.0, block=2)
MODEL = Model("linear", "linear", "0" * 64, ImageSpec(16, 16, "exact", 1), ACTION, latent_shape=(2,))
LIMITS = Limits(iteration_s=0.25, work_s=2.0, reply_bytes=4096)


def caught(size: SearchSize, ends: bool = False, pace: Pace = PACE) -> ServiceError:
    with pytest.raises(ServiceError) as error:
        work_limits.search(size, OWN, MODEL, pace, LIMITS, ends)
    assert error.value.reason is Reason.TOO_LARGE
    return error.value


@pytest.mark.parametrize(("samples", "horizon"), [(100, 5), (5000, 5), (3, 250), (100, 250)])
def test_a_search_of_short_iterations_is_allowed(samples: int, horizon: int) -> None:
    work_limits.search(replace(OWN, samples=samples, horizon=horizon), OWN, MODEL, PACE, LIMITS, ends=False)


def test_a_long_horizon_of_few_samples_is_refused_for_its_steps_in_turn() -> None:
    """Three samples of 21,845 steps are no more model steps than is allowed, and 21 seconds."""
    found = caught(replace(OWN, samples=3, horizon=21_845), ends=True)
    assert (found.field, found.value) == ("planner.horizon", "21845")
    assert found.rule == "must keep an iteration, which nothing interrupts, within 0.25 s; it takes 21.8 s"


def test_many_samples_are_refused_for_their_number() -> None:
    assert caught(replace(OWN, samples=6000), ends=True).field == "planner.samples"


def test_searches_that_follow_slopes_count_what_they_evaluate() -> None:
    """Four numbers in each model step: Gauss-Newton evaluates a sequence for each of them, from four starts."""
    work_limits.search(
        replace(OWN, samples=8, horizon=30, optimizer="gauss_newton"), OWN, MODEL, PACE, LIMITS, ends=True
    )
    assert caught(replace(OWN, samples=8, horizon=60, optimizer="gauss_newton"), ends=True).field == "planner.horizon"
    work_limits.search(replace(OWN, samples=1600, optimizer="gradient"), OWN, MODEL, PACE, LIMITS, ends=True)
    assert caught(replace(OWN, samples=1700, optimizer="gradient"), ends=True).field == "planner.samples"


def test_many_iterations_are_refused_unless_something_ends_them() -> None:
    long = replace(OWN, samples=4000, iterations=11)
    assert caught(long).field == "planner.iterations"
    work_limits.search(long, OWN, MODEL, PACE, LIMITS, ends=True)


def test_a_models_own_search_is_allowed_on_any_machine() -> None:
    slow = replace(PACE, least_step_s=1.0)
    work_limits.search(OWN, OWN, MODEL, slow, LIMITS, ends=False)
    assert caught(replace(OWN, samples=401), pace=slow).field == "planner.samples"


def test_an_engine_that_measured_nothing_yet_refuses_nothing() -> None:
    work_limits.search(replace(OWN, horizon=20_000), OWN, MODEL, Pace(0.0, 0.0), LIMITS, ends=False)


def test_candidates_are_refused_by_each_ones_length_and_by_all_of_them() -> None:
    assert work_limits.rollouts(1000, 10, OWN, PACE, LIMITS, "candidates") == pytest.approx(0.1)
    for count, horizon in ((1, 300), (30_000, 10)):
        with pytest.raises(ServiceError) as error:
            work_limits.rollouts(count, horizon, OWN, PACE, LIMITS, "candidates")
        assert (error.value.reason, error.value.field) == (Reason.TOO_LARGE, "candidates")


# With a real engine


@pytest.mark.asyncio(loop_scope="session")
async def test_requests_that_take_too_long_are_refused_by_a_service_before_they_begin() -> None:
    """The slow world takes 60 ms for each rollout: a few steps are as much as these limits allow."""
    application = await start(changed(models=("slow",), iteration_s=0.01, work_s=0.5, reply_bytes=1024))
    try:
        await application.wait_ready(START_S)
        goal = await goal_at(application, 0.6)
        await plan(application, PlanRequest(HERE, goal_id=goal))
        longer = PlannerSettings(samples=3, horizon=400)
        await refused(
            plan(application, PlanRequest(HERE, goal_id=goal, planner=longer)), Reason.TOO_LARGE, "planner.horizon"
        )
        actions = np.zeros((800, 2), np.float32)
        await refused(application.rollout(RolloutRequest(HERE, actions)), Reason.TOO_LARGE, "actions")
        candidates = np.zeros((2, 800, 2), np.float32)
        await refused(application.score(ScoreRequest(HERE, candidates, goal_id=goal)), Reason.TOO_LARGE, "candidates")
        await refused(
            application.embed_images(EmbedImagesRequest((frame(0.1, 0.1),) * 200, kind="tokens")),
            Reason.TOO_LARGE,
            "images",
        )
        await application.score(ScoreRequest(HERE, candidates[:, :4], goal_id=goal))
    finally:
        await application.stop(0.0)


@pytest.mark.asyncio(loop_scope="session")
async def test_the_defaults_allow_what_packages_are_made_for(application: Application) -> None:
    for model in ("linear", "slow", ""):
        goal = await goal_at(application, 0.6, model=model)
        assert (await plan(application, PlanRequest(HERE, model=model, goal_id=goal))).iterations_done >= 1
