"""Heartbeats: sent while work takes about what it should, withheld once a step of it is far overdue."""

from __future__ import annotations

import threading

import pytest

from server.engine.messages import Heartbeat
from server.worker.heartbeat import OVERDUE_FACTOR, OVERDUE_LEAST_S, Watchdog, heartbeat_thread


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("predicted_s", "bound_s"),
    [(0.001, OVERDUE_LEAST_S), (10.0, 10.0 * OVERDUE_FACTOR)],
    ids=["short work on a busy machine", "long work"],
)
def test_work_is_overdue_after_many_times_what_was_predicted(predicted_s: float, bound_s: float) -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    with watchdog.work(predicted_s):
        clock.now += bound_s - 0.01
        assert watchdog.is_well
        clock.now += 0.02
        assert not watchdog.is_well
    assert watchdog.is_well


def test_work_of_a_kind_not_seen_before_may_take_any_time() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    with watchdog.work(None):
        clock.now += 1e6
        assert watchdog.is_well


def test_work_that_fails_leaves_nothing_overdue() -> None:
    clock = Clock()
    watchdog = Watchdog(clock)
    with pytest.raises(ValueError, match="no"), watchdog.work(0.1):
        raise ValueError("no")
    clock.now += 1e6
    assert watchdog.is_well


def test_beats_stop_while_work_is_overdue_and_go_on_after_it() -> None:
    clock = Clock()
    watchdog, beats = Watchdog(clock), threading.Semaphore(0)
    sent: list[Heartbeat] = []

    def send(beat: Heartbeat) -> None:
        sent.append(beat)
        beats.release()

    with heartbeat_thread(watchdog, send, every_s=0.01):
        assert beats.acquire(timeout=30)
        with watchdog.work(0.1):
            clock.now += 1e6
            threading.Event().wait(0.2)  # one may have been under way
            count = len(sent)
            threading.Event().wait(0.2)
            assert len(sent) == count
        while beats.acquire(blocking=False):
            pass
        assert beats.acquire(timeout=30)


def test_a_front_that_has_gone_ends_the_beats() -> None:
    beats: list[Heartbeat] = []
    threads: list[threading.Thread] = []

    def send(beat: Heartbeat) -> None:
        beats.append(beat)
        threads.append(threading.current_thread())
        raise BrokenPipeError

    with heartbeat_thread(Watchdog(), send, every_s=0.01):
        while not threads:
            threading.Event().wait(0.01)
        threads[0].join(30)
        assert not threads[0].is_alive()
    assert len(beats) == 1
