"""Episodes as training sees them: frames, actions and what they mean, whoever recorded them. No files are read here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episodes:
    """Episodes of equal length. `actions[:, t]` leads from frame t to frame t + 1; arrays may be maps of files."""

    frames: NDArray[np.uint8]  # [episodes, steps + 1, height, width, 3] RGB
    actions: NDArray[np.float32]  # [episodes, steps, dimensions], robot units
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    rate_hz: float
    source: str  # where they come from, for the model card
    probe_targets: NDArray[np.float32] | None = None  # [episodes, steps + 1, targets]: what a linear probe should find

    def __post_init__(self) -> None:
        episodes, steps = self.actions.shape[:2]
        if self.frames.shape[:2] != (episodes, steps + 1):
            raise ValueError(f"frames must start with [{episodes}, {steps + 1}], got {list(self.frames.shape[:2])}")
        if not np.isfinite(self.actions).all():
            raise ValueError("actions must be finite, got NaN or infinity")
        constant = [n for n, spread in zip(self.action_names, self.action_spread(), strict=True) if not spread > 1e-8]
        if constant:
            raise ValueError(f"action {constant[0]} must vary over the episodes, got one value throughout")

    def action_mean(self) -> tuple[float, ...]:
        return tuple(self.actions.reshape(-1, self.actions.shape[-1]).mean(axis=0, dtype=np.float64).tolist())

    def action_spread(self) -> tuple[float, ...]:
        return tuple(self.actions.reshape(-1, self.actions.shape[-1]).std(axis=0, dtype=np.float64).tolist())

    def split(self, held_out: int) -> tuple[Episodes, Episodes]:
        """Training episodes and the last `held_out` ones: whole episodes, never windows of one."""
        if not 0 < held_out < len(self.actions):
            raise ValueError(f"held_out must lie in 1..{len(self.actions) - 1}, got {held_out}")
        return self._take(slice(None, -held_out)), self._take(slice(-held_out, None))

    def _take(self, rows: slice) -> Episodes:
        return Episodes(
            self.frames[rows],
            self.actions[rows],
            self.action_names,
            self.action_units,
            self.action_low,
            self.action_high,
            self.rate_hz,
            self.source,
            None if self.probe_targets is None else self.probe_targets[rows],
        )
