"""A service under load: control streams, deadlines, and engines killed. What `benchmarks.service` prints of it.

The service is a process of its own; robots are tasks of this one, so that with two cores both sides share them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status.rpc_status import GRPC_DETAILS_METADATA_KEY
from presage.v1 import (
    goals_pb2,
    goals_pb2_grpc,
    models_pb2,
    observation_pb2,
    planning_pb2,
    planning_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)

WARM_UP_S = 10.0
ENDLESS = models_pb2.PlannerSettings(samples=300, iterations=1000, elites=30, horizon=5)  # keeps an engine busy
USUAL = models_pb2.PlannerSettings(samples=100, iterations=8, elites=10, horizon=5)


@dataclass(frozen=True)
class NullService:
    """A service of the null model."""

    grpc: str  # host:port
    rest: str  # http://host:port
    pid: int

    @property
    def engine(self) -> int | None:
        """The engine's process id, while there is one."""
        for entry in Path("/proc").iterdir():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else []
                if len(stat) > 1 and int(stat[1]) == self.pid and stat[0] != "Z":
                    command = (entry / "cmdline").read_bytes()
                    if b"spawn_main" in command:
                        return int(entry.name)
            except OSError:
                continue
        return None


def end(process: subprocess.Popen[Any]) -> None:
    """Ask a process to end, and kill one that does not within 20 s."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def null_service(**variables: str) -> Iterator[NullService]:
    """Serve the null model in another process; PRESAGE_* settings by their lower-case names."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")}
    given = {f"PRESAGE_{name.upper()}": value for name, value in variables.items()}
    command = [sys.executable, "-m", "benchmarks.null_model"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**kept, **given})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the service of the null model did not start")
        told = json.loads(line)
        yield NullService(told["grpc"], told["rest"], process.pid)
    finally:
        end(process)


@dataclass(frozen=True)
class Caller:
    """A robot's way to a service."""

    goals: Any
    sessions: Any
    planning: Any
    health: Any

    async def session(self, goal_id: str, ttl_s: float = 0.0) -> str:
        made = await self.sessions.Create(sessions_pb2.SessionsCreateRequest(goal_id=goal_id, ttl_s=ttl_s))
        return str(made.session.session_id)

    async def goal(self, jpeg: bytes) -> str:
        image = observation_pb2.Image(encoded=jpeg)
        return str((await self.goals.Create(goals_pb2.GoalsCreateRequest(image=image))).goal.goal_id)


@asynccontextmanager
async def calling(service: NullService) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(service.grpc, [("grpc.enable_http_proxy", 0)]) as channel:
        yield Caller(
            goals_pb2_grpc.GoalsStub(channel),
            sessions_pb2_grpc.SessionsStub(channel),
            planning_pb2_grpc.PlanningStub(channel),
            health_pb2_grpc.HealthStub(channel),
        )


def seen(jpeg: bytes, sequence: int = 0) -> observation_pb2.Observation:
    return observation_pb2.Observation(images=[observation_pb2.Image(encoded=jpeg)], sequence=sequence)


def reason(error: grpc.aio.AioRpcError) -> str:
    """The service's name for a failure; "" where the failure is not the service's."""
    content = dict(error.trailing_metadata() or ()).get(GRPC_DETAILS_METADATA_KEY)
    if content is None:
        return ""
    told = error_details_pb2.ErrorInfo()
    assert isinstance(content, bytes)
    return told.reason if any(detail.Unpack(told) for detail in status_pb2.Status.FromString(content).details) else ""


def percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {f"p{percent}": round(float(np.percentile(values, percent)), 2) for percent in (50, 95, 99)}


# Control streams


