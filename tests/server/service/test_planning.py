"""Plans of an application with real engines: what they say, follow from and refuse."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from presage.optimizers import LAST_STEP_ALONE, OPTIMIZERS, PROPOSER_ALONE
from presage.values import PlannerSettings

from model import registry
from planner.optimizers.cem import CEM
from planner.types import Problem
from server.errors import Reason
from server.service.application import Application
from server.values.calls import (
    DistanceRequest,
    GoalRequest,
    Observation,
    PlanRequest,
    RolloutRequest,
    ScoreRequest,
)
from server.worker.model_adapter import action_space
from tests.support.server.linear import ACTION, frame, latent
from tests.support.server.requests import HERE, QUICK, goal_at, plan, refused, session_toward

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_plan_says_what_it_is_and_where_it_comes_from(application: Application) -> None:
    goal = await goal_at(application, 0.45)
    seen = replace(HERE, capture_time_ns=123_456_789, sequence=9)
    received = time.monotonic() - 0.25e-3  # what decoding took
    reply = await application.plan(PlanRequest(seen, goal_id=goal, seed=3), None, received, decode_ms=0.25)
    assert reply.actions.shape == (6, 2)
    assert reply.actions.dtype == np.float32
    assert (reply.actions >= ACTION.low).all()
    assert (reply.actions <= ACTION.high).all()
    assert reply.goal_distance == pytest.approx(float(np.square(latent(0.2, 0.4) - latent(0.45, 0.4)).mean()))
    assert reply.cost == pytest.approx(sum(reply.step_costs))
    assert reply.step_costs[-1] < 0.1 * reply.goal_distance
    assert (len(reply.step_costs), len(reply.iteration_costs), reply.iterations_done) == (3, 6, 6)
    assert (reply.stop_reason, reply.seed, reply.degraded, reply.warm_started) == ("iterations", 3, False, False)
    assert (reply.observation_sequence, reply.capture_time_ns, reply.epoch) == (9, 123_456_789, 0)
    made_by = reply.provenance
    assert (made_by.model, made_by.goal_id, made_by.weights_digest) == ("linear", goal, "0" * 64)
    assert (made_by.planner, made_by.device, made_by.dtype) == (
        PlannerSettings(64, 6, 8, 3, "cem", discount=1.0),
        "cpu",
        "float32",
    )
    times = reply.timings
    assert times.decode_ms == 0.25
    assert min(times.queue_ms, times.encode_ms, times.plan_ms) > 0
    assert times.queue_ms + times.decode_ms + times.encode_ms + times.plan_ms <= times.total_ms
    assert times.total_ms <= 1e3 * (time.monotonic() - received)


async def test_the_same_seed_gives_the_same_plan_and_another_another(application: Application) -> None:
    goal = await goal_at(application, 0.45)
    first, again, other = [
        await plan(application, PlanRequest(HERE, goal_id=goal, planner=QUICK, seed=seed)) for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions, other.actions)


async def test_a_replayed_session_gives_the_same_plans(application: Application) -> None:
    goal = await goal_at(application, 0.45)
    episodes = []
    for _ in range(2):
        session = await session_toward(application, goal, seed=11)
        episodes.append(
            [
                await plan(application, PlanRequest(Observation((frame(0.2 + 0.05 * step, 0.4),)), session, executed=2))
                for step in range(3)
            ]
        )
    for first, second in zip(*episodes, strict=True):
        np.testing.assert_array_equal(first.actions, second.actions)
        assert first.seed == second.seed
    assert len({reply.seed for reply in episodes[0]}) == 3


async def test_company_does_not_change_a_plan(application: Application) -> None:
    goal = await goal_at(application, 0.45)
    requests = [
        PlanRequest(Observation((frame(0.05 * robot, 0.4),)), goal_id=goal, seed=robot, model=model)
        for robot in range(6)
        for model in ("linear",)
    ]
    together = await asyncio.gather(*(plan(application, request) for request in requests))
    for request, reply in zip(requests, together, strict=True):
        alone = await plan(application, request)
        np.testing.assert_allclose(reply.actions, alone.actions, atol=1e-5)


async def test_a_session_goes_on_from_its_last_plan(application: Application) -> None:
    goal = await goal_at(application, 0.9)
    session = await session_toward(application, goal)
    first = await plan(application, PlanRequest(HERE, session))
    one = PlannerSettings(samples=3, iterations=1, elites=2)
    second = await plan(application, PlanRequest(HERE, session, planner=one, executed=2, committed=2))
    assert (first.warm_started, second.warm_started) == (False, True)
    np.testing.assert_array_equal(second.actions[:2], first.actions[2:4])
    await application.reset_session(session)
    third = await plan(application, PlanRequest(HERE, session, planner=one))
    assert (third.warm_started, third.epoch) == (False, 1)


async def test_actions_executed_of_an_older_plan_are_counted_in_the_last_one(application: Application) -> None:
    session = await session_toward(application, await goal_at(application, 0.9))
    first = await plan(application, PlanRequest(HERE, session))
    second = await plan(application, PlanRequest(HERE, session, executed=1))
    late = PlanRequest(HERE, session, planner=QUICK, executed=3, committed=2, plan_sequence=1)
    third = await plan(application, late)
    assert second.observation_sequence == 2
    np.testing.assert_array_equal(third.actions[:2], first.actions[3:5])
    await refused(plan(application, replace(late, executed=0)), Reason.INVALID_FIELD, "executed")
    await refused(plan(application, replace(late, plan_sequence=9)), Reason.INVALID_FIELD, "plan_sequence")


async def test_a_plan_toward_another_goal_makes_it_the_sessions_goal(application: Application) -> None:
    left, right = await goal_at(application, 0.0), await goal_at(application, 0.9)
    session = await session_toward(application, left)
    await plan(application, PlanRequest(HERE, session, planner=QUICK))
    swapped = await plan(application, PlanRequest(HERE, session, goal_id=right, planner=QUICK))
    assert not swapped.warm_started
    after = await plan(application, PlanRequest(HERE, session, planner=QUICK))
    assert after.provenance.goal_id == right
    assert after.warm_started


async def test_a_stale_observation_is_refused(application: Application) -> None:
    session = await session_toward(application, await goal_at(application, 0.5))
    await plan(application, PlanRequest(replace(HERE, sequence=5), session, planner=QUICK))
    for sequence in (4, 5):
        again = PlanRequest(replace(HERE, sequence=sequence), session, planner=QUICK)
        await refused(plan(application, again), Reason.STALE_OBSERVATION, "observation.sequence")


async def test_a_repeated_call_gets_the_same_reply_also_while_the_first_is_under_way(application: Application) -> None:
    session = await session_toward(application, await goal_at(application, 0.5))
    request = PlanRequest(replace(HERE, sequence=5), session, planner=QUICK, request_id="once")
    first, second = await asyncio.gather(plan(application, request), plan(application, request))
    third = await plan(application, request)
    assert first is second is third
    assert (await application.get_session(session)).plans == 1


async def test_history_and_proprioception_reach_the_model(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="historian")
    session = await session_toward(application, goal, model="historian")
    for step in range(4):
        seen = Observation((frame(0.1 * step, 0.4),), np.array([step], np.float32))
        await plan(application, PlanRequest(seen, session, planner=QUICK))
    now = Observation((frame(0.1 * 4, 0.4),), np.array([4.0], np.float32))
    rollout = await application.rollout(RolloutRequest(now, np.zeros((2, 2), np.float32), session))
    mean = sum(latent(0.1 * step, 0.4) for step in (2, 3, 4)) / 3
    np.testing.assert_allclose(rollout.latents[0], mean, rtol=1e-5)


async def test_the_compact_family_plans(application: Application) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, 32, 32, 3), np.uint8)
    goal = (await application.create_goal(GoalRequest("tiny", image=images[1]))).goal_id
    request = PlanRequest(Observation((images[0],)), model="tiny", goal_id=goal, seed=4)
    first, second = await plan(application, request), await plan(application, request)
    np.testing.assert_array_equal(first.actions, second.actions)
    assert first.actions.shape == (6, 2)
    assert first.iteration_costs[-1] <= first.iteration_costs[0]


async def test_the_service_plans_as_the_planner_does(application: Application, compact_folder: Path) -> None:
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (2, 32, 32, 3), np.uint8)
    goal = (await application.create_goal(GoalRequest("tiny", image=images[1]))).goal_id
    served = await plan(application, PlanRequest(Observation((images[0],)), model="tiny", goal_id=goal, seed=4))
    model = registry.load(str(compact_folder), torch.device("cpu"))
    latents = model.encode(torch.from_numpy(images))
    space = action_space(model)
    assert space is not None
    problem = Problem(model.context([latents[0]], None), latents[1], space, seed=4)
    direct = CEM(samples=32, iterations=4, elites=6, horizon=3).plan(model, problem)
    np.testing.assert_allclose(served.actions, direct.actions.numpy(), atol=1e-4)
    assert served.cost == pytest.approx(direct.cost, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"model": "nobody"}, Reason.UNKNOWN_MODEL, "model"),
        ({"model": "embedder"}, Reason.UNSUPPORTED, ""),
        ({"session_id": "nobody"}, Reason.UNKNOWN_SESSION, "session_id"),
        ({"goal_id": "none"}, Reason.UNKNOWN_GOAL, "goal_id"),
        ({"goal_id": ""}, Reason.GOAL_REQUIRED, "goal_id"),
        ({"observation": Observation(())}, Reason.INVALID_IMAGE, "observation.images"),
        ({"observation": Observation((frame(0, 0),) * 2)}, Reason.INVALID_IMAGE, "observation.images"),
        ({"observation": Observation((frame(0, 0)[:8],))}, Reason.IMAGE_SIZE, "observation.images[0]"),
        (
            {"observation": Observation((frame(0, 0).astype(np.float32),))},  # type: ignore[arg-type]
            Reason.INVALID_IMAGE,
            "observation.images[0]",
        ),
        (
            {"observation": replace(HERE, proprioception=np.zeros(2, np.float32))},
            Reason.INVALID_FIELD,
            "observation.proprioception",
        ),
        ({"planner": PlannerSettings(samples=0)}, Reason.INVALID_FIELD, "planner.samples"),
        ({"planner": PlannerSettings(iterations=0)}, Reason.INVALID_FIELD, "planner.iterations"),
        ({"planner": PlannerSettings(horizon=0)}, Reason.INVALID_FIELD, "planner.horizon"),
        ({"planner": PlannerSettings(samples=8, elites=8)}, Reason.INVALID_FIELD, "planner.elites"),
        ({"planner": PlannerSettings(elites=1)}, Reason.INVALID_FIELD, "planner.elites"),
        ({"planner": PlannerSettings(iterations=1001)}, Reason.TOO_LARGE, "planner.iterations"),
        ({"planner": PlannerSettings(samples=1 << 31)}, Reason.TOO_LARGE, "planner"),
        ({"planner": PlannerSettings(samples=20_000, iterations=200, horizon=1)}, Reason.TOO_LARGE, "planner"),
        ({"planner": PlannerSettings(optimizer="annealing")}, Reason.INVALID_FIELD, "planner.optimizer"),
        ({"planner": PlannerSettings(optimizer="policy")}, Reason.INVALID_FIELD, "planner.optimizer"),
        ({"planner": PlannerSettings(cost="mean")}, Reason.INVALID_FIELD, "planner.cost"),
        ({"planner": PlannerSettings(cost="")}, Reason.INVALID_FIELD, "planner.cost"),
        ({"planner": PlannerSettings(cost="least", discount=2.0)}, Reason.INVALID_FIELD, "planner.discount"),
        ({"planner": PlannerSettings(cost="least", optimizer="vjepa2_ac")}, Reason.INVALID_FIELD, "planner.cost"),
        ({"planner": PlannerSettings(discount=0.0)}, Reason.INVALID_FIELD, "planner.discount"),
        ({"planner": PlannerSettings(discount=float("nan"))}, Reason.INVALID_FIELD, "planner.discount"),
        (
            {"planner": PlannerSettings(optimizer="vjepa2_ac", discount=2.0)},
            Reason.INVALID_FIELD,
            "planner.discount",
        ),
        (
            {"planner": PlannerSettings(optimizer="gauss_newton", samples=3, iterations=2, elites=2, horizon=200)},
            Reason.TOO_LARGE,
            "planner.horizon",
        ),
        ({"planner": PlannerSettings(dimensions=("right", "up"))}, Reason.INVALID_FIELD, "planner.dimensions[1]"),
        ({"planner": PlannerSettings(dimensions=("down", "down"))}, Reason.INVALID_FIELD, "planner.dimensions[1]"),
        ({"budget_ms": 0.0}, Reason.INVALID_FIELD, "budget_ms"),
        ({"budget_ms": float("nan")}, Reason.INVALID_FIELD, "budget_ms"),
        ({"budget_ms": float("inf")}, Reason.INVALID_FIELD, "budget_ms"),
        ({"executed": 1}, Reason.INVALID_FIELD, "executed"),
        ({"executed": -1}, Reason.INVALID_FIELD, "executed"),
        ({"committed": 1}, Reason.INVALID_FIELD, "committed"),
        ({"plan_sequence": 1}, Reason.INVALID_FIELD, "plan_sequence"),
        ({"seed": 1 << 64}, Reason.INVALID_FIELD, "seed"),
        ({"request_id": "x" * 129}, Reason.INVALID_FIELD, "request_id"),
    ],
)
async def test_a_bad_plan_request_is_refused_by_name(
    application: Application, change: dict[str, object], reason: Reason, field: str
) -> None:
    good = PlanRequest(HERE, goal_id=await goal_at(application, 0.5))
    error = await refused(plan(application, replace(good, **change)), reason, field)  # type: ignore[arg-type]
    assert len(error.message) < 300
    assert application.calls_in_hand == 0


@pytest.mark.parametrize("proprioception", [None, np.zeros(2, np.float32), np.array([np.inf], np.float32)])
async def test_a_model_that_feels_refuses_other_proprioception(
    application: Application, proprioception: np.ndarray[tuple[int], np.dtype[np.float32]] | None
) -> None:
    goal = await goal_at(application, 0.5, model="historian")
    request = PlanRequest(Observation(HERE.images, proprioception), model="historian", goal_id=goal)
    reason = Reason.INVALID_TENSOR if proprioception is not None and len(proprioception) == 1 else Reason.INVALID_FIELD
    await refused(plan(application, request), reason, "observation.proprioception")


async def test_predictions_that_are_no_numbers_are_no_plan(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="nan")
    edge = Observation((frame(1.0, 0.4),))
    await refused(plan(application, PlanRequest(edge, model="nan", goal_id=goal)), Reason.PLAN_FAILED)
    actions = np.zeros((2, 2), np.float32)
    await refused(application.rollout(RolloutRequest(edge, actions, model="nan")), Reason.PLAN_FAILED)
    score = ScoreRequest(edge, actions[None], model="nan", goal_id=goal)
    await refused(application.score(score), Reason.PLAN_FAILED)
    assert (await plan(application, PlanRequest(HERE, model="nan", goal_id=goal))).iterations_done == 6


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != PROPOSER_ALONE])
async def test_the_cost_of_a_plan_is_what_a_score_of_its_actions_says(application: Application, optimizer: str) -> None:
    goal = await goal_at(application, 0.45)
    discount = 1.0 if optimizer in LAST_STEP_ALONE else 1.5
    settings = PlannerSettings(samples=16, iterations=4, optimizer=optimizer, discount=discount)
    made = await plan(application, PlanRequest(HERE, goal_id=goal, seed=3, planner=settings))
    score = await application.score(ScoreRequest(HERE, made.actions[None], goal_id=goal))
    assert made.cost == pytest.approx(float(score.costs[0]), rel=1e-4)
    np.testing.assert_allclose(made.step_costs, score.step_costs[0], rtol=1e-4)
    (distance,) = (await application.distance(DistanceRequest(HERE.images, goal_id=goal))).distances
    assert made.goal_distance == pytest.approx(distance, rel=1e-5)
    if optimizer not in LAST_STEP_ALONE:  # whose result is a mean, not the best candidate
        assert made.objective == pytest.approx(made.iteration_costs[-1], rel=1e-5)
    assert made.objective != pytest.approx(made.cost, rel=1e-3)  # of another discount, or of the last step's L1


async def test_a_plan_with_the_models_own_settings_makes_its_cost_small(application: Application) -> None:
    made = await plan(application, PlanRequest(HERE, goal_id=await goal_at(application, 0.45)))
    assert made.objective == made.cost
