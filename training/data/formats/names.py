"""One name for each number of an action or a state, out of whatever a recorder wrote down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def names_of(described: object, count: int) -> tuple[str, ...] | None:
    """Unique names for `count` numbers; None where the description names another number of them, or none.

    A list of names, lists in lists, names by group (`{"left": ["j1", "j2"], "right": ["j1", "j2"]}`) or names with
    their places (`{"x": 0, "y": 1}`, `{"0": "x", "1": "y"}`). A group's name is put before what it holds where the same
    name is in several groups.
    """
    paths = _paths(described)
    if len(paths) != count or count == 0:
        return None
    last = [path[-1] for path in paths]
    whole = [".".join(path) for path in paths]
    return unique(whole if len(set(last)) < len(last) else last)


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, a number behind those that came before: `x`, `x`, `y` become `x`, `x_2`, `y`."""
    chosen: list[str] = []
    for name in names:
        times, candidate = 1, name
        while candidate in chosen or (times > 1 and candidate in names):
            times += 1
            candidate = f"{name}_{times}"
        chosen.append(candidate)
    return tuple(chosen)


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """Names for numbers that have none."""
    return tuple(f"{prefix}_{index}" for index in range(count))


def natural(name: str) -> list[str | int]:
    """A key to sort names by, in which `demo_10` comes after `demo_9`."""
    return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"(\d+)", name))]


def _paths(described: object) -> list[tuple[str, ...]]:
    """Each name with the groups that it is in, in order."""
    if isinstance(described, Mapping):
        if described and all(isinstance(place, int) and not isinstance(place, bool) for place in described.values()):
            return [(str(name),) for name in sorted(described, key=lambda name: described[name])]
        if described and all(isinstance(name, str) for name in described.values()):
            return [(str(described[key]),) for key in sorted(described, key=lambda key: natural(str(key)))]
        return [(str(group), *path) for group, names in described.items() for path in _paths(names)]
    if isinstance(described, Sequence) and not isinstance(described, (str, bytes)):
        return [path for entry in described for path in _paths(entry)]
    return [] if described is None else [(str(described),)]
