"""Both clients against the real service: `python -m server` in a process of its own, with an untrained model in it.

It needs torch and the service; the rest of this folder does not.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import presage
import pytest

from tests.support.client.blocking import connector
from tests.support.paths import ROOT

if sys.version_info < (3, 10):
    pytest.skip("the service needs Python 3.10", allow_module_level=True)
pytest.importorskip("server.serving", reason="the service is not installed here")

KEY = "a-key-for-tests"
PATIENCE_S = 60.0
SIZE = 32


@contextmanager
def served(package: Path, log: Path, port: str = "0") -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The service on a port (a free one by default) once it says that it is ready: its gRPC address and its process."""
    settings = {
        "MODELS": str(package),
        "GRPC_PORT": port,
        "HTTP_PORT": "0",
        "LOG_FORMAT": "json",
        "API_KEYS": KEY,
        "ENGINE_THREADS": "1",
        "DEVICES": "cpu",
        "DRAIN_S": "1",
    }
    environment = {**os.environ, **{f"PRESAGE_{name}": value for name, value in settings.items()}}
    with log.open("wb") as file:
        command = [sys.executable, "-m", "server"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield address_in(log, process), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def address_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the log says that gRPC is served, as soon as it does."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("event") == "listening":
                return str(told["grpc"])
        time.sleep(0.05)
    raise AssertionError(f"the service must start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    from tests.server.conftest import tiny_compact

    folder = tmp_path_factory.mktemp("service")
    with served(tiny_compact(folder / "tiny"), folder / "server.log") as (grpc_address, process):
        with presage.Client(grpc_address, api_key=KEY) as client:
            client.wait_ready(PATIENCE_S)
        yield grpc_address, process


@pytest.fixture
def address(service: tuple[str, Any]) -> str:
    return service[0]


@pytest.fixture(params=["blocking", "asyncio"])
def client(address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    with connector(request.param) as connect, connect(address, api_key=KEY, timeout_s=PATIENCE_S) as opened:
        yield opened


def picture(seed: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)


def test_the_model_describes_itself(client: Any, address: str) -> None:
    assert client.health().ready
    (model,) = client.models()
    assert (model.name, model.family, model.image.height, model.latent_shape) == ("tiny", "compact", SIZE, (8,))
    assert model.action is not None
    assert (model.action.names, model.action.block) == (("shoulder", "elbow"), 2)
    assert model.planner == presage.PlannerSettings(
        samples=32, iterations=4, elites=6, horizon=3, optimizer="cem", discount=1.0
    )
    assert len(model.weights_digest) == 64


def test_a_plan_keeps_its_bounds_and_is_made_again_from_its_seed(client: Any) -> None:
    goal, now = client.goal(picture(0)), picture(1)
    assert client.goal(picture(0)).cached
    plans = []
    for _ in range(2):
        with client.session(goal=goal, seed=4) as session:
            plans.append(session.plan(now))
    first, second = plans
    assert first.actions.shape == (6, 2)
    assert np.abs(first.actions).max() <= 2.0
    np.testing.assert_array_equal(first.actions, second.actions)
    assert (first.seed, first.cost) == (second.seed, second.cost)
    assert first.stop_reason in ("converged", "iterations")
    assert list(first.iteration_costs) == sorted(first.iteration_costs, reverse=True)
    assert sum(first.step_costs) == pytest.approx(first.cost, rel=1e-5)
    assert (first.provenance.model, first.provenance.goal_id) == ("tiny", goal.goal_id)
    assert first.timings.total_ms > 0
    loose = client.plan(now, goal, seed=first.seed)
    np.testing.assert_array_equal(loose.actions, first.actions)


def test_a_session_remembers_its_last_plan(client: Any) -> None:
    stamp = 1_700_000_000_123_456_789
    with client.session(goal=client.goal(picture(0))) as session:
        first = session.plan(presage.Observation((picture(1),), capture_time_ns=stamp))
        second = session.plan(picture(2), executed=2, settings=presage.PlannerSettings(iterations=2))
        assert (first.warm_started, second.warm_started) == (False, True)
        assert (first.observation_sequence, second.observation_sequence) == (1, 2)
        assert first.capture_time_ns == stamp
        assert second.iterations_done <= 2
        again = session.plan(picture(2), executed=3, follows=first, settings=presage.PlannerSettings(iterations=2))
        assert again.warm_started
        with pytest.raises(presage.InvalidRequest, match="executed must be at least 3"):
            session.plan(picture(2), executed=1, follows=first)
        assert session.status().plans == 3
        assert session.reset().epoch == 1
        assert not session.plan(picture(3)).warm_started


def test_a_goal_is_at_no_distance_and_a_session_learns_what_surprises(client: Any) -> None:
    goal = client.goal(picture(0))
    with client.session(goal=goal) as session:
        assert session.distance([picture(0), picture(1)])[0] == pytest.approx(0.0, abs=1e-6)
        seen = [picture(turn) for turn in range(9)]
        first = session.surprise(seen, np.zeros((16, 2)))
        again = session.surprise(seen, np.zeros((16, 2)))
    assert again.errors == pytest.approx(first.errors, rel=1e-4)
    assert (first.scores, first.steps_known, again.steps_known) == ((), 8, 16)
    assert sum(again.scores) == pytest.approx(0.0, abs=1e-3)


def test_a_session_goes_from_stage_to_stage(client: Any) -> None:
    first, second = client.goal(picture(0)), client.goal(picture(9))
    with client.session(stages=[presage.GoalStage(first, max_actions=2), presage.GoalStage(second.goal_id)]) as session:
        assert session.plan(picture(1)).provenance.goal_id == first.goal_id
        onward = session.plan(picture(2), executed=2)
        assert onward.provenance.goal_id == second.goal_id
        assert onward.warnings == ("stage 1 begins: 2 actions were executed in stage 0",)
        assert (session.status().stage, session.status().goal_id) == (1, second.goal_id)
    with client.session(goal=first) as plain:
        assert plain.status().stage is None
    for wrong in ({"switch_below": -1.0}, {"switch_below": float("nan")}, {"max_actions": -1}):
        with pytest.raises(presage.InvalidRequest, match=next(iter(wrong))):
            presage.GoalStage(first, **wrong)


def test_scores_and_rollouts_agree_with_the_plan(client: Any) -> None:
    goal, now = client.goal(picture(0)), picture(1)
    plan = client.plan(now, goal)
    score = client.score(now, np.stack([plan.actions, np.zeros_like(plan.actions)]), goal)
    assert score.costs[0] == pytest.approx(plan.cost, rel=1e-4)
    assert score.step_costs.shape == (2, 3)
    rollout = client.rollout(now, plan.actions, goal=goal)
    assert rollout.latents.shape == (3, 8)
    assert len(rollout.goal_distances) == 3


def test_images_and_clips_become_embeddings(client: Any, tmp_path: Path) -> None:
    goal = client.goal(picture(0))
    images = client.embed_images([picture(0), picture(1)], goal=goal)
    assert images.embedding.shape == (2, 8)
    assert images.goal_distances[0] == pytest.approx(0.0, abs=1e-4)
    assert images.goal_distances[1] > 0
    path = tmp_path / "clip.mp4"
    write_clip(path, frames=10)
    told = []
    clip = client.embed_clip(path, "per_frame", frames=4, goal=goal, progress=lambda *counts: told.append(counts))
    assert clip.embedding.shape[1] == 8
    assert len(clip.frame_times_s) == 4
    assert told[-1] == (path.stat().st_size,) * 2
    assert client.embed_clip(path).embedding.shape == (8,)


def write_clip(path: Path, frames: int) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
        container.mux(stream.encode())


def test_what_is_wrong_is_said_with_reason_and_field(client: Any, address: str, tmp_path: Path) -> None:
    goal = client.goal(picture(0))
    with pytest.raises(presage.InvalidRequest, match="IMAGE_SIZE") as caught:
        client.plan(picture(1)[:16], goal)
    assert caught.value.field == "observation.images[0]"
    assert len(caught.value.request_id) == 32
    with pytest.raises(presage.InvalidRequest, match="ACTION_SHAPE"):
        client.rollout(picture(1), np.zeros((2, 3)))
    with pytest.raises(presage.NotFound, match="UNKNOWN_GOAL"):
        client.plan(picture(1), "0" * 64)
    with pytest.raises(presage.NotFound, match="UNKNOWN_MODEL"):
        client.model("nosuch")
    with pytest.raises(presage.InvalidRequest, match="GOAL_REQUIRED"), client.session() as session:
        session.plan(picture(1))
    with pytest.raises(presage.InvalidRequest, match="INVALID_IMAGE"):
        client.goal(b"not an image")
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    with pytest.raises(presage.InvalidRequest, match="INVALID_CLIP"):
        client.embed_clip(tmp_path / "text.mp4")
    with pytest.raises(presage.InvalidRequest, match="TOO_LARGE"):
        client.goal(np.zeros((2400, 2400, 3), np.uint8))
    assert client.models()


def test_without_the_key_nothing_is_told(address: str) -> None:
    for key in (None, "another-key"):
        with presage.Client(address, api_key=key) as stranger:
            assert stranger.health().ready
            with pytest.raises(presage.Unauthenticated, match="UNAUTHENTICATED"):
                stranger.models()


def test_a_budget_ends_a_search(client: Any) -> None:
    settings = presage.PlannerSettings(samples=64, iterations=1000, elites=8)
    plan = client.plan(picture(1), client.goal(picture(0)), budget_ms=50, settings=settings)
    assert (plan.stop_reason, plan.iterations_done < 1000) == ("budget", True)


def test_a_control_loop_plans_swaps_goals_and_survives_faults(client: Any) -> None:
    goal, other = client.goal(picture(0)), client.goal(picture(9))
    with client.session(goal=goal) as session, session.control(budget_ms=100) as loop:
        first = loop.send(picture(1))
        answer = loop.wait(PATIENCE_S)
        assert (answer.plan.observation_sequence, answer.plan.provenance.goal_id) == (first, goal.goal_id)
        loop.send(picture(1)[:16])
        with pytest.raises(presage.InvalidRequest, match="IMAGE_SIZE"):
            loop.wait(PATIENCE_S)
        loop.set_goal(other)
        loop.send(picture(2), executed=1, committed=2)
        swapped = loop.wait(PATIENCE_S)
        assert swapped.plan.provenance.goal_id == other.goal_id
        np.testing.assert_allclose(swapped.plan.actions[:2], answer.plan.actions[1:3], atol=1e-6)
        for turn in range(20):
            newest = loop.send(picture(turn), executed=turn % 3)
        assert loop.wait(PATIENCE_S).plan.observation_sequence == newest
        assert not loop.errors()[1:]


def test_a_robot_is_driven_by_a_control_loop(client: Any) -> None:
    arm = Arm()
    with client.session(goal=client.goal(picture(99))) as session, session.control(budget_ms=30) as loop:
        report = presage.run_control(loop, arm, 20.0, [0.0, 0.0], until=lambda tick: not tick.held and tick.tick > 8)
        assert loop.errors() == ()
    assert report.failed == 0
    assert report.plans >= 1
    assert report.held < report.ticks
    assert np.abs(arm.actions).max() <= 2.0
    assert arm.actions[-1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_robot_outlasts_a_service_that_is_killed_and_started_again(tmp_path: Path, kind: str) -> None:
    from tests.server.conftest import tiny_compact

    package, arm = tiny_compact(tmp_path / "tiny"), Arm()
    reports: list[presage.ControlReport] = []

    def drive(address: str) -> None:
        if kind == "asyncio":
            reports.append(asyncio.run(drive_async(address)))
            return
        with presage.Client(address, api_key=KEY) as client:
            client.wait_ready(PATIENCE_S)
            goal = client.goal(picture(99))
            with client.session(goal=goal) as session, session.control(budget_ms=30) as loop:
                over = lambda tick: loop.restored > 0 and not tick.held  # noqa: E731
                reports.append(presage.run_control(loop, arm, 20.0, [0.0, 0.0], until=over, max_outage_s=PATIENCE_S))

    async def drive_async(address: str) -> presage.ControlReport:
        async with presage.AsyncClient(address, api_key=KEY) as client:
            await client.wait_ready(PATIENCE_S)
            session = await client.session(goal=await client.goal(picture(99)))
            async with session, session.control(budget_ms=30) as loop:
                over = lambda tick: loop.restored > 0 and not tick.held  # noqa: E731
                return await presage.run_control_async(loop, arm, 20.0, [0.0, 0.0], until=over, max_outage_s=PATIENCE_S)

    with served(package, tmp_path / "first.log") as (address, process):
        robot = threading.Thread(target=drive, args=(address,))
        robot.start()
        deadline = time.monotonic() + PATIENCE_S
        while not np.abs(arm.actions[-5:]).sum() > 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.wait()
    with served(package, tmp_path / "second.log", port=address.rpartition(":")[2]):
        robot.join(PATIENCE_S)
    (report,) = reports
    assert report.restored == 1
    assert report.lost > 5  # the model's `execute`: it held for the rest
    assert report.held >= report.lost - 5
    assert arm.actions[-1].tolist() == [0.0, 0.0]


class Arm:
    """A robot that sees something new each time and keeps what it was told."""

    def __init__(self) -> None:
        self.actions: list[np.ndarray] = []

    def observe(self) -> tuple[np.ndarray, None]:
        return picture(len(self.actions)), None

    def act(self, action: np.ndarray) -> None:
        self.actions.append(action)


def test_a_server_that_stops_says_so(service: tuple[str, subprocess.Popen[bytes]]) -> None:
    """The last test of the file: the service is gone after it."""
    address, process = service
    client = presage.Client(address, api_key=KEY, timeout_s=PATIENCE_S)
    session = client.session(goal=client.goal(picture(0)))
    loop = session.control()
    loop.send(picture(1))
    assert loop.wait(PATIENCE_S) is not None
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    while loop.trouble is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(loop.trouble, presage.Unavailable)
    assert process.wait(PATIENCE_S) == 0
    with client, pytest.raises(presage.Unavailable):
        client.models()
