"""The control stream's robot side, message by message, on a clock that does not run."""

from __future__ import annotations

from typing import Any

import numpy as np
import presage
import pytest
from presage import values
from presage.protocol import codec
from presage.protocol.conversation import ControlSettings, Conversation
from presage.protocol.memory import SequenceCounter
from presage.v1 import planning_pb2

from tests.support.client.protocol_service import tensor

LENGTH = 6


def conversation(**settings: Any) -> Conversation:
    return Conversation(ControlSettings("s", **settings), SequenceCounter(0), random_unit=lambda: 1.0)


def offer(talk: Conversation, now: float = 0.0, **said: Any) -> int:
    told = {"executed": 0, "committed": 0, "seed": None, "plan": None, **said}
    return talk.offer(values.Observation((b"jpeg",)), now=now, **told)


def sent(talk: Conversation, now: float = 0.0) -> planning_pb2.ControlRequest | None:
    message = talk.next_message(now)
    return None if message is None else planning_pb2.ControlRequest.FromString(message)


def sent_observation(talk: Conversation, now: float = 0.0) -> planning_pb2.ControlObservation:
    """The next message, which must be an observation; heartbeats that are due are passed over."""
    while True:
        message = sent(talk, now)
        assert message is not None, "an observation must leave"
        if message.WhichOneof("message") == "observation":
            return message.observation


def plan_bytes(sequence: int, skipped: tuple[int, ...] = ()) -> bytes:
    plan = planning_pb2.Plan(actions=tensor(np.zeros((LENGTH, 2))), observation_sequence=sequence)
    reply = planning_pb2.ControlPlan(plan=plan, skipped_sequences=skipped)
    return planning_pb2.ControlResponse(plan=reply).SerializeToString()


def error_bytes(reason: str, sequence: int) -> bytes:
    error = planning_pb2.ControlError(reason=reason, message="no", observation_sequence=sequence)
    return planning_pb2.ControlResponse(error=error).SerializeToString()


def test_a_stream_starts_with_the_session_and_a_heartbeat() -> None:
    talk = conversation(goal_id="g", budget_ms=80.0, planner=presage.PlannerSettings(samples=9))
    start = planning_pb2.ControlRequest.FromString(talk.begin(5.0)).start
    assert (start.session_id, start.goal_id, start.budget_ms, start.planner.samples) == ("s", "g", 80.0, 9)
    heartbeat = sent(talk, 5.0)
    assert heartbeat is not None
    assert heartbeat.heartbeat.nonce == 1
    assert sent(talk, 5.9) is None
    assert talk.heartbeat_in_s(5.9) == pytest.approx(0.1)
    assert sent(talk, 6.0).heartbeat.nonce == 2  # type: ignore[union-attr]


def test_the_newest_observation_wins_and_the_passed_over_are_told() -> None:
    talk = conversation()
    assert [offer(talk, now=1.0) for _ in range(3)] == [1, 2, 3]
    assert sent_observation(talk).observation.sequence == 3
    talk.hear(plan_bytes(3), 1.5)
    assert talk.latest is not None
    assert talk.latest.skipped_sequences == (1, 2)
    assert talk.latest.round_trip_s == pytest.approx(0.5)
    offer(talk)
    sent_observation(talk)
    talk.hear(plan_bytes(4, skipped=(2,)), 2.0)
    assert talk.latest.skipped_sequences == (2,)


def test_one_observation_is_under_way_at_a_time() -> None:
    talk = conversation()
    offer(talk)
    sent_observation(talk)
    assert offer(talk) == 2
    assert all(message is None or message.WhichOneof("message") == "heartbeat" for message in (sent(talk), sent(talk)))
    talk.hear(plan_bytes(1), 0.0)
    assert sent_observation(talk).observation.sequence == 2
    talk.hear(error_bytes("IMAGE_SIZE", 2), 0.0)
    offer(talk)
    assert sent_observation(talk).observation.sequence == 3