async def streams(
    service: NullService, jpeg: bytes, count: int, seconds: float, rate_hz: float = 1.0
) -> dict[str, Any]:
    """`count` control streams at once, each `rate_hz` observations a second: round trips, errors, memory."""
    delays: list[float] = []
    problems: Counter[str] = Counter()
    memory: list[tuple[float, int]] = []
    async with calling(service) as caller:
        goal_id = await caller.goal(jpeg)
        until = time.monotonic() + WARM_UP_S + seconds
        begun = time.monotonic() + WARM_UP_S

        async def robot(number: int) -> None:
            await asyncio.sleep(number / count / rate_hz)
            call = caller.planning.Control()
            start = planning_pb2.ControlStart(session_id=await caller.session(goal_id))
            await call.write(planning_pb2.ControlRequest(start=start))
            sequence = 0
            while (sent := time.monotonic()) < until:
                sequence += 1
                shown = planning_pb2.ControlObservation(observation=seen(jpeg, sequence), executed=min(sequence - 1, 1))
                await call.write(planning_pb2.ControlRequest(observation=shown))
                reply = await call.read()
                if reply == grpc.aio.EOF or reply.WhichOneof("message") != "plan":
                    problems["end of the stream" if reply == grpc.aio.EOF else reply.error.reason] += 1
                    return
                if sent >= begun:
                    delays.append(1e3 * (time.monotonic() - sent))
                await asyncio.sleep(max(0.0, sent + 1 / rate_hz - time.monotonic()))
            await call.done_writing()

        async def watch() -> None:
            while time.monotonic() < until:
                await asyncio.sleep(max(0.5, seconds / 100))
                if time.monotonic() >= begun:
                    memory.append((time.monotonic(), _resident(service.pid) + _resident(service.engine)))

        watching = asyncio.create_task(watch())
        for outcome in await asyncio.gather(*(robot(number) for number in range(count)), return_exceptions=True):
            if outcome is not None:
                problems[type(outcome).__name__] += 1
        await watching
    tenth = max(1, len(memory) // 10)
    first = float(np.median([size for _, size in memory[:tenth]]))
    last = float(np.median([size for _, size in memory[-tenth:]]))
    return {
        "streams": count,
        "seconds": seconds,
        "plans": len(delays),
        "errors": dict(problems),
        "milliseconds": percentiles(delays),
        "megabytes": [round(first / 2**20, 1), round(last / 2**20, 1)],
        "growth_percent": round(100 * (last / first - 1), 2),
    }


def _resident(pid: int | None) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


# Deadlines


async def deadlines(service: NullService, jpeg: bytes, wanted: int, busy: int = 4, robots: int = 4) -> dict[str, Any]:
    """Plans with deadlines of 30 to 500 ms while `busy` endless plans keep the engine at full load.

    Counts until `wanted` were taken on. A reply is late where the call's own deadline passed before it came.
    """
    outcomes: Counter[str] = Counter()
    slack: list[float] = []
    health: list[float] = []
    lag: list[float] = []  # of this process: what it adds to lateness itself
    rng = np.random.default_rng(0)
    async with calling(service) as caller:
        goal_id = await caller.goal(jpeg)
        over = asyncio.Event()

        async def load() -> None:
            while not over.is_set():
                endless = planning_pb2.PlanRequest(observation=seen(jpeg), goal_id=goal_id, planner=ENDLESS)
                await caller.planning.Plan(endless)

        async def robot() -> None:
            session_id = await caller.session(goal_id)
            while outcomes["in time"] + outcomes["late"] < wanted:
                timeout_s = float(rng.uniform(0.03, 0.5))
                request = planning_pb2.PlanRequest(session_id=session_id, observation=seen(jpeg), planner=USUAL)
                began = time.monotonic()
                try:
                    await caller.planning.Plan(request, timeout=timeout_s)
                except grpc.aio.AioRpcError as error:
                    told = reason(error)
                    outcomes[f"refused: {told}" if told else "late"] += 1
                    await asyncio.sleep(0.01)
                    continue
                left_s = began + timeout_s - time.monotonic()
                slack.append(1e3 * left_s)
                outcomes["in time" if left_s >= 0 else "late"] += 1

        async def probe() -> None:
            while not over.is_set():
                began = time.monotonic()
                await caller.health.Check(health_pb2.HealthCheckRequest())
                health.append(1e3 * (time.monotonic() - began))
                due = time.monotonic() + 0.02
                await asyncio.sleep(0.02)
                lag.append(1e3 * (time.monotonic() - due))

        loads = [asyncio.create_task(load()) for _ in range(busy)]
        probing = asyncio.create_task(probe())
        await asyncio.sleep(1.0)
        began = time.monotonic()
        await asyncio.gather(*(robot() for _ in range(robots)))
        seconds = time.monotonic() - began
        over.set()
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, probing, return_exceptions=True)
    return {
        "outcomes": dict(outcomes),
        "seconds": round(seconds, 1),
        "slack_ms": {f"p{percent}": round(float(np.percentile(slack, percent)), 1) for percent in (1, 50)},
        "health_ms": percentiles(health),
        "robots_wake_late_ms": percentiles(lag),
    }


