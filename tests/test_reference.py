"""The documentation of the protocol and of operations says what the code does, all of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from types import ModuleType

import pytest

from server.config import Limits, Settings
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["docs/protocol.md", "docs/operations.md"])
def test_the_tables_are_those_of_the_code(reference: ModuleType, page: str) -> None:
    text = (ROOT / page).read_text()
    assert text == reference.renewed(text), "run scripts/docs"


def test_every_table_is_on_a_page(reference: ModuleType) -> None:
    text = "".join((ROOT / page).read_text() for page in reference.PAGES)
    assert set(re.findall(r"<!-- end ([\w ]+) -->", text)) == set(reference.TABLES)


def test_a_table_that_is_not_up_to_date_is_noticed(reference: ModuleType) -> None:
    text = "<!-- errors -->\nold\n<!-- end errors -->"
    assert reference.renewed(text) != text
    with pytest.raises(ValueError, match="weather"):
        reference.renewed("<!-- weather -->\n<!-- end weather -->")


def test_the_words_around_the_tables_name_what_there_is(reference: ModuleType) -> None:
    """Metrics and reasons in the running text exist."""
    text = (ROOT / "docs/operations.md").read_text()
    tables = "".join(make() for make in reference.TABLES.values())
    for name in set(re.findall(r"`(presage_\w+)`", text)):
        assert name in tables or name.removesuffix("_total") in tables, name
    for page in reference.PAGES:
        for name in set(re.findall(r"`([A-Z]+_[A-Z_]+)`", (ROOT / page).read_text())) - {"NOT_SERVING"}:
            assert name in tables, name


def test_help_names_every_setting() -> None:
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "serve", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    flags = {"models": "--model", "devices": "--device", "engine_threads": "--threads", "api_keys": "PRESAGE_API_KEYS"}
    told = {word.strip(".") for word in re.findall(r"[\w.-]+", done.stdout)}
    for name in Settings.model_fields:
        if name not in ("limits", "record"):
            assert {flags.get(name, "--" + name.replace("_", "-")), name} & told, name
    assert {"--record", "--record-bytes", "--no-record-images"} <= told
    for name in Limits.model_fields:
        assert f"limits.{name}" in told, name
