"""Values made of other values: fields of the same name mean the same, and are carried over by their names."""

from __future__ import annotations

from dataclasses import fields
from typing import Callable, TypeVar

Value = TypeVar("Value")


def from_fields(kind: Callable[..., Value], *sources: object, **given: object) -> Value:
    """The dataclass `kind`, with each field that is not `given` read from the first source that has it.

    A field that no source has keeps its default. Raises TypeError for one without a default, and for a field that
    `kind` does not have.
    """
    carried = {}
    for field in fields(kind):  # type: ignore[arg-type]  # of any dataclass
        source = next((each for each in sources if hasattr(each, field.name)), None)
        if field.init and field.name not in given and source is not None:
            carried[field.name] = getattr(source, field.name)
    return kind(**carried, **given)
