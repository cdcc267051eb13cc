"""Engines whose package is away, half written or exchanged while they run: they try again, and serve what they did."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
from presage.values import PlannerSettings

from model.package import PackageError, read_package
from server.errors import Reason, ServiceError
from server.service.application import Application
from server.values.calls import GoalRequest, Observation, PlanRequest
from tests.server.conftest import START_S, changed, tiny_compact
from tests.server.engine.test_supervisor import plan, started, until
from tests.support.server.transports import open_service, rest_refusal

PATIENCE_S = 120.0


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tiny_compact(tmp_path / "tiny")


async def killed(application: Application) -> None:
    """With its engine gone; returns once that was noticed."""
    (pid,) = application.engine_pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not application.ready)


async def a_plan(application: Application) -> object:
    import numpy as np

    seen = np.zeros((32, 32, 3), np.uint8)
    goal = await application.create_goal(GoalRequest(image=seen))
    quick = PlannerSettings(samples=16, iterations=2)
    return await plan(application, PlanRequest(Observation((seen,)), goal_id=goal.goal_id, planner=quick, seed=1))


async def test_an_engine_comes_back_when_its_package_does_and_the_probes_say_where_it_is(package: Path) -> None:
    away = package.with_name("away")
    async with started(changed(models=(str(package),))) as application:
        await application.wait_ready(START_S)
        before = await a_plan(application)
        async with open_service(application, engines_away_s=0.5) as service:
            assert (await service.rest.get("/readyz")).json() == {"status": "ready"}
            package.rename(away)
            await killed(application)
            await asyncio.wait_for(until(lambda: application.engine_states == ("cannot load its models",)), PATIENCE_S)
            refused = await rest_refusal(service.rest.get("/readyz"))
            assert (refused.status, refused.message) == (503, "not all engines are ready: cannot load its models")
            with pytest.raises(ServiceError, match="cannot be loaded now") as caught:
                await a_plan(application)
            assert caught.value.reason is Reason.NOT_READY
            assert caught.value.retry_after_s is not None
            await asyncio.wait_for(until(lambda: application.engines_away_s > 0.5), PATIENCE_S)
            gone = await rest_refusal(service.rest.get("/livez"))
            assert (gone.status, gone.reason) == (503, "ENGINE_LOST")
            await asyncio.wait_for(until(lambda: application.engine_restarts >= 3), PATIENCE_S)
            away.rename(package)
            await asyncio.wait_for(until(lambda: application.ready), PATIENCE_S)
            assert (await service.rest.get("/livez")).json() == {"status": "live"}
            after = await a_plan(application)
        assert (after.actions == before.actions).all()  # type: ignore[attr-defined]


async def test_weights_that_changed_on_the_disk_are_not_served_and_the_change_is_named(
    package: Path, tmp_path: Path
) -> None:
    weights = package / "weights.safetensors"
    original = weights.read_bytes()
    other = bytearray(original)
    other[-64:] = b"\x01" * 64
    async with started(changed(models=(str(package),))) as application:
        await application.wait_ready(START_S)
        digest = application.model("").weights_digest
        for content, said in ((bytes(other), "changed since the service started"), (original[:-512], "not a whole")):
            weights.write_bytes(content)
            await killed(application)
            await asyncio.wait_for(until(lambda: application.engine_states == ("cannot load its models",)), PATIENCE_S)
            with pytest.raises(ServiceError, match=said):
                await a_plan(application)
            assert application.model("").weights_digest == digest
            weights.write_bytes(original)
            await asyncio.wait_for(until(lambda: application.ready), PATIENCE_S)
            await a_plan(application)


def test_weights_are_read_from_what_was_digested(package: Path) -> None:
    read = read_package(package)
    assert read.weights()
    copy = shutil.copytree(package, package.with_name("copy"))
    assert read_package(copy).digest() == read.digest()
    content = (package / "weights.safetensors").read_bytes()
    (package / "weights.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PackageError, match="changed while it was read"):
        read.weights()
    assert read_package(package).digest() != read.digest()
    config = (copy / "config.json").read_text().replace('"rate_hz": 10.0', '"rate_hz": 11.0')
    (copy / "config.json").write_text(config)
    assert read_package(copy).digest() != read.digest()