# Faults


async def kills(service: NullService, jpeg: bytes, count: int, robots: int = 16) -> dict[str, Any]:
    """Kill the engine again and again while robots plan: what they are answered, how soon, and what lives on."""
    answers: Counter[str] = Counter()
    told_ms: list[float] = []
    back_s: list[float] = []
    killed_at = 0.0
    async with calling(service) as caller:
        goal_id = await caller.goal(jpeg)
        over = asyncio.Event()
        asked: Counter[str] = Counter()
        planned: Counter[str] = Counter()

        async def robot(session_id: str) -> None:
            while not over.is_set():
                asked[session_id] += 1
                request = planning_pb2.PlanRequest(session_id=session_id, observation=seen(jpeg), planner=USUAL)
                began = time.monotonic()
                try:
                    await caller.planning.Plan(request, timeout=20)
                    answers["planned"] += 1
                    planned[session_id] += 1
                except grpc.aio.AioRpcError as error:
                    told = reason(error) or f"no answer ({error.code().name})"
                    answers[told] += 1
                    if told == "ENGINE_LOST" and began < killed_at:
                        told_ms.append(1e3 * (time.monotonic() - killed_at))
                    await asyncio.sleep(0.05)

        sessions = [await caller.session(goal_id) for _ in range(robots)]
        tasks = [asyncio.create_task(robot(session_id)) for session_id in sessions]
        for _ in range(count):
            before = answers["planned"]
            await _until(lambda before=before: answers["planned"] >= before + 50)
            engine = service.engine
            assert engine is not None
            killed_at = time.monotonic()
            os.kill(engine, signal.SIGKILL)
            await asyncio.sleep(0.3)
            while (await caller.health.Check(health_pb2.HealthCheckRequest())).status != 1:
                await asyncio.sleep(0.02)
            back_s.append(time.monotonic() - killed_at)
        over.set()
        await asyncio.gather(*tasks)
        wrong = 0
        for session_id in sessions:
            found = (await caller.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=session_id))).session
            wrong += found.plans != planned[session_id]
    return {
        "kills": count,
        "answers": dict(answers),
        "unanswered": sum(asked.values()) - sum(answers.values()),
        "sessions_wrong": wrong,
        "told_after_ms": percentiles(told_ms) | ({"max": round(max(told_ms), 1)} if told_ms else {}),
        "back_after_s": percentiles(back_s),
    }


async def expiry(service: NullService, jpeg: bytes, count: int) -> dict[str, Any]:
    """Open sessions that live for a second, and wait until each is gone."""
    async with calling(service) as caller:
        goal_id = await caller.goal(jpeg)
        ids = [await caller.session(goal_id, ttl_s=1.0) for _ in range(count)]
        await asyncio.sleep(4.0)
        gone = 0
        for session_id in ids:
            try:
                await caller.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=session_id))
            except grpc.aio.AioRpcError as error:
                gone += reason(error) == "UNKNOWN_SESSION"
    return {"opened": count, "expired": gone}


async def _until(holds: Any, patience_s: float = 120.0) -> None:
    by = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > by:
            raise RuntimeError("the load came to a halt")
        await asyncio.sleep(0.01)
