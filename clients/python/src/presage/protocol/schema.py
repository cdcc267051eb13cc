"""Which fields a value has on the wire, read from its dataclass: what the codecs of both sides are driven by."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

NANOSECONDS = "_ns"  # an instant `x_time_ns` is the Timestamp `x_time` of a message


@dataclass(frozen=True)
class FieldType:
    """One field of a dataclass. `wire` is its name in messages and in JSON, `kind` the type of one entry."""

    name: str
    wire: str
    kind: Any
    is_many: bool
    is_optional: bool
    default: Any  # MISSING where there is none

    @property
    def has_default(self) -> bool:
        return self.default is not MISSING

    @property
    def is_time(self) -> bool:
        """Whether it is an instant: nanoseconds here, a Timestamp there."""
        return self.name != self.wire

    @property
    def is_array(self) -> bool:
        return self.kind is np.ndarray or get_origin(self.kind) is np.ndarray


def field_types(kind: Any) -> tuple[FieldType, ...]:
    """The fields of a dataclass, in order."""
    return _field_types(kind)


@lru_cache(maxsize=None)
def _field_types(kind: Any) -> tuple[FieldType, ...]:
    hints = get_type_hints(kind)
    return tuple(_field_type(field, hints[field.name]) for field in fields(kind))


def _field_type(field: Any, hint: Any) -> FieldType:
    name, default = field.name, field.default
    if default is MISSING and field.default_factory is not MISSING:
        default = field.default_factory()
    wire = name[: -len(NANOSECONDS)] if name.endswith("_time" + NANOSECONDS) else name
    given = [each for each in get_args(hint) if each is not type(None)]
    is_optional = _is_union(hint) and len(given) < len(get_args(hint))
    if is_optional and len(given) == 1:
        hint = given[0]
    is_many = get_origin(hint) is tuple and get_args(hint)[1:] == (Ellipsis,)
    return FieldType(name, wire, get_args(hint)[0] if is_many else hint, is_many, is_optional, default)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) is Union or type(hint).__name__ == "UnionType"  # X | Y, from Python 3.10 on
