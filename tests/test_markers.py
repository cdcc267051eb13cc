"""What `scripts/test --fast` leaves out: tests that start processes, known by what they reach, and slow ones, named."""

from __future__ import annotations

import ast
import importlib
import multiprocessing
from pathlib import Path

import pytest

from tests import test_dependencies, test_setup
from tests.server import conftest as server_conftest
from tests.support.markers import EVERY, SLOW, is_slow, starts_process
from tests.support.paths import ROOT

TESTS = Path(__file__).parent


def test_a_process_is_refused_to_a_test_without_the_marker() -> None:
    library = importlib.import_module("sub" + "process")  # by a name that the search of the code does not know
    with pytest.raises(AssertionError, match="is not marked `process`"):
        library.run(["true"], check=True)
    for method in ("spawn", "fork"):
        with pytest.raises(AssertionError, match="is not marked `process`"):
            multiprocessing.get_context(method).Process(target=print).start()


def test_what_reaches_a_process_is_known_by_its_code(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("process"), "this test names tests that start processes"
    assert starts_process([test_setup.test_a_link_is_never_removed])
    assert starts_process([server_conftest.start]), "an application has an engine"
    assert not starts_process([server_conftest.tiny_compact, test_dependencies.pins])


@pytest.mark.parametrize("file", sorted(SLOW))
def test_every_slow_test_is_there(file: str) -> None:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    named = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert SLOW[file] == EVERY or set(SLOW[file]) <= named
    assert all(is_slow(file, name) for name in named if name.startswith("test_") and SLOW[file] == EVERY)


def test_the_fast_run_is_what_has_neither_marker() -> None:
    assert '-m "not slow and not process"' in (ROOT / "scripts" / "test").read_text(encoding="utf-8")
