"""The blocking client is what its generator makes of the asyncio client."""

from __future__ import annotations

import importlib.machinery
import importlib.util

import pytest

from tests.support.paths import ROOT


@pytest.mark.process
def test_the_blocking_client_is_generated_from_the_asyncio_client() -> None:
    loader = importlib.machinery.SourceFileLoader("sync_client", str(ROOT / "scripts" / "sync-client"))
    spec = importlib.util.spec_from_loader("sync_client", loader)
    assert spec is not None
    generator = importlib.util.module_from_spec(spec)
    loader.exec_module(generator)
    for name, text in generator.generated().items():
        assert (generator.PACKAGE / name).read_text() == text, f"{name}: run scripts/sync-client"
