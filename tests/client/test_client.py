"""Every question of both clients over real gRPC, and what a caller sees when one fails."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import presage
import pytest

from tests.client.blocking import Connect
from tests.client.protocol_server import SIZE, Refusal, Running, expected_actions, running

ENGINE_LOST = Refusal("UNAVAILABLE", "ENGINE_LOST", "the engine stopped and is being restarted")


def test_a_model_says_what_a_robot_must_know(client: Any) -> None:
    (model,) = client.models()
    assert model == client.model() == client.model("echo")
    assert (model.name, model.family, model.latent_shape, model.server_version) == ("echo", "compact", (4,), "0.0-test")
    assert model.image == presage.ImageSpec(SIZE, SIZE, "exact", 1)
    assert model.action == presage.ActionSpec(("a", "b"), ("rad/s", "rad/s"), (-1.0, -1.0), (1.0, 1.0), 50.0, 2)
    assert model.planner == presage.PlannerSettings(samples=16, iterations=3, elites=4, horizon=3)
    assert model.execute == 2
    assert model.limits.clip_bytes == 1 << 26


def test_an_unknown_name_is_not_found_and_tells_field_and_request(client: Any) -> None:
    with pytest.raises(presage.NotFound) as caught:
        client.model("nosuch")
    error = caught.value
    assert (error.reason, error.field, error.request_id) == ("UNKNOWN_MODEL", "model", "served-1")
    assert "got nosuch" in error.message
    assert str(error) == f"{error.message} [UNKNOWN_MODEL, request served-1]"


def test_the_same_goal_is_found_again(client: Any, image: np.ndarray) -> None:
    first, second = client.goal(image), client.goal(image)
    assert (first.cached, second.cached) == (False, True)
    assert first.goal_id == second.goal_id == client.get_goal(first).goal_id
    client.delete_goal(first)
    with pytest.raises(presage.NotFound, match="UNKNOWN_GOAL"):
        client.get_goal(first.goal_id)


def test_a_goal_can_be_a_latent_or_a_file(client: Any, server: Running) -> None:
    client.goal(latent=np.arange(4.0))
    client.goal(b"\xff\xd8\xff a JPEG")
    latent, encoded = server.behaviour.requests
    assert np.frombuffer(latent.latent.data, "<f4").tolist() == [0, 1, 2, 3]
    assert encoded.image.encoded == b"\xff\xd8\xff a JPEG"


@pytest.mark.parametrize("given", [{}, {"image": b"x", "latent": [1.0]}])
def test_a_goal_is_exactly_one_thing(client: Any, server: Running, given: Any) -> None:
    with pytest.raises(presage.InvalidRequest, match="exactly one of image and latent"):
        client.goal(**given)
    assert not server.behaviour.calls


def test_a_session_plans_and_closes(client: Any, server: Running, image: np.ndarray) -> None:
    goal = client.goal(image)
    with client.session(goal=goal, ttl_s=30, seed=5) as session:
        plan = session.plan(image, seed=7, budget_ms=200, executed=3)
        assert plan.actions.dtype == np.float32
        np.testing.assert_array_equal(plan.actions, expected_actions(7, 1))
        assert not plan.actions.flags.writeable
        assert (plan.cost, plan.step_costs, plan.goal_distance) == (6.0, (3.0, 2.0, 1.0), 4.0)
        assert (plan.iteration_costs, plan.elite_spread, plan.iterations_done) == ((9.0, 6.0), (0.5, 0.25), 2)
        assert (plan.stop_reason, plan.seed, plan.degraded, plan.warm_started) == ("budget", 7, False, True)
        assert (plan.observation_sequence, plan.capture_time_ns, plan.epoch) == (1, None, 0)
        assert plan.timings == presage.Timings(1, 2, 3, 4, 10)
        assert (plan.provenance.model, plan.provenance.goal_id) == ("echo", goal.goal_id)
        assert plan.warnings == ("made up",)
        status = session.status()
        assert (status.plans, status.last_sequence, status.ttl_s) == (1, 1, 30)
        assert session.reset().epoch == 1
    request = next(each for each in server.behaviour.requests if "PlanRequest" in type(each).__name__)
    assert (request.budget_ms, request.executed, request.session_id) == (200, 3, session.session_id)
    assert not server.service.sessions


def test_a_capture_time_comes_back_untouched(client: Any, image: np.ndarray) -> None:
    stamp = 1_700_000_000_123_456_789
    seen = presage.Observation((image,), proprioception=[0.5, -0.5], capture_time_ns=stamp, sequence=41)
    with client.session(goal=client.goal(image)) as session:
        plan = session.plan(seen)
    assert (plan.capture_time_ns, plan.observation_sequence) == (stamp, 41)


def test_a_plan_needs_no_session(client: Any, server: Running, image: np.ndarray) -> None:
    settings = presage.PlannerSettings(samples=8, horizon=2)
    client.plan(image, client.goal(image), model="echo", seed=1, settings=settings)
    request = server.behaviour.requests[-1]
    assert (request.session_id, request.model) == ("", "echo")
    assert (request.planner.samples, request.planner.horizon) == (8, 2)
    assert not request.planner.HasField("iterations")


def test_a_session_can_be_taken_up_again(client: Any, image: np.ndarray) -> None:
    session = client.session(goal=client.goal(image))
    session.plan(image)
    again = client.resume_session(session.session_id)
    assert again.status().plans == 1
    again.close()
    session.close()  # closed already: no error
    with pytest.raises(presage.NotFound, match="UNKNOWN_SESSION"):
        client.resume_session(session.session_id)


def test_distances_and_surprises_are_told_step_by_step(client: Any, image: np.ndarray) -> None:
    goal = client.goal(image)
    with client.session(goal=goal) as session:
        for distances in (client.distance([image, image], goal), session.distance([image, image])):
            assert distances == pytest.approx([image.mean()] * 2)
        told = session.surprise([image, image, presage.Observation((image,))], np.zeros((4, 2)))
        assert told == presage.Surprise((0.5, 0.5), (2.0, 2.0), 9)
    loose = client.surprise([image, image], np.zeros((2, 2)))
    assert (loose.errors, loose.scores) == ((0.5,), ())
    for wrong in (b"jpeg", presage.Observation((image,))):
        with pytest.raises(presage.InvalidRequest, match="seen"):
            client.surprise(wrong, np.zeros((2, 2)))


def test_rollouts_and_scores_carry_their_arrays(client: Any, image: np.ndarray) -> None:
    goal = client.goal(image)
    rollout = client.rollout(image, np.zeros((4, 2)), goal=goal)
    assert rollout.latents.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rollout.goal_distances == (1.0, 1.0)
    candidates = np.array([[[1.0, -1.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.25]]])
    with client.session(goal=goal) as session:
        for score in (client.score(image, candidates, goal), session.score(image, candidates)):
            assert score.costs.tolist() == [2.5, 0.25]
            assert score.step_costs.tolist() == [[2.0, 0.5], [0.0, 0.25]]
        assert session.rollout(image, np.zeros((2, 2))).latents.shape == (1, 4)


def test_images_are_embedded_with_their_distances(client: Any, image: np.ndarray) -> None:
    reply = client.embed_images([image, image // 2], goal=client.goal(image))
    assert reply.embedding.shape == (2, 4)
    assert reply.embedding[:, 0] == pytest.approx([image.mean(), (image // 2).mean()])
    assert (reply.kind, reply.model, len(reply.goal_distances)) == ("per_frame", "echo", 2)


def test_a_clip_goes_up_in_chunks_with_its_digest(client: Any, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(np.random.RandomState(0).bytes((5 << 19) + 17))
    told = []
    reply = client.embed_clip(path, "pooled", frames=4, progress=lambda sent, total: told.append((sent, total)))
    size = path.stat().st_size
    assert server.behaviour.chunks == [1 << 20, 1 << 20, (1 << 19) + 17]
    assert told == [(0, size), (1 << 20, size), (2 << 20, size), (size, size)]
    assert reply.embedding.tolist() == [size] * 4
    assert (reply.frame_times_s, reply.step_distances, reply.goal_distances) == ((0.0, 0.5), (1.5,), ())
    assert server.behaviour.requests[-1].sampling.frames == 4


def test_a_refused_clip_says_why_before_it_is_all_sent(client: Any, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(8 << 20))
    server.behaviour.refusals.append(Refusal("RESOURCE_EXHAUSTED", "TOO_LARGE", "header.total_bytes must be at most 9"))
    with pytest.raises(presage.InvalidRequest, match="at most 9") as caught:
        client.embed_clip(path)
    assert caught.value.reason == "TOO_LARGE"


def test_closing_ends_an_upload(client: Any, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(64 << 20))
    started, caught = threading.Event(), []

    def upload() -> None:
        try:
            client.embed_clip(path, progress=lambda sent, total: started.set() or time.sleep(0.02))
        except presage.PresageError as error:
            caught.append(error)

    thread = threading.Thread(target=upload)
    thread.start()
    assert started.wait(20.0)
    client.close()
    thread.join(20.0)
    assert [type(error) for error in caught] == [presage.Cancelled]


def test_what_fails_while_a_clip_is_read_reaches_the_caller(client: Any, tmp_path: Path) -> None:
    def broken(sent: int, total: int) -> None:
        raise KeyError("the progress bar fell over")

    path = tmp_path / "clip.mp4"
    path.write_bytes(b"12345")
    with pytest.raises(KeyError, match="fell over"):
        client.embed_clip(path, progress=broken)
    with pytest.raises(FileNotFoundError):
        client.embed_clip(tmp_path / "missing.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(presage.InvalidRequest, match="INVALID_CLIP"):
        client.embed_clip(tmp_path / "empty.mp4")
    for wrong in ({"fps": 0.0}, {"frames": 0}, {"fps": 1.0, "frames": 1}, {"kind": "mean"}):
        with pytest.raises(presage.InvalidRequest):
            client.embed_clip(path, **wrong)


def test_a_clip_that_changes_under_way_is_refused(client: Any, server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(3 << 20))
    with pytest.raises(presage.InvalidRequest, match="CLIP_MISMATCH"):
        client.embed_clip(path, progress=lambda sent, total: path.write_bytes(b"1" * (2 << 20)))


def test_a_wrong_image_names_field_rule_and_value(client: Any, image: np.ndarray) -> None:
    with client.session(goal=client.goal(image)) as session:
        with pytest.raises(presage.InvalidRequest, match="must be 8x8 pixels, got 4x4") as caught:
            session.plan(image[:4, :4])
        assert (caught.value.reason, caught.value.field) == ("IMAGE_SIZE", "observation.images[0]")


def test_a_plan_is_asked_for_again_after_a_lost_engine(client: Any, server: Running, image: np.ndarray) -> None:
    with client.session(goal=client.goal(image)) as session:
        server.behaviour.refusals += [ENGINE_LOST, ENGINE_LOST]
        session.plan(image)
    asked = [each for each in server.behaviour.requests if "PlanRequest" in type(each).__name__]
    assert len(asked) == 3
    assert len({each.request_id for each in asked}) == 1
    assert server.behaviour.plans_made == 1


def test_a_plan_whose_reply_was_lost_is_made_once(client: Any, server: Running, image: np.ndarray) -> None:
    with client.session(goal=client.goal(image)) as session:
        server.behaviour.refuse_after_work = True
        server.behaviour.refusals.append(ENGINE_LOST)
        plan = session.plan(image, seed=3)
        assert session.status().plans == server.behaviour.plans_made == 1
    np.testing.assert_array_equal(plan.actions, expected_actions(3, 1))


def test_retries_end(client: Any, server: Running) -> None:
    server.behaviour.refusals += [ENGINE_LOST] * 9
    with pytest.raises(presage.Unavailable, match="ENGINE_LOST"):
        client.models()
    assert len(server.behaviour.calls) == 4


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
    server.behaviour.refusals.append(refusal)
    with pytest.raises(error) as caught:
        client.models()
    assert type(caught.value) is error
    assert len(server.behaviour.calls) == 1


def test_a_full_server_is_asked_again_when_it_said_to(client: Any, server: Running) -> None:
    server.behaviour.refusals.append(Refusal("RESOURCE_EXHAUSTED", "OVERLOADED", retry_after_s=0.2))
    started = time.monotonic()
    client.models()
    assert time.monotonic() - started >= 0.2
    assert len(server.behaviour.calls) == 2


def test_nobody_waits_past_the_deadline_for_a_full_server(client: Any, server: Running) -> None:
    server.behaviour.refusals.append(Refusal("RESOURCE_EXHAUSTED", "OVERLOADED", retry_after_s=60.0))
    with pytest.raises(presage.Overloaded) as caught:
        client.models()
    assert caught.value.retry_after_s == 60.0
    assert len(server.behaviour.calls) == 1


@pytest.mark.parametrize("call", ["session", "delete_goal"])
def test_what_would_change_something_twice_is_sent_once(
    client: Any, server: Running, image: np.ndarray, call: str
) -> None:
    goal = client.goal(image)
    server.behaviour.refusals.append(ENGINE_LOST)
    with pytest.raises(presage.Unavailable):
        client.session(goal=goal) if call == "session" else client.delete_goal(goal)
    assert len(server.behaviour.calls) == 2


def test_a_stalled_server_ends_at_the_deadline_and_once(client: Any, server: Running, image: np.ndarray) -> None:
    goal = client.goal(image)
    server.behaviour.planning.clear()
    with pytest.raises(presage.DeadlineExceeded) as caught:
        client.plan(image, goal, timeout_s=0.2)
    assert caught.value.reason == "DEADLINE"
    assert server.behaviour.calls.count("Planning.Plan") == 1


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
    server.behaviour.serving = False
    assert client.health() == presage.Health("not_serving")
    with pytest.raises(presage.Unavailable, match="it says not_serving"):
        client.wait_ready(0.2)
    timer = threading.Timer(0.2, setattr, (server.behaviour, "serving", True))
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


def test_the_key_goes_with_every_call_and_is_never_shown(server: Running, connect: Connect, image: np.ndarray) -> None:
    with connect(server.address, api_key="s3cr3t-key") as client:
        with client.session(goal=client.goal(image)) as session, session.control() as loop:
            loop.send(image)
            loop.wait(5.0)
            assert "s3cr3t" not in repr(client) + repr(session) + repr(loop)
        with pytest.raises(presage.NotFound) as caught:
            client.model("nosuch")
        assert "s3cr3t" not in repr(caught.value) + str(caught.value) + str(caught.value.__cause__)
    assert {each["authorization"] for each in server.behaviour.metadata} == {"Bearer s3cr3t-key"}
    assert all(len(each["x-request-id"]) == 32 for each in server.behaviour.metadata)


def test_affinity_goes_with_every_call_and_the_deadline_too(
    server: Running, connect: Connect, image: np.ndarray
) -> None:
    with connect(server.address, affinity="robot-7", timeout_s=20.0) as client:
        goal = client.goal(image, timeout_s=8.0)
        with client.session(goal=goal) as session, session.control() as loop:
            loop.send(image)
            assert loop.wait(10.0) is not None
    sent = dict(zip(server.behaviour.calls, server.behaviour.metadata, strict=True))
    assert {each["x-session-id"] for each in sent.values()} == {each["session_id"] for each in sent.values()}
    assert {each["session_id"] for each in sent.values()} == {"robot-7"}
    left_ms = {call: float(each["x-timeout-ms"]) for call, each in sent.items() if "x-timeout-ms" in each}
    assert 7000 < left_ms["Goals.Create"] <= 8000
    assert 19000 < left_ms["Sessions.Create"] <= 20000
    assert "Planning.Control" not in left_ms  # a stream has none


def test_without_affinity_nothing_is_said_of_it(server: Running, client: Any) -> None:
    client.models()
    assert not {"x-session-id", "session_id", "x-timeout-ms"} & set(server.behaviour.metadata[0])


@pytest.mark.parametrize("affinity", ["", "a b", "robot\n7", "x" * 129, "r\u00f6bot"])
def test_an_affinity_that_no_header_can_carry_is_refused(affinity: str) -> None:
    with pytest.raises(presage.InvalidRequest, match="affinity must be 1 to 128"):
        presage.Client("127.0.0.1:1", affinity=affinity)


def test_a_key_in_the_clear_is_warned_of(connect: Connect) -> None:
    with pytest.warns(UserWarning, match=r"travels unencrypted to robot\.example:1"):
        connect("robot.example:1", api_key="k").close()
    with pytest.raises(presage.InvalidRequest, match="api_key must be printable") as caught:
        connect("127.0.0.1:1", api_key="a\nb")
    assert "a\nb" not in str(caught.value)


def test_a_closed_client_says_so(client: Any) -> None:
    client.models()
    client.close()
    with pytest.raises(presage.Cancelled, match="CLOSED"):
        client.models()
    client.close()


def test_closing_ends_a_call_in_progress(client: Any, server: Running, image: np.ndarray) -> None:
    goal = client.goal(image)
    server.behaviour.planning.clear()
    caught = []

    def plan() -> None:
        try:
            client.plan(image, goal)
        except presage.PresageError as error:
            caught.append(error)

    thread = threading.Thread(target=plan)
    thread.start()
    while "Planning.Plan" not in server.behaviour.calls:
        time.sleep(0.01)
    client.close()
    thread.join(5.0)
    assert [type(error) for error in caught] == [presage.Cancelled]


def test_an_error_inside_a_session_outlives_its_closing(client: Any, server: Running, image: np.ndarray) -> None:
    goal = client.goal(image)
    with pytest.raises(ZeroDivisionError), client.session(goal=goal):
        break_the_close(server)
    with pytest.raises(presage.ServerError), client.session(goal=goal):
        server.behaviour.refusals.append(Refusal("INTERNAL", "INTERNAL"))


def break_the_close(server: Running) -> None:
    server.behaviour.refusals.append(Refusal("INTERNAL", "INTERNAL"))
    raise ZeroDivisionError


async def test_a_cancelled_upload_stops_sending(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(64 << 20))
    loop, started = asyncio.get_running_loop(), asyncio.Event()

    def progress(sent: int, total: int) -> None:
        loop.call_soon_threadsafe(started.set)
        time.sleep(0.02)

    async with presage.AsyncClient(server.address) as client:
        upload = asyncio.ensure_future(client.embed_clip(path, progress=progress))
        await started.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
    assert len(server.behaviour.chunks) < 64
