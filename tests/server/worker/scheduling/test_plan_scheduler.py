"""The engine's searches on a clock that only the model's work moves: batching, turns, deadlines, budgets, failures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from server.engine.messages import Done
from server.errors import Reason
from tests.support.server.linear import ACTION, latent
from tests.support.server.service_bench import ENCODE_S, ITERATION_S, ROLLOUT_S, SAMPLE_S, SIZE, Bench, job, measured


def test_a_plan_comes_closer_to_its_goal_and_says_how() -> None:
    bench = Bench()
    bench.scheduler.add(1, job(bench))
    bench.run()
    plan = bench.plan(1)
    assert plan.actions.shape == (6, 2)
    assert plan.stop_reason == "iterations"
    assert plan.goal_distance == pytest.approx(float(np.square(latent(0.2, 0.5) - latent(0.5, 0.5)).mean()))
    assert plan.cost < 3 * plan.goal_distance
    assert list(plan.iteration_costs) == sorted(plan.iteration_costs, reverse=True)
    done = bench.done(1)
    assert done.latent.tolist() == latent(0.2, 0.5).tolist()
    assert (done.encoded - done.began, done.ended - done.encoded) == pytest.approx((ENCODE_S, 5 * ITERATION_S))


def test_company_does_not_change_a_plan() -> None:
    alone, together = {}, Bench()
    for number in range(4):
        bench = Bench()
        bench.scheduler.add(number, job(bench, right=0.1 * number, seed=number))
        bench.run()
        alone[number] = bench.plan(number)
        together.scheduler.add(number, job(together, right=0.1 * number, seed=number))
    together.run()
    assert together.model.batches == [4] * 5
    for number in range(4):
        np.testing.assert_allclose(together.plan(number).actions, alone[number].actions, atol=1e-5)
        assert together.plan(number).cost == pytest.approx(alone[number].cost, rel=1e-5)


def test_robots_join_and_leave_between_iterations() -> None:
    bench = Bench()
    bench.scheduler.add(1, job(bench))
    for _ in range(3):  # encode, two iterations
        bench.scheduler.step()
    bench.scheduler.add(2, job(bench, seed=2))
    bench.run()
    assert bench.model.batches == [1, 1, 1, 2, 2, 1, 1, 1] or bench.model.batches == [1, 1, 2, 2, 2, 1, 1]
    assert (bench.plan(1).iterations_done, bench.plan(2).iterations_done) == (5, 5)
    solo = Bench()
    solo.scheduler.add(2, job(solo, seed=2))
    solo.run()
    np.testing.assert_allclose(bench.plan(2).actions, solo.plan(2).actions, atol=1e-5)


def test_different_settings_take_turns() -> None:
    bench = Bench()
    other = replace(SIZE, samples=20)
    bench.scheduler.add(1, job(bench))
    bench.scheduler.add(2, job(bench, size=other))
    bench.run()
    assert bench.model.batches == [1] * 10
    assert abs(bench.at[1] - bench.at[2]) < 2 * ITERATION_S


def test_batches_stay_within_their_limits() -> None:
    few = Bench(max_batch=3)
    roomy = Bench(max_steps=2 * SIZE.steps_per_iteration)
    for bench in (few, roomy):
        for number in range(5):
            bench.scheduler.add(number, job(bench, seed=number))
        bench.run()
    assert max(few.model.batches) == 3
    assert max(roomy.model.batches) == 2


@pytest.mark.parametrize("left_s", [0.2, 0.25, 0.3, 0.45])
def test_the_best_so_far_leaves_before_the_deadline(left_s: float) -> None:
    bench = measured(Bench())
    wanted = job(bench, left_s=left_s)
    bench.scheduler.add(1, wanted)
    bench.run()
    plan = bench.plan(1)
    assert plan.stop_reason == "deadline"
    assert 1 <= plan.iterations_done <= (left_s - ENCODE_S) / ITERATION_S
    assert wanted.deadline is not None
    assert bench.at[1] <= wanted.deadline


@pytest.mark.parametrize("left_s", [-1.0, 0.0, 0.05, 0.1])
def test_without_time_for_one_iteration_the_refusal_comes_at_once(left_s: float) -> None:
    bench = measured(Bench())
    began = bench.model.now
    bench.scheduler.add(1, job(bench, left_s=left_s))
    bench.run()
    assert bench.failure(1).reason is Reason.DEADLINE
    assert bench.at[1] == began


def test_a_plan_on_trust_is_tried_whatever_is_predicted() -> None:
    bench = measured(Bench())
    bench.scheduler.add(1, replace(job(bench, left_s=0.05), on_trust=True))
    bench.run()
    assert (bench.plan(1).iterations_done, bench.plan(1).stop_reason) == (1, "deadline")


def test_a_budget_ends_thinking_but_not_before_the_first_iteration() -> None:
    bench = measured(Bench())
    bench.scheduler.add(1, job(bench, budget_s=0.35))
    bench.run()
    assert (bench.plan(1).stop_reason, bench.plan(1).iterations_done) == ("budget", 3)
    bench.scheduler.add(2, job(bench, budget_s=0.001))
    bench.run()
    assert (bench.plan(2).stop_reason, bench.plan(2).iterations_done) == ("budget", 1)


def test_a_deadline_before_the_budget_is_named_as_the_reason() -> None:
    bench = measured(Bench())
    bench.scheduler.add(1, job(bench, budget_s=0.4, left_s=0.3))
    bench.scheduler.add(2, job(bench, budget_s=0.3, left_s=0.4))
    bench.run()
    assert bench.plan(1).stop_reason == "deadline"
    assert bench.plan(2).stop_reason == "budget"


def test_nobody_is_late_in_a_crowd() -> None:
    bench = Bench()
    for number in range(-8, 0):  # as many together as there will be, so that the durations are known
        bench.scheduler.add(number, job(bench, size=replace(SIZE, iterations=2)))
    bench.run()
    lefts = [0.12, 0.2, 0.3, 0.5, 0.8, 1.3, 2.1, 3.4]
    jobs = {number: job(bench, seed=number, left_s=left) for number, left in enumerate(lefts)}
    for number, wanted in jobs.items():
        bench.scheduler.add(number, wanted)
    bench.run()
    for number, wanted in jobs.items():
        assert wanted.deadline is not None
        assert bench.at[number] <= wanted.deadline
        if isinstance(bench.sent[number], Done):
            assert bench.plan(number).iterations_done >= 1
    assert sum(isinstance(bench.sent[number], Done) for number in jobs) >= 6


def test_newcomers_do_not_make_others_late() -> None:
    bench = measured(Bench())
    wanted = job(bench, left_s=0.25)
    bench.scheduler.add(1, wanted)
    for number in range(2, 30):
        bench.scheduler.step()
        bench.scheduler.add(number, job(bench, seed=number))
    bench.run()
    assert wanted.deadline is not None
    assert bench.at[1] <= wanted.deadline
    assert bench.plan(1).iterations_done >= 1


def test_a_cancelled_plan_frees_the_engine_at_once() -> None:
    bench = Bench()
    bench.scheduler.add(1, job(bench))
    bench.scheduler.add(2, job(bench))
    bench.scheduler.step()
    bench.scheduler.cancel(1)
    bench.scheduler.cancel(2)
    assert not bench.scheduler.busy
    bench.scheduler.step()
    assert bench.model.batches == []
    assert bench.sent == {}


def test_one_that_cannot_be_searched_spoils_nobody_elses_plan() -> None:
    bench = Bench()
    bench.scheduler.add(1, job(bench))
    bench.scheduler.add(2, job(bench, down=1.0))
    bench.run()
    assert bench.failure(2).reason is Reason.INTERNAL
    assert "bottom edge" not in bench.failure(2).message
    assert bench.plan(1).iterations_done == 5


def test_a_search_of_nan_alone_fails_by_name_and_its_company_does_not() -> None:
    bench = Bench("nan")
    bench.scheduler.add(1, job(bench))
    bench.scheduler.add(2, job(bench, right=1.0))
    bench.run()
    assert bench.failure(2).reason is Reason.PLAN_FAILED
    assert bench.plan(1).iterations_done == 5


def test_a_bad_problem_is_named_before_it_is_searched() -> None:
    bench = Bench()
    committed = np.full((1, 2), 7.0, np.float32)
    bench.scheduler.add(1, replace(job(bench), committed=committed))
    bench.run()
    failure = bench.failure(1)
    assert (failure.reason, failure.field) == (Reason.INVALID_FIELD, "committed[0].right")


def test_a_warm_start_is_the_first_candidate_at_whatever_length() -> None:
    bench = Bench()
    size = replace(SIZE, iterations=1)
    straight = np.tile(np.array([[1.0, 0.0]], np.float32), (9, 1))
    for number, length in enumerate((2, 6, 9)):
        bench.scheduler.add(number, replace(job(bench, goal=1.0, size=size), warm_start=straight[:length]))
    bench.run()
    assert all(bench.plan(number).warm_started for number in range(3))
    best = bench.plan(1)
    np.testing.assert_array_equal(best.actions, straight[:6])  # the optimum toward a far goal: full speed
    np.testing.assert_array_equal(bench.plan(2).actions, best.actions)


def test_committed_actions_head_the_plan() -> None:
    bench = Bench()
    committed = np.array([[-1.0, 0.5], [0.25, -0.5]], np.float32)
    bench.scheduler.add(1, replace(job(bench), committed=committed))
    bench.run()
    np.testing.assert_array_equal(bench.plan(1).actions[:2], committed)


def test_actions_never_leave_their_bounds() -> None:
    bench = Bench()
    for number in range(5):
        bench.scheduler.add(number, job(bench, right=0.0, goal=1.0, seed=number, down=0.1 * number))
    bench.run()
    for number in range(5):
        actions = bench.plan(number).actions
        assert (actions >= np.array(ACTION.low)).all()
        assert (actions <= np.array(ACTION.high)).all()


def test_the_halves_of_a_hybrid_are_timed_apart() -> None:
    bench = Bench()
    size = replace(SIZE, samples=60, iterations=12, elites=8, optimizer="hybrid")
    bench.scheduler.add(0, job(bench, size=size))
    bench.run()
    assert bench.plan(0).stop_reason == "iterations"
    sampling = ROLLOUT_S + 60 * SAMPLE_S
    polish = ROLLOUT_S + 4 * SAMPLE_S
    late = 2 * sampling + 3.5 * polish  # the samples' time would not fit any more, a descent's does
    bench.scheduler.add(1, job(bench, size=size, left_s=ENCODE_S + late))
    bench.run()
    done = bench.done(1)
    assert done.plan.stop_reason == "deadline"
    assert done.plan.iterations_done >= 4
    assert done.ended <= bench.at[1]
