"""Whose turn it is: each caller's part of an engine, whatever others have waiting; on a clock that work alone moves."""

from __future__ import annotations

import pytest

from server.engine.admission import AdmissionController
from server.engine.messages import Done, Pace, RolloutJob, SearchSize
from server.errors import Reason, ServiceError
from server.values.caller import Caller
from server.worker.scheduling.fair_queue import FairQueue, mixed
from tests.support.server.linear import latent
from tests.support.server.service_bench import ITERATION_S, SIZE, Bench, job

A, B = Caller("a"), Caller("b")


def test_who_was_served_least_is_next_and_weights_count() -> None:
    fair, turns = FairQueue(), []
    for _ in range(12):
        caller = fair.next({"a", "b"})
        fair.charge(1.0, {caller: 1.0}, {"a": 2.0})
        turns.append(caller)
    assert (turns.count("a"), turns.count("b")) == (8, 4)


def test_nobody_is_owed_the_time_in_which_nothing_of_his_waited() -> None:
    fair = FairQueue()
    for _ in range(100):
        fair.charge(1.0, {fair.next({"a"}): 1.0}, {})
    turns = []
    for _ in range(4):
        turns.append(fair.next({"a", "b"}))
        fair.charge(1.0, {turns[-1]: 1.0}, {})
    assert sorted(turns) == ["a", "a", "b", "b"]


def test_what_is_done_together_has_no_more_of_others_than_of_whose_turn_it_is() -> None:
    callers = ["a"] * 5 + ["b"] + ["c"] * 2
    assert [callers[index] for index in mixed(callers, "b")] == ["b", "a", "c"]
    assert [callers[index] for index in mixed(callers, "c")] == ["c", "a", "b", "c", "a"]
    assert mixed(["a"] * 4, "a") == [0, 1, 2, 3]


def run(bench: Bench) -> None:
    while bench.scheduler.busy or bench.background_jobs.busy:
        caller = bench.scheduler.fair.next(bench.scheduler.callers | bench.background_jobs.callers)
        bench.scheduler.step(caller)
        bench.background_jobs.step(caller)


@pytest.mark.parametrize("backlog", [4, 40])
def test_one_callers_plan_takes_no_longer_however_many_another_has_waiting(backlog: int) -> None:
    alone = Bench()
    alone.scheduler.add(1, job(alone), "b")
    run(alone)
    bench = Bench()
    for number in range(backlog):
        bench.scheduler.add(100 + number, job(bench, seed=number), "a")
    for _ in range(6):  # the backlog is under way
        bench.scheduler.step("a")
    began = bench.model.now
    bench.scheduler.add(1, job(bench), "b")
    run(bench)
    assert bench.at[1] - began <= 3 * alone.at[1] + ITERATION_S, "its own work, as much of the other's, and a piece"
    assert all(isinstance(bench.sent[100 + number], Done) for number in range(backlog)), "the others are answered too"


def test_a_score_of_any_length_leaves_another_callers_plan_in_time() -> None:
    import numpy as np

    bench = Bench()
    bench.scheduler.add(9, job(bench), "a")
    run(bench)
    from server.engine.messages import Start
    from tests.support.server.linear import frame

    start = Start((frame(0.2, 0.5),))
    many = RolloutJob("linear", start, np.zeros((2000, 40, 2), np.float32), latent(0.5, 0.5), True)
    for number in range(3):
        bench.background_jobs.add(50 + number, many, "a")
    began = bench.model.now
    bench.scheduler.add(1, job(bench, left_s=6 * ITERATION_S), "b")
    run(bench)
    assert isinstance(bench.sent[1], Done)
    assert bench.at[1] - began <= 6 * ITERATION_S
    assert bench.at[1] < min(bench.at[50 + number] for number in range(3))


# What the front predicts


def admission() -> AdmissionController:
    made = AdmissionController(8)
    made.learn({"linear": Pace(encode_s=0.1, step_s=0.01)})
    return made


ONE_SECOND = SearchSize(samples=100, iterations=10, elites=10, horizon=1)


def test_anothers_backlog_neither_fills_the_queue_nor_makes_a_plan_too_late() -> None:
    busy = admission()
    for _ in range(8):
        busy.admit_plan("linear", ONE_SECOND, 0.0, None, A)
    with pytest.raises(ServiceError) as caught:
        busy.admit_plan("linear", ONE_SECOND, 0.0, None, A)
    assert caught.value.reason is Reason.OVERLOADED
    ticket = busy.admit_plan("linear", ONE_SECOND, 0.0, deadline=6.2, caller=B)  # three iterations, and as many of A's
    assert (ticket.size.samples, ticket.degraded) == (100, False)
    busy.give_back(ticket)
    assert busy.admit_plan("linear", ONE_SECOND, 0.0, deadline=6.0, caller=B).degraded


def test_a_caller_of_twice_the_weight_waits_for_half_as_much() -> None:
    busy = admission()
    for _ in range(8):
        busy.admit_plan("linear", ONE_SECOND, 0.0, None, A)
    heavy = Caller("b", weight=2.0)
    assert not busy.admit_plan("linear", ONE_SECOND, 0.0, deadline=4.7, caller=heavy).degraded


def test_work_that_cannot_be_done_by_its_deadline_is_refused_at_once() -> None:
    with pytest.raises(ServiceError, match="at least 2000 ms") as caught:
        admission().admit(0.0, 1.0, A, work_s=2.0)
    assert caught.value.reason is Reason.DEADLINE
    assert admission().admit(0.0, 3.0, A, work_s=2.0)


def test_the_size_of_the_bench_is_what_these_tests_reckon_with() -> None:
    assert SIZE.iterations == 5
