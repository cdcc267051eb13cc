"""AdmissionController: who is taken on, at what size, and who is refused, by predictions alone."""

from __future__ import annotations

import pytest

from server.engine.admission import FEWEST_SAMPLES, TRUST_AFTER, AdmissionController, ReplyMargin, shrunk
from server.engine.messages import Pace, SearchSize
from server.errors import Reason, ServiceError

SIZE = SearchSize(samples=100, iterations=10, elites=10, horizon=1)
PACE = Pace(encode_s=0.1, step_s=0.01)  # an iteration of SIZE takes a second


def admission(limit: int = 8, pace: Pace = PACE) -> AdmissionController:
    made = AdmissionController(limit)
    made.learn({"linear": pace})
    return made


def test_without_a_deadline_a_plan_is_taken_as_it_is() -> None:
    ticket = admission().admit_plan("linear", SIZE, now=0.0, deadline=None)
    assert (ticket.size, ticket.degraded) == (SIZE, False)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    busy = admission(limit=2)
    busy.learn_duration(3.0)
    for _ in range(2):
        busy.admit(now=0.0, deadline=None)
    for refused in (lambda: busy.admit(0.0, None), lambda: busy.admit_plan("linear", SIZE, 0.0, None)):
        with pytest.raises(ServiceError) as caught:
            refused()
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.retry_after_s == pytest.approx(1.5)


def test_a_call_given_back_makes_room() -> None:
    busy = admission(limit=1)
    ticket = busy.admit_plan("linear", SIZE, 0.0, None)
    busy.give_back(ticket)
    assert (busy.in_hand, busy.pass_s) == (0, 0.0)
    busy.admit(0.0, None)


def test_searches_get_smaller_as_the_queue_fills() -> None:
    busy = admission(limit=8)
    tickets = [busy.admit_plan("linear", SIZE, 0.0, None) for _ in range(8)]
    assert [ticket.size.samples for ticket in tickets] == [100] * 4 + [50] * 2 + [25] * 2
    assert [ticket.degraded for ticket in tickets] == [False] * 4 + [True] * 4


def test_a_search_short_of_time_gets_smaller_before_it_is_refused() -> None:
    fresh = admission()
    seconds_left = {3.2: 100, 3.0: 50, 1.7: 50, 1.5: 25, 0.4: 25}
    for left, samples in seconds_left.items():
        ticket = fresh.admit_plan("linear", SIZE, now=5.0, deadline=5.0 + left)
        assert (ticket.size.samples, ticket.degraded) == (samples, samples < 100), left
        fresh.give_back(ticket)
    with pytest.raises(ServiceError) as caught:
        fresh.admit_plan("linear", SIZE, now=5.0, deadline=5.3)
    assert caught.value.reason is Reason.DEADLINE
    assert "350 ms" in caught.value.message


def test_where_others_are_the_reason_a_deadline_cannot_be_kept_the_answer_is_overloaded() -> None:
    busy = admission()
    for _ in range(2):
        busy.admit_plan("linear", SIZE, 0.0, None)
    with pytest.raises(ServiceError) as caught:
        busy.admit_plan("linear", SIZE, 0.0, deadline=1.0)
    assert caught.value.reason is Reason.OVERLOADED
    assert caught.value.retry_after_s is not None


def test_an_engine_not_measured_yet_is_trusted() -> None:
    ticket = AdmissionController(8).admit_plan("linear", SIZE, now=0.0, deadline=0.001)
    assert not ticket.degraded


def test_predictions_that_may_be_out_of_date_are_tried_now_and_then() -> None:
    fresh = admission()
    for _ in range(TRUST_AFTER):
        with pytest.raises(ServiceError):
            fresh.admit_plan("linear", SIZE, now=0.0, deadline=0.01)
        fresh.learn_late("linear")
    trusted = fresh.admit_plan("linear", SIZE, now=0.0, deadline=0.01)
    assert (trusted.on_trust, trusted.size.samples) == (True, 25)
    fresh.give_back(trusted)
    with pytest.raises(ServiceError):  # one at a time
        fresh.admit_plan("linear", SIZE, now=0.0, deadline=0.01)
    fresh.learn({"linear": Pace(encode_s=0.0001, step_s=0.00001)})
    assert not fresh.admit_plan("linear", SIZE, now=0.0, deadline=0.01).on_trust


def test_no_call_is_taken_past_its_deadline() -> None:
    with pytest.raises(ServiceError) as caught:
        admission().admit(now=2.0, deadline=1.0)
    assert caught.value.reason is Reason.DEADLINE


@pytest.mark.parametrize("samples", [3, FEWEST_SAMPLES, 20, 100, 801])
@pytest.mark.parametrize("by", [1, 2, 4])
def test_a_smaller_search_is_still_a_search(samples: int, by: int) -> None:
    size = SearchSize(samples, iterations=3, elites=max(2, samples // 10), horizon=2)
    smaller = shrunk(size, by)
    assert 2 <= smaller.elites <= smaller.samples <= samples
    assert smaller.samples >= min(samples, FEWEST_SAMPLES, max(samples // by, 1))
    assert (smaller.horizon, smaller.iterations) == (2, 3)


def test_the_margin_is_twice_the_slowest_way_back_of_late() -> None:
    margin = ReplyMargin(least_s=0.005, half_life_s=5.0)
    far = 1000.0
    assert margin.seconds(100.0, far) == 0.005
    margin.observe(0.01, now=100.0)
    margin.observe(0.001, now=100.0)
    assert margin.seconds(100.0, far) == pytest.approx(0.025)
    assert margin.seconds(105.0, far) == pytest.approx(0.015)  # by itself: who refuses everyone measures nothing
    margin.observe(0.02, now=105.0)
    assert margin.seconds(105.0, far) == pytest.approx(0.045)
    assert margin.seconds(105.0, 105.03) == pytest.approx(0.015)  # a third of what is left, beside the least
