"""A protocol server, and both clients for every test that asks for one."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np
import pytest

from tests.support.client.blocking import Connect, connector
from tests.support.client.protocol_server import Running, running
from tests.support.client.protocol_service import SIZE


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as served:
        yield served


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    with connector(request.param) as opened:
        yield opened


@pytest.fixture
def client(server: Running, connect: Connect) -> Iterator[Any]:
    with connect(server.address, timeout_s=30.0) as opened:
        yield opened


@pytest.fixture
def image() -> np.ndarray:
    """uint8 [SIZE, SIZE, 3], every byte different from its neighbors."""
    return (np.arange(SIZE * SIZE * 3) % 251).astype(np.uint8).reshape(SIZE, SIZE, 3)
