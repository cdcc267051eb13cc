"""When a call is tried again, on a clock that does not run."""

from __future__ import annotations

import presage
import pytest
from presage.protocol.retry import ATTEMPTS, Attempts, Readiness


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(clock: Clock, timeout_s: float = 10.0, repeatable: bool = True, jitter: float = 0.5) -> Attempts:
    return Attempts(timeout_s, repeatable, clock, lambda: jitter)


def test_pauses_grow_within_their_jitter() -> None:
    for jitter in (0.0, 0.5, 0.999):
        tries = attempts(Clock(), jitter=jitter)
        pauses = [tries.pause_s(presage.Unavailable("gone")) for _ in range(ATTEMPTS)]
        assert pauses == [pytest.approx(jitter * longest) for longest in (0.1, 0.2, 0.4)] + [None]


def test_the_servers_wish_comes_on_top() -> None:
    pause = attempts(Clock()).pause_s(presage.Overloaded("full", retry_after_s=2.0))
    assert pause == pytest.approx(2.05)


@pytest.mark.parametrize(
    ("error", "repeatable"),
    [
        (presage.Overloaded("full"), True),
        (presage.DeadlineExceeded("late", retry_after_s=0.1), True),
        (presage.ServerError("broken"), True),
        (presage.InvalidRequest("wrong"), True),
        (presage.Unavailable("gone", retry_after_s=0.1), False),
        (presage.Overloaded("full", retry_after_s=0.1), False),
    ],
)
def test_the_rest_is_final(error: presage.PresageError, repeatable: bool) -> None:
    assert attempts(Clock(), repeatable=repeatable).pause_s(error) is None


def test_all_tries_share_one_deadline() -> None:
    clock = Clock()
    tries = attempts(clock, timeout_s=1.0)
    assert tries.remaining_s() == pytest.approx(1.0)
    clock.now += 0.9
    assert tries.remaining_s() == pytest.approx(0.1)
    assert tries.pause_s(presage.Unavailable("gone", retry_after_s=0.2)) is None
    clock.now += 0.2
    with pytest.raises(presage.DeadlineExceeded):
        tries.remaining_s()


def asked(readiness: Readiness, clock: Clock, answer: presage.PresageError) -> float | None:
    pause = readiness.pause_s(answer)
    clock.now += pause or 0.0
    return pause


def test_readiness_is_asked_for_ever_more_rarely_until_the_time_is_up() -> None:
    clock = Clock()
    readiness = Readiness("host:1", 2.0, clock)
    pauses = [asked(readiness, clock, presage.Unavailable("refused")) for _ in range(5)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])
    assert readiness.ask_within_s(10.0) == pytest.approx(0.3)
    with pytest.raises(presage.Unavailable, match="host:1 was not ready within 2 s: refused"):
        asked(readiness, clock, presage.Unavailable("refused"))
    assert readiness.pause_s(presage.Health("serving")) is None


def test_waiting_does_not_help_against_a_refusal() -> None:
    with pytest.raises(presage.Unauthenticated):
        Readiness("host:1", 2.0, Clock()).pause_s(presage.Unauthenticated("no key"))