def test_executed_is_counted_in_the_plan_the_server_goes_on_from() -> None:
    talk = conversation()
    offer(talk)
    sent_observation(talk)
    talk.hear(plan_bytes(1), 0.0)
    offer(talk, executed=1, committed=4)  # one action into plan 1
    assert sent_observation(talk).executed == 1
    offer(talk, executed=3, committed=4)  # three actions into plan 1, two after plan 2's observation
    talk.hear(plan_bytes(2), 0.0)
    late = sent_observation(talk)
    assert (late.executed, late.committed, late.plan_sequence) == (2, 4, 2)
    offer(talk, executed=3)  # counted in plan 2, which has arrived
    talk.hear(plan_bytes(3), 0.0)
    assert sent_observation(talk).executed == 1


def test_a_plan_that_was_followed_longer_can_be_named() -> None:
    talk = conversation()
    offer(talk)
    sent_observation(talk)
    talk.hear(plan_bytes(1), 0.0)
    followed = talk.latest
    offer(talk, executed=1, plan=followed)
    sent_observation(talk)
    talk.hear(plan_bytes(2), 0.0)
    offer(talk, executed=5, committed=6, plan=followed)  # plan 2 has arrived, the robot still follows plan 1
    message = sent_observation(talk)
    assert (message.executed, message.committed) == (4, LENGTH - 4)  # no more is left of plan 2 to commit to
    talk.hear(plan_bytes(3), 0.0)
    offer(talk, executed=5, plan=followed)
    assert sent_observation(talk).executed == 0  # 5 - 1 - 4


def test_a_count_that_cannot_be_translated_names_the_plan_it_is_from() -> None:
    talk = conversation()
    offer(talk)
    assert sent_observation(talk).plan_sequence == 0
    talk.hear(plan_bytes(1), 0.0)
    followed = talk.latest
    talk.hear(plan_bytes(7), 0.0)  # from an observation of another loop: nobody said how far into plan 1 that was
    offer(talk, executed=3, committed=2, plan=followed)
    message = sent_observation(talk)
    assert (message.executed, message.committed, message.plan_sequence) == (3, 2, 1)


def test_a_swapped_goal_leaves_before_the_next_observation_and_survives_a_new_stream() -> None:
    talk = conversation(goal_id="g")
    talk.begin(0.0)
    offer(talk)
    talk.swap_goal("h")
    first = sent(talk)
    assert first is not None
    assert first.goal.goal_id == "h"
    assert sent_observation(talk).observation.sequence == 1
    assert planning_pb2.ControlRequest.FromString(talk.begin(1.0)).start.goal_id == "h"
    assert sent(talk, 1.0).WhichOneof("message") == "heartbeat"  # type: ignore[union-attr]


def test_an_outcome_is_the_observations_own() -> None:
    talk = conversation()
    first = offer(talk)
    sent_observation(talk)
    assert talk.outcome(first) is None
    talk.hear(error_bytes("IMAGE_SIZE", first), 0.0)
    with pytest.raises(presage.InvalidRequest, match="IMAGE_SIZE"):
        talk.outcome(first)
    second = offer(talk)
    assert talk.outcome(second) is None
    sent_observation(talk)
    talk.hear(plan_bytes(second), 0.0)
    assert talk.outcome(first) is talk.outcome(second) is talk.latest
    assert [(failed.sequence, failed.error.reason) for failed in talk.take_errors()] == [(first, "IMAGE_SIZE")]
    assert talk.take_errors() == ()


def test_a_lost_stream_fails_what_was_under_way_and_keeps_what_waits() -> None:
    talk = conversation()
    talk.begin(0.0)
    under_way = offer(talk)
    sent_observation(talk)
    waiting = offer(talk)
    talk.hear(b"", 0.5)
    assert talk.connected
    assert talk.end(presage.Unavailable("gone", reason="UNREACHABLE")) == pytest.approx(0.1)
    assert not talk.connected
    assert talk.trouble is not None
    with pytest.raises(presage.Unavailable, match="gone"):
        talk.outcome(under_way)
    assert talk.outcome(waiting) is None
    talk.begin(1.0)
    assert sent_observation(talk).observation.sequence == waiting


