"""An application with a real engine process, shared by all tests of a run, and both transports open in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from model.compact.network import CompactConfig
from model.compact.world_model import CompactWorldModel
from model.package import ActionSpec, ImageSpec, PackageConfig, PlannerDefaults
from server.config import Limits, Settings
from server.recording.recorder import Recorder
from server.service.application import MAX_BATCH, Application
from tests.support.server import linear
from tests.support.server.transports import Service, open_service

SETTINGS = Settings(models=("linear",), devices=("cpu",), engine_threads=1, precision="float32")
REPLY_MARGIN_S = 0.05
START_S = 120.0


def changed(**fields: Any) -> Settings:
    """SETTINGS with others in place of some; those of Limits are found by name."""
    limits = {name: fields.pop(name) for name in list(fields) if name in Limits.model_fields}
    return SETTINGS.model_copy(update={**fields, "limits": SETTINGS.limits.model_copy(update=limits)})


async def start(
    settings: Settings = SETTINGS, recorder: Recorder | None = None, max_batch: int = MAX_BATCH
) -> Application:
    """An application with the models of `linear` beside packages."""
    return await Application.start(settings, recorder, linear.load, max_batch, REPLY_MARGIN_S)


def tiny_compact(folder: Path) -> Path:
    """An untrained package of the built-in family, small enough for a test."""
    network = CompactConfig(
        latent=8,
        action_width=4,
        patch=8,
        tubelet=2,
        encoder_width=24,
        encoder_depth=1,
        encoder_heads=2,
        predictor_width=24,
        predictor_depth=1,
        predictor_heads=2,
        horizon=3,
    )
    action = ActionSpec(
        names=("shoulder", "elbow"),
        units=("rad/s", "rad/s"),
        low=(-2.0, -2.0),
        high=(2.0, 2.0),
        rate_hz=10.0,
        block=2,
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
    )
    config = PackageConfig(
        name="tiny",
        family="compact",
        image=ImageSpec(32, 32),
        latent_shape=(8,),
        network=asdict(network),
        action=action,
        planner=PlannerDefaults(samples=32, iterations=4, elites=6, horizon=3),
    )
    CompactWorldModel.random(folder, config, seed=0)
    return folder


@pytest.fixture(scope="session")
def compact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_compact(tmp_path_factory.mktemp("packages") / "tiny")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def application(compact_folder: Path) -> AsyncIterator[Application]:
    """Every model of `linear` that can warm up, and an untrained compact one; "linear" is the default."""
    models = ("linear", "slow", "nan", "embedder", "historian", "table", "guided", "limited", str(compact_folder))
    started = await start(changed(models=models, sessions=4096))
    await started.wait_ready(START_S)
    yield started
    await started.stop(shutdown_grace_s=0.0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(application: Application) -> AsyncIterator[Service]:
    """Transports with the default settings; a module that needs others opens its own."""
    async with open_service(application) as opened:
        yield opened
