"""The composition root as a process: it says where it listens, serves, drains on SIGTERM, and fails in one line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from presage.v1 import goals_pb2, goals_pb2_grpc, models_pb2, planning_pb2, planning_pb2_grpc

from model import registry
from server.recording.recorder import files
from server.transport.listeners import StartError, bind
from server.worker.replay import read, replay
from tests.support.paths import ROOT
from tests.support.server.transports import proto_image, proto_observation


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")}
    return {**kept, **{f"PRESAGE_{name.upper()}": value for name, value in settings.items()}}


@pytest.fixture
def process(compact_folder: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env=environment(
            models=str(compact_folder), devices="cpu", engine_threads="1", grpc_port="0", http_port="0",
            shutdown_grace_s="30", log_format="json", record__folder=str(tmp_path / "flight"), record__images="false",
        ),
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    yield started
    if started.poll() is None:
        started.kill()
    started.communicate()


def event(process: subprocess.Popen[str], name: str) -> dict[str, str]:
    """The next log entry of that name."""
    assert process.stderr is not None
    for line in process.stderr:
        entry: dict[str, str] = json.loads(line)
        if entry["event"] == name:
            return entry
    raise AssertionError(f"it ended without saying {name}")


async def test_a_server_announces_itself_serves_records_and_leaves_on_sigterm(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    listening = await asyncio.to_thread(event, process, "listening")
    assert listening["grpc"].startswith("127.0.0.1:")
    async with httpx.AsyncClient(base_url=listening["rest"], trust_env=False) as rest:
        assert (await rest.get("/livez")).status_code == 200
        await asyncio.to_thread(event, process, "ready")
        assert (await rest.get("/readyz")).status_code == 200
    async with grpc.aio.insecure_channel(listening["grpc"]) as channel:
        frame = np.zeros((32, 32, 3), np.uint8)
        goals = goals_pb2_grpc.GoalsStub(channel)
        made = await goals.Create(goals_pb2.GoalsCreateRequest(image=proto_image(frame)))  # type: ignore[misc]
        ask = planning_pb2.PlanRequest(
            observation=proto_observation(frame),
            goal_id=made.goal.goal_id,
            planner=models_pb2.PlannerSettings(iterations=1000),
            budget_ms=1500,
        )
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        running = asyncio.ensure_future(planning_pb2_grpc.PlanningStub(channel).Plan(ask))  # type: ignore[arg-type]
        async with httpx.AsyncClient(base_url=listening["rest"], trust_env=False) as rest:
            while "presage_engine_calls 1.0" not in (await rest.get("/metrics")).text and not running.done():
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await running).plan.iterations_done >= 1  # what was in progress came out whole
    assert await asyncio.to_thread(process.wait, 60) == 0
    (path,) = files(tmp_path / "flight")
    kept = read(path)
    (plan,) = kept.records
    assert kept.is_whole
    assert plan.job is not None
    assert plan.job.start.frames == ()
    model = registry.load(*kept.models, torch.device("cpu"))
    (outcome,) = replay(kept, {"tiny": model}, tolerance=1e-4)
    assert outcome.verdict == "same", outcome


@pytest.mark.parametrize("setting", ["grpc_port", "http_port"])
def test_a_port_that_is_taken_is_told_in_one_line(setting: str, compact_folder: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"grpc_port": "0", "http_port": "0", setting: str(port)}
        done = subprocess.run(
            [sys.executable, "-m", "server"],
            cwd=ROOT,
            env=environment(models=str(compact_folder), **ports),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert all(word in line for word in (setting, str(port), "in use")), line


def test_bad_settings_are_told_and_are_another_exit_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env=environment(host="0.0.0.0"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "api_keys" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(StartError, match=r"http_port 0 on 192\.0\.2\.1"):
        bind("192.0.2.1", 0, "http_port")


def test_waiting_for_readiness_ends_with_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env=environment(
            models=str(tmp_path / "absent"), devices="cpu", grpc_port="0", http_port="0", startup_timeout_s="600"
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "absent" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - begun < 300
