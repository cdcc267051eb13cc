"""Limits on a model's actions: what its package states, and what an operator narrows for a session or a plan.

One definition for packages, service, clients and robots. Limits only ever get narrower: `narrowed` refuses a wider one
by name, and `fault` says what of a plan breaks them. Nothing here searches; the planner keeps every sample within.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Dict, Optional, Protocol, Sequence, Tuple, Union

import numpy as np

from presage.user_error import UserError

if TYPE_CHECKING:
    from presage.protocol.arrays import Refuse

LONGEST_DWELL = 65_536  # actions
_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class ActionLimits:
    """What actions must keep to, in robot units, with one entry per action dimension. What is left out limits nothing.

    `low`, `high`: bounds; two equal entries hold a dimension there. `slew`: largest change from one action to the next.
    `max_norm`: of each action, L2 or (`norm_order` 1) L1, over the dimensions that `norm_of` names or over all.
    `frozen`: names of dimensions that stay at rest. `dwell`: actions for which a value is kept at least; 1 leaves free.
    """

    low: Tuple[float, ...] = ()
    high: Tuple[float, ...] = ()
    slew: Tuple[float, ...] = ()
    max_norm: Optional[float] = None
    norm_order: Optional[int] = None
    norm_of: Tuple[str, ...] = ()
    frozen: Tuple[str, ...] = ()
    dwell: Tuple[int, ...] = ()


class LimitsError(UserError, ValueError):
    """A file of limits that cannot be read; the message names the file and the key at fault."""


def read_limits(path: Union[str, os.PathLike]) -> ActionLimits:  # type: ignore[type-arg]  # no subscript on Python 3.8
    """Limits out of a JSON object with the names of `ActionLimits`. Raises LimitsError; their values are not judged."""
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except (OSError, ValueError) as error:
        raise LimitsError(f"{path}: is not JSON with limits: {error}") from error
    if not isinstance(raw, dict):
        raise LimitsError(f"{path}: must hold an object, got {type(raw).__name__}")
    known = {field.name for field in fields(ActionLimits)}
    for name in raw:
        if name not in known:
            raise LimitsError(f"{path}: has an unknown key: {name} (known: {', '.join(sorted(known))})")
    values: Dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in raw.items()}
    return ActionLimits(**values)


class Actions(Protocol):
    """What limits are of: the actions of a model, as its package or the service describes them."""

    @property
    def names(self) -> Tuple[str, ...]: ...

    @property
    def low(self) -> Tuple[float, ...]: ...

    @property
    def high(self) -> Tuple[float, ...]: ...


def narrowed(
    actions: Actions,
    rest: Sequence[float],
    held: Optional[ActionLimits],
    asked: ActionLimits,
    refuse: Refuse,
    field: str = "limits",
) -> ActionLimits:
    """What holds once `asked` is added to the limits that hold already (`held`): never wider, bounds filled in.

    `rest` is the action that leaves the robot at rest. Raises what `refuse` makes, naming field, rule and value: for a
    wrong number of entries, for numbers that are none, for a limit wider than the one that holds, and for limits that
    no action can keep.
    """
    check = _Check(actions.names, refuse, field)
    known = held or ActionLimits()
    old_low, old_high = known.low or actions.low, known.high or actions.high
    low = check.numbers("low", asked.low) or old_low
    high = check.numbers("high", asked.high) or old_high
    for name, edges in (("low", asked.low), ("high", asked.high)):
        for at, edge in enumerate(edges):
            check.that(
                old_low[at] <= edge <= old_high[at], f"{name}[{at}]",
                f"must be within {old_low[at]:g} and {old_high[at]:g}, the bounds of {actions.names[at]}", edge,
            )  # fmt: skip
    for at, (least, most) in enumerate(zip(low, high)):
        check.that(least <= most, f"low[{at}]", f"must be at most high, {most:g}", least)
        if asked.low or asked.high:
            check.that(_float32_above(least) <= most, f"low[{at}]", "must leave a float32 number up to high", least)
    frozen = tuple(dict.fromkeys((*known.frozen, *check.names_of("frozen", asked.frozen))))
    for name in frozen:
        at = actions.names.index(name)
        place = f"frozen[{asked.frozen.index(name)}]" if name in asked.frozen else "low" if asked.low else "high"
        rule = f"must allow rest, {rest[at]:g} of {name}, where it is frozen: bounds are {low[at]:g} and {high[at]:g}"
        check.that(low[at] <= rest[at] <= high[at], place, rule, name)
    limits = ActionLimits(
        low=tuple(low),
        high=tuple(high),
        slew=_slew(check, known, asked, low, high),
        frozen=frozen,
        dwell=_dwell(check, known, asked),
    )
    return _with_norm(check, limits, rest, known, asked)


def told(limits: ActionLimits, names: Sequence[str], units: Sequence[str]) -> Tuple[str, ...]:
    """Limits in words, a line for each kind."""

    def each(entries: Sequence[float], unit: str = "") -> str:
        shown = (f"{name} {entry:g}{unit and ' ' + own}" for name, entry, own in zip(names, entries, units))
        return ", ".join(shown)

    kept = [(name, steps) for name, steps in zip(names, limits.dwell) if steps > 1]
    lines = [
        f"bounds from {each(limits.low, 'unit')}" if limits.low else "",
        f"bounds to {each(limits.high, 'unit')}" if limits.high else "",
        f"largest change from one action to the next: {each(limits.slew, 'unit')}" if limits.slew else "",
        f"frozen at rest: {', '.join(limits.frozen)}" if limits.frozen else "",
        f"kept at least: {', '.join(f'{name} {steps} actions' for name, steps in kept)}" if kept else "",
    ]
    if limits.max_norm is not None:
        lines.append(f"L{limits.norm_order or 2} norm of {', '.join(limits.norm_of or names)}: {limits.max_norm:g}")
    return tuple(line for line in lines if line)


def held_for(
    executed: Sequence[Sequence[float]],
    previous: Optional[Sequence[float]] = None,
    held: Optional[Sequence[float]] = None,
) -> Optional[Tuple[float, ...]]:
    """For how many actions each dimension has kept its value, after `executed` [steps][action]; None before any.

    `previous` is the action before those, kept for `held` actions by then.
    """
    before, counts = previous, held
    for action in executed:
        if before is None or counts is None:
            counts = (1.0,) * len(action)
        else:
            counts = tuple(count + 1 if a == b else 1.0 for count, a, b in zip(counts, action, before))
        before = action
    return None if before is None or counts is None else tuple(counts)


def fault(
    actions: np.ndarray,
    names: Sequence[str],
    limits: ActionLimits,
    rest: Sequence[float],
    previous: Optional[Sequence[float]] = None,
    held: Optional[Sequence[float]] = None,
) -> str:
    """What of a plan's actions [time, action] breaks the limits; "" if nothing does.

    `previous` is the action executed before them, kept for `held` actions: there slew and dwell begin, where it is
    known.
    """
    told = np.asarray(actions, np.float64)
    for edges, outside in ((limits.low, np.less), (limits.high, np.greater)):
        if edges and outside(told, np.asarray(edges)).any():
            return "an action out of bounds"
    for name in limits.frozen:
        at = list(names).index(name)
        if (np.abs(told[:, at] - rest[at]) > 2 * _EPS * abs(rest[at])).any():
            return f"an action that moves {name}, which is frozen"
    if limits.max_norm is not None:
        counted = [at for at, name in enumerate(names) if not limits.norm_of or name in limits.norm_of]
        norms = np.linalg.norm(told[:, counted], ord=limits.norm_order or 2, axis=1)
        if (norms > limits.max_norm).any():
            return f"an action of norm {norms.max():g}, above {limits.max_norm:g}"
    row = told if previous is None else np.concatenate([np.asarray(previous, np.float64)[None], told])
    if limits.slew and (np.abs(np.diff(row, axis=0)) > np.asarray(limits.slew)).any():
        return "a change from one action to the next above the slew limit"
    if limits.dwell and not _dwells(told, limits.dwell, previous, held):
        return "a value that is not kept for its dwell"
    return ""


def _dwells(
    actions: np.ndarray,
    dwell: Sequence[int],
    previous: Optional[Sequence[float]],
    held: Optional[Sequence[float]],
) -> bool:
    for at, least in enumerate(dwell):
        before = None if previous is None else previous[at]
        count = math.inf if previous is None or held is None else held[at]
        for value in actions[:, at].tolist():
            if value == before:
                count += 1
            elif count < least:
                return False
            else:
                before, count = value, 1
    return True


class _Check:
    """Raises what `refuse` makes for a limit that breaks a rule."""

    def __init__(self, names: Sequence[str], refuse: Refuse, field: str) -> None:
        self.names, self._refuse, self._field = tuple(names), refuse, field

    def that(self, holds: bool, name: str, rule: str, value: object) -> None:
        if not holds:
            raise self._refuse(f"{self._field}.{name}", rule, value, "INVALID_FIELD")

    def numbers(self, name: str, entries: Sequence[float]) -> Tuple[float, ...]:
        """One finite number for each dimension, or none at all."""
        self.that(isinstance(entries, (tuple, list)), name, "must be a list of numbers", entries)
        self.that(
            len(entries) in (0, len(self.names)), name,
            f"must have {len(self.names)} entries, for {', '.join(self.names)}", len(entries),
        )  # fmt: skip
        for at, entry in enumerate(entries):
            is_number = isinstance(entry, (int, float)) and not isinstance(entry, bool)
            self.that(is_number and math.isfinite(entry), f"{name}[{at}]", "must be a finite number", entry)
        return tuple(entries)

    def names_of(self, name: str, entries: Sequence[str]) -> Tuple[str, ...]:
        """Different names of dimensions."""
        self.that(isinstance(entries, (tuple, list)), name, "must be a list of names", entries)
        for at, entry in enumerate(entries):
            self.that(entry in self.names, f"{name}[{at}]", f"must be one of {', '.join(self.names)}", entry)
            self.that(entry not in entries[:at], f"{name}[{at}]", "must not be named twice", entry)
        return tuple(entries)


def _slew(
    check: _Check, known: ActionLimits, asked: ActionLimits, low: Sequence[float], high: Sequence[float]
) -> Tuple[float, ...]:
    for at, most in enumerate(check.numbers("slew", asked.slew)):
        # A change can only be held to within rounding at the size of the numbers that change.
        least = 4 * _EPS * max(abs(low[at]), abs(high[at]))
        check.that(most > least, f"slew[{at}]", f"must be above {least:g}", most)
        if known.slew:
            check.that(most <= known.slew[at], f"slew[{at}]", f"must be at most {known.slew[at]:g}, which holds", most)
    return tuple(asked.slew) or known.slew


def _dwell(check: _Check, known: ActionLimits, asked: ActionLimits) -> Tuple[int, ...]:
    for at, steps in enumerate(check.numbers("dwell", asked.dwell)):
        least = known.dwell[at] if known.dwell else 1
        rule = f"must be a whole number from {least}{', which holds,' if known.dwell else ''} to {LONGEST_DWELL}"
        check.that(least <= steps <= LONGEST_DWELL and float(steps).is_integer(), f"dwell[{at}]", rule, steps)
    return tuple(asked.dwell) or known.dwell


def _with_norm(
    check: _Check, limits: ActionLimits, rest: Sequence[float], known: ActionLimits, asked: ActionLimits
) -> ActionLimits:
    """The limits with a norm that some action within them has."""
    order, of = asked.norm_order, check.names_of("norm_of", asked.norm_of)
    if known.max_norm is not None:
        is_same = order in (None, known.norm_order)
        check.that(is_same, "norm_order", f"must be {known.norm_order}, of the norm that holds", order)
        counted = known.norm_of or check.names
        rule = f"must be {', '.join(counted)}, of the norm that holds"
        check.that(not of or set(of) == set(counted), "norm_of", rule, ", ".join(of))
        order, of = known.norm_order, known.norm_of
    check.that(order in (None, 1, 2), "norm_order", "must be 1 or 2", order)
    norm = known.max_norm if asked.max_norm is None else asked.max_norm
    if norm is None:
        check.that(order is None, "norm_order", "must be left out without max_norm", order)
        check.that(not of, "norm_of", "must be left out without max_norm", ", ".join(of))
        return limits
    is_number = isinstance(norm, (int, float)) and not isinstance(norm, bool)
    check.that(is_number and math.isfinite(norm) and norm > 0, "max_norm", "must be finite and above 0", norm)
    if known.max_norm is not None:
        check.that(norm <= known.max_norm, "max_norm", f"must be at most {known.max_norm:g}, which holds", norm)
    least = _least_norm(check.names, limits, rest, order or 2, of)
    check.that(least <= norm, "max_norm", f"must be at least {least:g}, the least that bounds and rest leave", norm)
    return replace(limits, max_norm=norm, norm_order=order or 2, norm_of=of)


def _least_norm(
    names: Sequence[str], limits: ActionLimits, rest: Sequence[float], order: int, of: Sequence[str]
) -> float:
    """The smallest norm that bounds and frozen dimensions leave."""
    least = [
        rest[at] if name in limits.frozen else max(limits.low[at], min(limits.high[at], 0.0))
        for at, name in enumerate(names)
        if not of or name in of
    ]
    return math.fsum(map(abs, least)) if order == 1 else math.hypot(*least)


def _float32_above(value: float) -> float:
    """The least float32 number that is not below a value."""
    rounded = np.float32(value)
    return float(rounded if rounded >= value else np.nextafter(rounded, np.float32(np.inf)))
