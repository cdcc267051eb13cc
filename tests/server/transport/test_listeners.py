"""What the extra `service` brings is offered where it is installed, and missed by name where it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest

from model import extras
from server.config import load
from server.transport.listeners import StartError, _is_offered

NAMES: tuple[Literal["openpi", "reflection"], ...] = ("openpi", "reflection")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look as if it were not installed."""
    installed = extras.find_spec

    def hide(package: str) -> None:
        monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else installed(name))

    return hide


@pytest.mark.parametrize("name", NAMES)
def test_it_is_offered_where_it_is_installed_and_not_turned_off(name: Literal["openpi", "reflection"]) -> None:
    assert _is_offered(load(), name)
    assert _is_offered(load(flags={name: True}), name)
    assert not _is_offered(load(flags={name: False}), name)


def test_without_the_extra_it_is_off_unless_it_was_asked_for(without: Callable[[str], None]) -> None:
    without("msgpack")
    assert not _is_offered(load(), "openpi")
    assert _is_offered(load(), "reflection")
    with pytest.raises(StartError, match=r"^openpi needs msgpack; install the extra 'service'"):
        _is_offered(load(flags={"openpi": True}), "openpi")
