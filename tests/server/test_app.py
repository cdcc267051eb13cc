"""The application end to end, in process: real engine, real sessions, every refusal by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import catalog
from model.video import write_clip
from planner.cem import CEM
from planner.types import Problem
from server.app import Application
from server.errors import Reason, ServiceError
from server.messages import (
    EmbedClipRequest,
    EmbeddingKind,
    EmbedImagesRequest,
    FrameSampling,
    GoalRequest,
    Observation,
    PlannerSettings,
    PlanReply,
    PlanRequest,
    RolloutRequest,
    ScoreRequest,
    SessionRequest,
)
from server.model_calls import action_space
from tests.server.linear import ACTION, GAIN, SIDE, SLOW_S, frame, latent

pytestmark = pytest.mark.asyncio(loop_scope="session")

HERE = Observation((frame(0.2, 0.4),))
QUICK = PlannerSettings(samples=16, iterations=2)
ENDLESS = PlannerSettings(samples=33, iterations=1000, elites=32)  # hardly selects, so it never converges


async def goal_at(application: Application, right: float, down: float = 0.4, model: str = "") -> str:
    return (await application.create_goal(GoalRequest(model, image=frame(right, down)))).goal_id


async def session_toward(application: Application, goal_id: str, model: str = "", seed: int = 7) -> str:
    return (await application.create_session(SessionRequest(model, goal_id, seed=seed))).session_id


async def plan(application: Application, request: PlanRequest, left_s: float | None = None) -> PlanReply:
    now = time.monotonic()
    return await application.plan(request, None if left_s is None else now + left_s, now)


async def refused(call: Awaitable[object], reason: Reason, field: str = "") -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call
    assert caught.value.reason is reason, caught.value.message
    assert caught.value.field == field, caught.value.message
    return caught.value


# Models


async def test_models_say_what_they_need_and_the_default_comes_first(application: Application) -> None:
    names = [model.name for model in application.models()]
    assert names == ["linear", "slow", "nan", "embedder", "historian", "tiny"]
    model = application.model("")
    assert model == application.models()[0]
    assert (model.image_height, model.image_width, model.crop_policy, model.cameras) == (SIDE, SIDE, "exact", 1)
    assert (model.action_names, model.action_low, model.action_high) == (ACTION.names, ACTION.low, ACTION.high)
    assert (model.rate_hz, model.block, model.latent_shape) == (10.0, 2, (2,))
    assert model.planner == PlannerSettings(64, 6, 8, 3)
    assert application.model("embedder").action_names == ()
    assert application.model("tiny").card.startswith("# tiny")
    with pytest.raises(ServiceError) as caught:
        application.model("nobody")
    assert (caught.value.reason, caught.value.value) == (Reason.UNKNOWN_MODEL, "nobody")


# Goals


async def test_a_goal_is_embedded_once_and_found_again(application: Application) -> None:
    image = frame(0.123, 0.456)
    first = await application.create_goal(GoalRequest(image=image))
    second = await application.create_goal(GoalRequest("linear", image=image.copy()))
    assert (first.cached, second.cached) == (False, True)
    assert (second.goal_id, second.create_time_ns) == (first.goal_id, first.create_time_ns)
    assert (await application.get_goal(first.goal_id)).model == "linear"
    await application.delete_goal(first.goal_id)
    await refused(application.get_goal(first.goal_id), Reason.UNKNOWN_GOAL, "goal_id")


async def test_a_goal_can_be_a_latent(application: Application) -> None:
    by_image = await goal_at(application, 0.6)
    by_latent = (await application.create_goal(GoalRequest(latent=latent(0.6, 0.4)))).goal_id
    replies = [await plan(application, PlanRequest(HERE, goal_id=goal, seed=1)) for goal in (by_image, by_latent)]
    np.testing.assert_array_equal(replies[0].actions, replies[1].actions)
    assert by_image != by_latent


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (GoalRequest(), Reason.INVALID_FIELD, "source"),
        (GoalRequest(image=frame(0, 0), latent=latent(0, 0)), Reason.INVALID_FIELD, "source"),
        (GoalRequest(image=frame(0, 0)[1:]), Reason.IMAGE_SIZE, "image"),
        (GoalRequest(image=frame(0, 0)[:, :, 0]), Reason.INVALID_IMAGE, "image"),
        (GoalRequest(latent=np.zeros(3, np.float32)), Reason.INVALID_TENSOR, "latent"),
        (GoalRequest(latent=np.array([np.nan, 0], np.float32)), Reason.INVALID_TENSOR, "latent"),
        (GoalRequest("nobody", image=frame(0, 0)), Reason.UNKNOWN_MODEL, "model"),
    ],
)
async def test_a_bad_goal_is_refused_by_name(
    application: Application, request_: GoalRequest, reason: Reason, field: str
) -> None:
    await refused(application.create_goal(request_), reason, field)


# Sessions


async def test_a_session_from_its_creation_to_its_end(application: Application) -> None:
    goal = await goal_at(application, 0.5)
    created = await application.create_session(SessionRequest(goal_id=goal, ttl_s=60, seed=7))
    assert (created.model, created.goal_id, created.ttl_s, created.epoch, created.plans) == ("linear", goal, 60, 0, 0)
    await plan(application, PlanRequest(replace(HERE, sequence=5), session_id=created.session_id))
    told = await application.get_session(created.session_id)
    assert (told.plans, told.last_sequence) == (1, 5)
    reset = await application.reset_session(created.session_id)
    assert (reset.epoch, reset.plans, reset.last_sequence, reset.goal_id) == (1, 0, 0, goal)
    await application.delete_session(created.session_id)
    await refused(application.get_session(created.session_id), Reason.UNKNOWN_SESSION, "session_id")


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (SessionRequest("nobody"), Reason.UNKNOWN_MODEL, "model"),
        (SessionRequest("embedder"), Reason.UNSUPPORTED, ""),
        (SessionRequest(goal_id="none"), Reason.UNKNOWN_GOAL, "goal_id"),
        (SessionRequest(ttl_s=-1.0), Reason.INVALID_FIELD, "ttl_s"),
        (SessionRequest(ttl_s=float("nan")), Reason.INVALID_FIELD, "ttl_s"),
        (SessionRequest(ttl_s=1e9), Reason.INVALID_FIELD, "ttl_s"),
        (SessionRequest(seed=-1), Reason.INVALID_FIELD, "seed"),
    ],
)
async def test_a_bad_session_is_refused_by_name(
    application: Application, request_: SessionRequest, reason: Reason, field: str
) -> None:
    await refused(application.create_session(request_), reason, field)


async def test_a_goal_of_another_model_is_refused(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    await refused(application.create_session(SessionRequest(goal_id=goal)), Reason.INVALID_FIELD, "goal_id")
    await refused(plan(application, PlanRequest(HERE, goal_id=goal)), Reason.INVALID_FIELD, "goal_id")


# Plans


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
    assert (made_by.planner, made_by.device, made_by.dtype) == (PlannerSettings(64, 6, 8, 3), "cpu", "float32")
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
    model = catalog.load(str(compact_folder), torch.device("cpu"))
    latents = model.encode(torch.from_numpy(images))
    space = action_space(model)
    assert space is not None
    problem = Problem(model.context([latents[0]], None), latents[1], space, seed=4)
    direct = CEM(samples=32, iterations=4, elites=6, horizon=3).plan(model, problem)
    np.testing.assert_allclose(served.actions, direct.actions.numpy(), atol=1e-4)
    assert served.cost == pytest.approx(direct.cost, rel=1e-4)


# Time


async def test_a_budget_ends_a_plan_with_the_best_so_far(application: Application) -> None:
    goal = await goal_at(application, 0.2, model="slow")
    request = PlanRequest(HERE, model="slow", goal_id=goal, planner=ENDLESS, budget_ms=5 * SLOW_S * 1e3)
    reply = await plan(application, request)
    assert reply.stop_reason == "budget"
    assert 1 <= reply.iterations_done <= 5


async def test_a_deadline_ends_a_plan_before_it_passes(application: Application) -> None:
    goal = await goal_at(application, 0.2, model="slow")
    request = PlanRequest(HERE, model="slow", goal_id=goal, planner=ENDLESS)
    deadline = time.monotonic() + 2.0
    reply = await application.plan(request, deadline, time.monotonic())
    assert time.monotonic() <= deadline
    assert reply.stop_reason == "deadline"
    assert 1 <= reply.iterations_done <= 2.0 / SLOW_S


async def test_a_deadline_too_short_for_one_iteration_is_refused_at_once(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    for left_s in (-1.0, 0.0, SLOW_S / 2):
        await refused(plan(application, PlanRequest(HERE, model="slow", goal_id=goal), left_s=left_s), Reason.DEADLINE)


async def test_without_time_to_search_a_session_goes_on_with_its_plan(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    session = await session_toward(application, goal, model="slow")
    first = await plan(application, PlanRequest(HERE, session, planner=QUICK))
    rest = await plan(application, PlanRequest(HERE, session, executed=3), left_s=SLOW_S / 2)
    np.testing.assert_array_equal(rest.actions, first.actions[3:])
    assert (rest.iterations_done, rest.stop_reason, rest.degraded) == (0, "deadline", True)
    assert rest.step_costs == first.step_costs[1:]
    assert len(rest.warnings) == 1
    await refused(plan(application, PlanRequest(HERE, session, executed=3), left_s=SLOW_S / 2), Reason.DEADLINE)


async def test_cancelling_a_plan_frees_the_engine_and_the_observation(application: Application) -> None:
    goal = await goal_at(application, 0.5, model="slow")
    session = await session_toward(application, goal, model="slow")
    request = PlanRequest(replace(HERE, sequence=3), session, planner=ENDLESS)
    task = asyncio.create_task(plan(application, request))
    await asyncio.sleep(3 * SLOW_S)
    assert application.calls_in_hand == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert application.calls_in_hand == 0
    again = await plan(application, replace(request, planner=QUICK))
    assert again.observation_sequence == 3


# Bad input


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
        ({"budget_ms": 0.0}, Reason.INVALID_FIELD, "budget_ms"),
        ({"budget_ms": float("nan")}, Reason.INVALID_FIELD, "budget_ms"),
        ({"budget_ms": float("inf")}, Reason.INVALID_FIELD, "budget_ms"),
        ({"executed": 1}, Reason.INVALID_FIELD, "executed"),
        ({"executed": -1}, Reason.INVALID_FIELD, "executed"),
        ({"committed": 1}, Reason.INVALID_FIELD, "committed"),
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


@pytest.mark.parametrize("felt", [None, np.zeros(2, np.float32), np.array([np.inf], np.float32)])
async def test_a_model_that_feels_refuses_other_proprioception(
    application: Application, felt: np.ndarray[tuple[int], np.dtype[np.float32]] | None
) -> None:
    goal = await goal_at(application, 0.5, model="historian")
    request = PlanRequest(Observation(HERE.images, felt), model="historian", goal_id=goal)
    reason = Reason.INVALID_TENSOR if felt is not None and len(felt) == 1 else Reason.INVALID_FIELD
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


# Rollout and score


async def test_rollout_and_score_are_the_models(application: Application) -> None:
    goal = await goal_at(application, 0.5)
    candidates = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 4, 2)).astype(np.float32)
    expected = latent(0.2, 0.4) + GAIN * candidates.reshape(3, 2, 2, 2).sum(2).cumsum(1)
    costs = np.square(expected - latent(0.5, 0.4)).mean(-1)
    scored = await application.score(ScoreRequest(HERE, candidates, goal_id=goal))
    np.testing.assert_allclose(scored.step_costs, costs, rtol=1e-5)
    np.testing.assert_allclose(scored.costs, costs.sum(1), rtol=1e-5)
    rolled = await application.rollout(RolloutRequest(HERE, candidates[1], goal_id=goal))
    np.testing.assert_allclose(rolled.latents, expected[1], rtol=1e-5)
    np.testing.assert_allclose(rolled.goal_distances, costs[1], rtol=1e-5)
    assert (await application.rollout(RolloutRequest(HERE, candidates[1]))).goal_distances == ()


async def test_a_plan_costs_what_its_score_says(application: Application) -> None:
    goal = await goal_at(application, 0.45)
    reply = await plan(application, PlanRequest(HERE, goal_id=goal))
    scored = await application.score(ScoreRequest(HERE, reply.actions[None], goal_id=goal))
    np.testing.assert_allclose(scored.step_costs[0], reply.step_costs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "value", "reason"),
    [
        ((2, 3), 0.0, Reason.ACTION_SHAPE),
        ((3, 2), 0.0, Reason.ACTION_SHAPE),
        ((0, 2), 0.0, Reason.ACTION_SHAPE),
        ((2,), 0.0, Reason.ACTION_SHAPE),
        ((2, 2), float("nan"), Reason.INVALID_TENSOR),
    ],
)
async def test_bad_actions_are_refused_by_name(
    application: Application, shape: tuple[int, ...], value: float, reason: Reason
) -> None:
    actions = np.full(shape, value, np.float32)
    goal = await goal_at(application, 0.5)
    await refused(application.rollout(RolloutRequest(HERE, actions)), reason, "actions")
    await refused(application.score(ScoreRequest(HERE, actions[None], goal_id=goal)), reason, "candidates")


async def test_a_score_needs_a_goal(application: Application) -> None:
    await refused(
        application.score(ScoreRequest(HERE, np.zeros((1, 2, 2), np.float32))), Reason.GOAL_REQUIRED, "goal_id"
    )


# Embeddings


@pytest.mark.parametrize(
    ("kind", "linear", "tiny"),
    [("pooled", (2,), (8,)), ("per_frame", (3, 2), (3, 8)), ("tokens", (3, 1, 2), (3, 16, 24))],
)
async def test_images_embed_in_three_kinds(
    application: Application, kind: EmbeddingKind, linear: tuple[int, ...], tiny: tuple[int, ...]
) -> None:
    images = tuple(frame(0.1 * index, 0.4) for index in range(3))
    goal = await goal_at(application, 0.1)
    embedded = await application.embed_images(EmbedImagesRequest(images, "linear", kind, goal))
    assert (embedded.embedding.shape, embedded.embedding.dtype) == (linear, np.float32)
    expected = [float(np.square(latent(0.1 * index, 0.4) - latent(0.1, 0.4)).mean()) for index in range(3)]
    assert embedded.goal_distances == pytest.approx(expected, abs=1e-7)
    larger = tuple(np.resize(image, (32, 32, 3)) for image in images)
    assert (await application.embed_images(EmbedImagesRequest(larger, "tiny", kind))).embedding.shape == tiny


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (EmbedImagesRequest(()), Reason.INVALID_FIELD, "images"),
        (EmbedImagesRequest((frame(0, 0),) * 257), Reason.TOO_LARGE, "images"),
        (EmbedImagesRequest((frame(0, 0), frame(0, 0)[1:])), Reason.IMAGE_SIZE, "images[1]"),
        (EmbedImagesRequest((frame(0, 0),), goal_id="none"), Reason.UNKNOWN_GOAL, "goal_id"),
        (EmbedImagesRequest((frame(0, 0),), model="nobody"), Reason.UNKNOWN_MODEL, "model"),
    ],
)
async def test_bad_images_are_refused_by_name(
    application: Application, request_: EmbedImagesRequest, reason: Reason, field: str
) -> None:
    await refused(application.embed_images(request_), reason, field)


async def test_a_clip_embeds_with_times_and_distances(application: Application, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    brightness = np.linspace(0, 255, 7).astype(np.uint8)
    write_clip(path, np.tile(brightness[:, None, None, None], (1, 32, 32, 3)), fps=10.0)
    goal = await goal_at(application, 1.0, 1.0)
    clip = await application.embed_clip(EmbedClipRequest(path, kind="per_frame", goal_id=goal))
    assert clip.embedding.shape == (7, 2)
    np.testing.assert_allclose(clip.embedding[:, 0], brightness / 255, atol=0.03)
    assert clip.frame_times_s == pytest.approx([0.1 * index for index in range(7)], abs=1e-3)
    distances = np.square(clip.embedding - 1).mean(1)
    np.testing.assert_allclose(clip.goal_distances, distances, atol=1e-6)
    np.testing.assert_allclose(clip.step_distances, np.square(np.diff(clip.embedding, axis=0)).mean(1), atol=1e-6)
    few = EmbedClipRequest(path, model="tiny", sampling=FrameSampling(frames=3), kind="tokens")
    assert (await application.embed_clip(few)).embedding.shape == (3, 16, 24)
    no_video = tmp_path / "text.mp4"
    no_video.write_bytes(b"not a video at all" * 100)
    await refused(application.embed_clip(EmbedClipRequest(no_video)), Reason.INVALID_CLIP, "clip")


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (FrameSampling(fps=0.0), "sampling.fps"),
        (FrameSampling(fps=float("nan")), "sampling.fps"),
        (FrameSampling(frames=0), "sampling.frames"),
        (FrameSampling(frames=1 << 31), "sampling.frames"),
        (FrameSampling(fps=1.0, frames=1), "sampling"),
    ],
)
async def test_bad_sampling_is_refused_by_name(
    application: Application, tmp_path: Path, sampling: FrameSampling, field: str
) -> None:
    request = EmbedClipRequest(tmp_path / "clip.mp4", sampling=sampling)
    await refused(application.embed_clip(request), Reason.INVALID_FIELD, field)


async def test_calls_with_a_deadline_that_has_passed_are_refused(application: Application, tmp_path: Path) -> None:
    past = time.monotonic() - 1
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: application.create_goal(GoalRequest(image=frame(0.777, 0.777)), past),
        lambda: application.rollout(RolloutRequest(HERE, np.zeros((2, 2), np.float32)), past),
        lambda: application.embed_images(EmbedImagesRequest((frame(0, 0),)), past),
        lambda: application.embed_clip(EmbedClipRequest(tmp_path / "clip.mp4"), past),
    ]
    for call in calls:
        await refused(call(), Reason.DEADLINE)
