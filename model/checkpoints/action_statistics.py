"""The action statistics of an imported model: the mean and std with which its training standardized actions.

Published planning checkpoints often leave these out, and a plan made with others is wrong. They come from a file, from
a dataset of episodes, or from a table of what is known of published files. Knows no model family.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from presage.user_error import UserError

from model.package import ActionSpec

LEAST_STD = 1e-8


class StatisticsError(UserError, ValueError):
    """Action statistics that cannot be; the message names file or field, rule and value."""


@dataclass(frozen=True)
class ActionStatistics:
    """Mean and standard deviation of each entry of one robot action, in robot units, and what else is known of it.

    What is None is the family's to say.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    """Where the numbers come from, for the package's card."""
    names: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    rate_hz: float | None = None
    block: int | None = None
    """Robot actions per model step."""

    def __post_init__(self) -> None:
        if not self.mean:
            raise StatisticsError("mean must have at least one entry, got none")
        for name in ("std", "names", "units", "low", "high"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.mean):
                raise StatisticsError(f"{name} must have {len(self.mean)} entries, like mean, got {len(value)}")
        for name in ("mean", "std", "low", "high"):
            for entry in getattr(self, name) or ():
                if not math.isfinite(entry):
                    raise StatisticsError(f"{name} must be finite, got {entry}")
        for entry in self.std:
            if not entry > 0:
                raise StatisticsError(f"std must be > 0, got {entry}")
        for low, high in zip(self.low or (), self.high or (), strict=False):
            if not low < high:
                raise StatisticsError(f"low must be below high, got {low} and {high}")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise StatisticsError(f"rate_hz must be > 0, got {self.rate_hz}")
        if self.block is not None and self.block < 1:
            raise StatisticsError(f"block must be >= 1, got {self.block}")

    @property
    def dimensions(self) -> int:
        return len(self.mean)

    def specification(
        self, block: int, names: tuple[str, ...], low: float = -1.0, high: float = 1.0, rate_hz: float = 10.0
    ) -> ActionSpec:
        """The package's action specification; what the statistics do not say is as given."""
        count = self.dimensions
        usual = ActionSpec(
            names, ("1",) * count, (low,) * count, (high,) * count, rate_hz, block, mean=self.mean, std=self.std
        )
        return self.over(usual)

    def over(self, usual: ActionSpec) -> ActionSpec:
        """The specification with whatever the statistics say in place of its own."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "source"}
        return replace(usual, **{name: value for name, value in said.items() if value is not None})


def read_action_statistics(path: Path) -> ActionStatistics:
    """Statistics out of a JSON object with `mean` and `std` (lists), and any of the other fields.

    Raises StatisticsError naming the file and what is wrong with it.
    """
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise StatisticsError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise StatisticsError(f"{path}: is not JSON with action statistics: {error}") from error
    if not isinstance(raw, dict):
        raise StatisticsError(f"{path}: must hold an object with mean and std, got {type(raw).__name__}")
    known = {field.name for field in fields(ActionStatistics)}
    if unknown := sorted(set(raw) - known):
        raise StatisticsError(f"{path}: has an unknown key: {unknown[0]} (known: {', '.join(sorted(known))})")
    for name in ("mean", "std"):
        if name not in raw:
            raise StatisticsError(f"{path}: {name} is missing")
    values: dict[str, Any] = {"source": f"the file {path.name}"}
    for name, value in raw.items():
        values[name] = _checked(path, name, value)
    try:
        return ActionStatistics(**values)
    except StatisticsError as error:
        raise StatisticsError(f"{path}: {error}") from error


def fit_action_statistics(
    actions: NDArray[np.floating], source: str, names: tuple[str, ...] | None = None
) -> ActionStatistics:
    """Statistics of recorded actions [rows, action]: rows with NaN left out, population std, at least `LEAST_STD`.

    Bounds are what was recorded, so that a plan asks for nothing the data has not shown. Raises StatisticsError where
    fewer than two whole rows are left.
    """
    whole = np.asarray(actions, dtype=np.float64)
    whole = whole[np.isfinite(whole).all(axis=1)]
    if len(whole) < 2:
        raise StatisticsError(f"actions must have at least two rows without NaN, got {len(whole)}")
    std = np.maximum(whole.std(axis=0), LEAST_STD)
    low, high = whole.min(axis=0), whole.max(axis=0)
    constant = np.flatnonzero(low == high)
    if len(constant):
        raise StatisticsError(f"actions must vary, but entry {constant[0]} is {low[constant[0]]} in every row")
    return ActionStatistics(
        mean=tuple(whole.mean(axis=0).tolist()),
        std=tuple(std.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        names=names,
        source=source,
    )


def _checked(path: Path, name: str, value: Any) -> Any:
    """A field's value as the class has it."""
    numbers, texts = ("mean", "std", "low", "high"), ("names", "units")
    if name in numbers or name in texts:
        kind, what = ((int, float), "numbers") if name in numbers else (str, "texts")
        if not isinstance(value, list) or not all(isinstance(e, kind) and not isinstance(e, bool) for e in value):
            raise StatisticsError(f"{path}: {name} must be a list of {what}, got {value!r}")
        return tuple(float(entry) for entry in value) if name in numbers else tuple(value)
    if name == "rate_hz" and (not isinstance(value, (int, float)) or isinstance(value, bool)):
        raise StatisticsError(f"{path}: rate_hz must be a number, got {value!r}")
    if name == "block" and (not isinstance(value, int) or isinstance(value, bool)):
        raise StatisticsError(f"{path}: block must be a whole number, got {value!r}")
    if name == "source" and not isinstance(value, str):
        raise StatisticsError(f"{path}: source must be a text, got {value!r}")
    return float(value) if name == "rate_hz" else value
