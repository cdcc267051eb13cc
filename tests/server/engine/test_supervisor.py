"""Engine processes that start, fail to start, die and come back."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from presage.values import Plan, PlannerSettings

from server.config import Settings
from server.errors import Reason, ServiceError
from server.service.application import Application
from server.values.calls import GoalRequest, Observation, PlanRequest
from tests.server.conftest import SETTINGS, START_S, changed, start
from tests.support.paths import ROOT
from tests.support.server.linear import frame

HERE = Observation((frame(0.2, 0.4),))
QUICK = PlannerSettings(samples=16, iterations=2)
ENDLESS = PlannerSettings(samples=33, iterations=1000, elites=32)  # hardly selects, so it never converges


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Application]:
    application = await start(settings)
    try:
        yield application
    finally:
        await application.stop(shutdown_grace_s=0.0)


async def plan(application: Application, request: PlanRequest) -> Plan:
    return await application.plan(request, None, time.monotonic())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_calls_before_the_engine_is_warm_are_refused() -> None:
    async with started(SETTINGS) as application:
        with pytest.raises(ServiceError) as early:
            await application.create_goal(GoalRequest(image=frame(0.5, 0.4)))
        assert early.value.reason is Reason.NOT_READY
        assert not application.ready
    assert application.engine_pids == ()


async def test_of_two_engines_one_goes_on_while_the_other_restarts() -> None:
    async with started(changed(devices=("cpu", "cpu"))) as application:
        await application.wait_ready(START_S)
        goal = await application.create_goal(GoalRequest(image=frame(0.5, 0.4)))
        request = PlanRequest(HERE, goal_id=goal.goal_id, seed=1)
        both = await asyncio.gather(plan(application, request), plan(application, request))
        assert both[0].actions.tolist() == both[1].actions.tolist()
        first, second = application.engine_pids
        os.kill(first, signal.SIGKILL)
        await until(lambda: not application.ready)
        assert (await plan(application, request)).actions.tolist() == both[0].actions.tolist()
        await application.wait_ready(START_S)
        assert second in application.engine_pids
    assert not alive(first)
    assert not alive(second)


@pytest.mark.parametrize("name", ["nowhere/to/be/found", "lost"])
async def test_a_model_that_cannot_be_used_is_said_at_once_and_not_tried_again(name: str) -> None:
    async with started(changed(models=("linear", name))) as application:
        with pytest.raises(ServiceError) as caught:
            await application.wait_ready(START_S)
        assert caught.value.reason is Reason.NOT_READY
        assert "cannot be loaded" in caught.value.message
        await until(lambda: application.engine_pids == ())
        with pytest.raises(ServiceError) as after:
            await application.create_goal(GoalRequest(image=frame(0.5, 0.4)))
        assert after.value.reason is Reason.NOT_READY


async def test_stopping_lets_a_plan_end_and_refuses_new_ones() -> None:
    async with started(changed(models=("slow",))) as application:
        await application.wait_ready(START_S)
        goal = (await application.create_goal(GoalRequest(image=frame(0.5, 0.4)))).goal_id
        request = PlanRequest(HERE, goal_id=goal, planner=PlannerSettings(samples=16, iterations=5))
        running = asyncio.create_task(plan(application, request))
        await until(lambda: application.calls_in_hand == 1)
        stopping = asyncio.create_task(application.stop(shutdown_grace_s=60.0))
        await asyncio.sleep(0)
        assert not application.ready
        with pytest.raises(ServiceError) as caught:
            await plan(application, request)
        assert caught.value.reason is Reason.NOT_READY
        assert (await running).iterations_done == 5
        await stopping
        assert application.engine_pids == ()


async def test_giving_up_on_readiness_leaves_no_failure_that_nobody_looks_at() -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    application = await start()
    waiting = asyncio.create_task(application.wait_ready(START_S))
    await until(lambda: bool(application.engine_pids))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await application.stop(shutdown_grace_s=0.0)
    del waiting
    gc.collect()
    assert complaints == []


def test_the_front_needs_no_torch() -> None:
    program = "import server.service.application, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


FRONT = """
import asyncio
from tests.server.conftest import start

async def main():
    application = await start()
    await application.wait_ready(120)
    print(*application.engine_pids, flush=True)
    {end}

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["await asyncio.sleep(600)", "return"])
def test_no_engine_outlives_its_front(end: str, tmp_path: Path) -> None:
    program = tmp_path / "front.py"
    program.write_text(FRONT.format(end=end))
    root = ROOT
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'clients/python/src'}"}
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, cwd=root, env=environment) as front:
        assert front.stdout is not None
        pid = next(int(line) for line in front.stdout if line.strip().isdigit())  # the log comes the same way
        if end != "return":
            front.kill()
        front.wait()
    while alive(pid):
        time.sleep(0.02)
