"""Fields of one value are carried to another by their names."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from presage.fields import from_fields


@dataclass(frozen=True)
class Seen:
    name: str
    count: int
    other: str = ""


@dataclass(frozen=True)
class Told:
    name: str
    count: int
    unit: str = "1"


class Source:
    unit = "m"
    count = 7


def test_what_is_given_comes_first_then_the_sources_in_order_then_the_defaults() -> None:
    assert from_fields(Told, Seen("a", 2)) == Told("a", 2, "1")
    assert from_fields(Told, Seen("a", 2), Source()) == Told("a", 2, "m")
    assert from_fields(Told, Source(), Seen("a", 2), name="b") == Told("b", 7, "m")


def test_what_is_missing_or_unknown_is_an_error_with_its_name() -> None:
    with pytest.raises(TypeError, match="name"):
        from_fields(Told, Source())
    with pytest.raises(TypeError, match="color"):
        from_fields(Told, Seen("a", 2), color="red")