def test_new_streams_are_dialled_ever_more_rarely_until_one_stands() -> None:
    talk = conversation()
    gone = presage.Unavailable("gone")
    pauses = [talk.end(gone) for _ in range(6)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0])
    assert talk.end(presage.Overloaded("full", retry_after_s=5.0)) == pytest.approx(7.0)
    talk.hear(b"", 0.0)
    assert talk.end(None) == pytest.approx(0.1)
    assert talk.trouble is not None
    assert talk.trouble.reason == "CONNECTION_LOST"


@pytest.mark.parametrize("error", [presage.NotFound("s"), presage.Unauthenticated("k"), presage.InvalidRequest("r")])
def test_what_a_new_stream_would_not_mend_ends_the_loop(error: presage.PresageError) -> None:
    talk = conversation()
    assert talk.end(error) is None
    with pytest.raises(type(error)):
        offer(talk)
    with pytest.raises(type(error)):
        talk.outcome(1)


def test_a_forgotten_session_ends_the_loop() -> None:
    talk = conversation()
    talk.hear(error_bytes("UNKNOWN_GOAL", 0), 0.0)
    assert talk.fatal is None
    talk.hear(error_bytes("UNKNOWN_SESSION", 0), 0.0)
    assert talk.end(None) is None
    with pytest.raises(presage.NotFound, match="UNKNOWN_SESSION"):
        offer(talk)


def test_silence_is_measured_from_the_last_word() -> None:
    talk = conversation(heartbeat_s=0.5, stall_s=2.0)
    talk.begin(10.0)
    assert talk.silence_left_s(11.0) == pytest.approx(1.0)
    talk.hear(b"", 11.0)
    assert talk.silence_left_s(12.5) == pytest.approx(0.5)
    assert talk.silence_left_s(20.0) == 0.0


def test_settings_check_themselves() -> None:
    for wrong in ({"heartbeat_s": 0.0}, {"stall_s": 1.0}, {"stall_s": float("inf")}, {"budget_ms": -1.0}):
        with pytest.raises(presage.InvalidRequest, match=next(iter(wrong))):
            conversation(**wrong)


def test_an_observation_that_breaks_a_rule_claims_no_sequence() -> None:
    talk = conversation()
    with pytest.raises(presage.InvalidRequest, match="committed"):
        offer(talk, committed=-1)
    with pytest.raises(presage.InvalidRequest, match="INVALID_IMAGE"):
        talk.offer(values.Observation((b"",)), 0, 0, None, None, 0.0)
    assert offer(talk) == 1


def test_a_robots_own_sequences_must_rise() -> None:
    talk = conversation()
    assert talk.offer(values.Observation((b"jpeg",), sequence=7), 0, 0, None, None, 0.0) == 7
    assert offer(talk) == 8
    with pytest.raises(presage.InvalidRequest, match=r"above 8, the last one") as caught:
        talk.offer(values.Observation((b"jpeg",), sequence=8), 0, 0, None, None, 0.0)
    assert caught.value.reason == "STALE_OBSERVATION"


def test_garbage_from_the_server_is_a_server_error() -> None:
    talk = conversation()
    with pytest.raises(presage.ServerError):
        talk.hear(b"\xff", 0.0)
    bad = planning_pb2.Plan(actions=codec.float_tensor("actions", [[np.nan]], ("time", "action")))
    with pytest.raises(presage.ServerError):
        talk.hear(planning_pb2.ControlResponse(plan=planning_pb2.ControlPlan(plan=bad)).SerializeToString(), 0.0)
    assert talk.latest is None
