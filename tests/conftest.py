"""Markers of the whole suite: which tests are `slow`, `process` and `gpu`, and that no quick test starts a process."""

from __future__ import annotations

import multiprocessing.process
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.markers import is_slow, starts_process

TESTS = Path(__file__).parent
_running: list[pytest.Item] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        if is_slow(item.path.relative_to(TESTS).as_posix(), item.originalname):
            item.add_marker("slow")
        fixtures = (each for definitions in item._fixtureinfo.name2fixturedefs.values() for each in definitions)
        if starts_process([item.function, *(fixture.func for fixture in fixtures)]):
            item.add_marker("process")
        if item.get_closest_marker("gpu") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.pop()


def pytest_sessionstart() -> None:
    """From here on a process is refused while a test runs that is not marked."""
    _guard(subprocess.Popen, "__init__")
    _guard(multiprocessing.process.BaseProcess, "start")


def _guard(kind: type, name: str) -> None:
    start = getattr(kind, name)

    def guarded(self: Any, *arguments: Any, **options: Any) -> Any:
        by_platform = bool(arguments) and isinstance(arguments[0], list) and arguments[0][:1] == ["uname"]
        marked = _running and any(_running[-1].get_closest_marker(each) for each in ("process", "slow"))
        if _running and not marked and not by_platform:  # `platform` asks `uname`, for libraries that are imported
            self.returncode, self._child_created = 0, False  # what `Popen` looks at when it is freed
            raise AssertionError(f"{_running[-1].nodeid} starts a process and is not marked `process`")
        return start(self, *arguments, **options)

    setattr(kind, name, guarded)
