"""What a caller sees when a call fails, over real gRPC: what is tried again and what is not, absence, closing."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import presage
import pytest

from tests.support.client.blocking import Connect
from tests.support.client.protocol_behavior import Refusal
from tests.support.client.protocol_server import Running, running
from tests.support.client.protocol_service import expected_actions

ENGINE_LOST = Refusal("UNAVAILABLE", "ENGINE_LOST", "the engine stopped and is being restarted")


def test_a_wrong_image_names_field_rule_and_value(client: Any, image: np.ndarray) -> None:
    with client.session(goal=client.goal(image)) as session:
        with pytest.raises(presage.InvalidRequest, match="must be 8x8 pixels, got 4x4") as caught:
            session.plan(image[:4, :4])
        assert (caught.value.reason, caught.value.field) == ("IMAGE_SIZE", "observation.images[0]")


def test_a_plan_is_asked_for_again_after_a_lost_engine(client: Any, server: Running, image: np.ndarray) -> None:
    with client.session(goal=client.goal(image)) as session:
        server.behavior.refusals += [ENGINE_LOST, ENGINE_LOST]
        session.plan(image)
    asked = [each for each in server.behavior.requests if "PlanRequest" in type(each).__name__]
    assert len(asked) == 3
    assert len({each.request_id for each in asked}) == 1
    assert server.behavior.plans_made == 1


def test_a_plan_whose_reply_was_lost_is_made_once(client: Any, server: Running, image: np.ndarray) -> None:
    with client.session(goal=client.goal(image)) as session:
        server.behavior.refuse_after_work = True
        server.behavior.refusals.append(ENGINE_LOST)
        plan = session.plan(image, seed=3)
        assert session.status().plans == server.behavior.plans_made == 1
    np.testing.assert_array_equal(plan.actions, expected_actions(3, 1))


def test_retries_end(client: Any, server: Running) -> None:
    server.behavior.refusals += [ENGINE_LOST] * 9
    with pytest.raises(presage.Unavailable, match="ENGINE_LOST"):
        client.models()
    assert len(server.behavior.calls) == 4


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refusal("DEADLINE_EXCEEDED", "DEADLINE"), presage.DeadlineExceeded),
        (Refusal("RESOURCE_EXHAUSTED", "OVERLOADED"), presage.Overloaded),
        (Refusal("INTERNAL", "PLAN_FAILED"), presage.ServerError),
        (Refusal("UNAUTHENTICATED", "UNAUTHENTICATED"), presage.Unauthenticated),
        (Refusal("UNKNOWN", "", "a proxy's own words"), presage.ServerError),
        (Refusal("CANCELLED", "CANCELLED"), presage.Cancelled),
    ],
)
def test_what_does_not_get_better_is_not_repeated(
    client: Any, server: Running, refusal: Refusal, error: type[presage.PresageError]
) -> None:
    server.behavior.refusals.append(refusal)
    with pytest.raises(error) as caught:
        client.models()
    assert type(caught.value) is error
    assert len(server.behavior.calls) == 1


def test_a_full_server_is_asked_again_when_it_said_to(client: Any, server: Running) -> None:
    server.behavior.refusals.append(Refusal("RESOURCE_EXHAUSTED", "OVERLOADED", retry_after_s=0.2))
    started = time.monotonic()
    client.models()
    assert time.monotonic() - started >= 0.2
    assert len(server.behavior.calls) == 2


def test_nobody_waits_past_the_deadline_for_a_full_server(client: Any, server: Running) -> None:
    server.behavior.refusals.append(Refusal("RESOURCE_EXHAUSTED", "OVERLOADED", retry_after_s=60.0))
    with pytest.raises(presage.Overloaded) as caught:
        client.models()
    assert caught.value.retry_after_s == 60.0
    assert len(server.behavior.calls) == 1


@pytest.mark.parametrize("call", ["session", "delete_goal"])
def test_what_would_change_something_twice_is_sent_once(
    client: Any, server: Running, image: np.ndarray, call: str
) -> None:
    goal = client.goal(image)
    server.behavior.refusals.append(ENGINE_LOST)
    with pytest.raises(presage.Unavailable):
        client.session(goal=goal) if call == "session" else client.delete_goal(goal)
    assert len(server.behavior.calls) == 2


def test_a_stalled_server_ends_at_the_deadline_and_once(client: Any, server: Running, image: np.ndarray) -> None:
    goal = client.goal(image)
    server.behavior.planning.clear()
    with pytest.raises(presage.DeadlineExceeded) as caught:
        client.plan(image, goal, timeout_s=0.2)
    assert caught.value.reason == "DEADLINE"
    assert server.behavior.calls.count("Planning.Plan") == 1


def test_a_timeout_must_be_a_time(client: Any) -> None:
    for timeout_s in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(presage.InvalidRequest, match="timeout_s must be above 0"):
            client.models(timeout_s=timeout_s)


def test_an_absent_server_is_unreachable_by_name(connect: Connect) -> None:
    with connect("127.0.0.1:9", timeout_s=1.0) as client:
        with pytest.raises(presage.Unavailable, match=r"cannot reach 127\.0\.0\.1:9") as caught:
            client.models()
        assert caught.value.reason == "UNREACHABLE"
        with pytest.raises(presage.Unavailable, match=r"was not ready within 0\.3 s") as caught:
            client.wait_ready(0.3)
        assert caught.value.reason == "NOT_READY"


def test_health_and_readiness_follow_the_server(client: Any, server: Running) -> None:
    assert client.health() == presage.Health("serving")
    server.behavior.serving = False
    assert client.health() == presage.Health("not_serving")
    with pytest.raises(presage.Unavailable, match="it says not_serving"):
        client.wait_ready(0.2)
    timer = threading.Timer(0.2, setattr, (server.behavior, "serving", True))
    timer.start()
    client.wait_ready(10.0)
    timer.join()
    assert client.health().ready


def test_a_restarted_server_is_found_again(connect: Connect) -> None:
    with running() as first:
        port = int(first.address.rpartition(":")[2])
        client = connect(first.address, timeout_s=2.0)
        assert client.models()
    with client:
        with pytest.raises(presage.Unavailable):
            client.models(timeout_s=0.3)
        with running(port):
            client.wait_ready(10.0)
            assert client.models()


def test_a_closed_client_says_so(client: Any) -> None:
    client.models()
    client.close()
    with pytest.raises(presage.Cancelled, match="CLOSED"):
        client.models()
    client.close()


def test_closing_ends_a_call_in_progress(client: Any, server: Running, image: np.ndarray) -> None:
    goal = client.goal(image)
    server.behavior.planning.clear()
    caught = []

    def plan() -> None:
        try:
            client.plan(image, goal)
        except presage.PresageError as error:
            caught.append(error)

    thread = threading.Thread(target=plan)
    thread.start()
    while "Planning.Plan" not in server.behavior.calls:
        time.sleep(0.01)
    client.close()
    thread.join(5.0)
    assert [type(error) for error in caught] == [presage.Cancelled]


def test_an_error_inside_a_session_outlives_its_closing(client: Any, server: Running, image: np.ndarray) -> None:
    goal = client.goal(image)
    with pytest.raises(ZeroDivisionError), client.session(goal=goal):
        break_the_close(server)
    with pytest.raises(presage.ServerError), client.session(goal=goal):
        server.behavior.refusals.append(Refusal("INTERNAL", "INTERNAL"))


def break_the_close(server: Running) -> None:
    server.behavior.refusals.append(Refusal("INTERNAL", "INTERNAL"))
    raise ZeroDivisionError
