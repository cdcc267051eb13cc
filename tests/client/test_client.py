"""Every question of both clients over real gRPC. Clips are in test_clip_uploads, failures in test_failed_calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import presage
import pytest

from tests.support.client.blocking import Connect
from tests.support.client.protocol_server import Running
from tests.support.client.protocol_service import SIZE, expected_actions


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
    latent, encoded = server.behavior.requests
    assert np.frombuffer(latent.latent.data, "<f4").tolist() == [0, 1, 2, 3]
    assert encoded.image.encoded == b"\xff\xd8\xff a JPEG"


@pytest.mark.parametrize("given", [{}, {"image": b"x", "latent": [1.0]}])
def test_a_goal_is_exactly_one_thing(client: Any, server: Running, given: Any) -> None:
    with pytest.raises(presage.InvalidRequest, match="exactly one of image and latent"):
        client.goal(**given)
    assert not server.behavior.calls


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
    request = next(each for each in server.behavior.requests if "PlanRequest" in type(each).__name__)
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
    request = server.behavior.requests[-1]
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


def test_the_key_goes_with_every_call_and_is_never_shown(server: Running, connect: Connect, image: np.ndarray) -> None:
    with connect(server.address, api_key="s3cr3t-key") as client:
        with client.session(goal=client.goal(image)) as session, session.control() as loop:
            loop.send(image)
            loop.wait(5.0)
            assert "s3cr3t" not in repr(client) + repr(session) + repr(loop)
        with pytest.raises(presage.NotFound) as caught:
            client.model("nosuch")
        assert "s3cr3t" not in repr(caught.value) + str(caught.value) + str(caught.value.__cause__)
    assert {each["authorization"] for each in server.behavior.metadata} == {"Bearer s3cr3t-key"}
    assert all(len(each["x-request-id"]) == 32 for each in server.behavior.metadata)


def test_affinity_goes_with_every_call_and_the_deadline_too(
    server: Running, connect: Connect, image: np.ndarray
) -> None:
    with connect(server.address, affinity="robot-7", timeout_s=20.0) as client:
        goal = client.goal(image, timeout_s=8.0)
        with client.session(goal=goal) as session, session.control() as loop:
            loop.send(image)
            assert loop.wait(10.0) is not None
    sent = dict(zip(server.behavior.calls, server.behavior.metadata, strict=True))
    assert {each["x-session-id"] for each in sent.values()} == {each["session_id"] for each in sent.values()}
    assert {each["session_id"] for each in sent.values()} == {"robot-7"}
    left_ms = {call: float(each["x-timeout-ms"]) for call, each in sent.items() if "x-timeout-ms" in each}
    assert 7000 < left_ms["Goals.Create"] <= 8000
    assert 19000 < left_ms["Sessions.Create"] <= 20000
    assert "Planning.Control" not in left_ms  # a stream has none


def test_without_affinity_nothing_is_said_of_it(server: Running, client: Any) -> None:
    client.models()
    assert not {"x-session-id", "session_id", "x-timeout-ms"} & set(server.behavior.metadata[0])


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
