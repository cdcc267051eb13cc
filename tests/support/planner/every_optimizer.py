"""Every optimizer, made small, for tests of what all of them must do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import GaussNewton
from planner.optimizers.gradient import Gradient
from planner.optimizers.hybrid import Hybrid
from planner.optimizers.mppi import MPPI

AnyOptimizer = CEM | MPPI | Gradient | GaussNewton | Hybrid

SMALL = CEM(samples=64, iterations=5, elites=8, horizon=4, initial_std=0.5)
OPTIMIZERS: dict[str, AnyOptimizer] = {
    "cem": SMALL,
    "icem": replace(CEM.icem(), samples=64, iterations=5, horizon=4, initial_std=0.5),
    "adaptive": replace(SMALL, full_above=0.2),
    "mppi": MPPI(samples=64, iterations=5, horizon=4),
    "gradient": Gradient(starts=4, iterations=10, horizon=4),
    "hybrid": Hybrid(replace(SMALL, iterations=2), Gradient(starts=3, iterations=8, horizon=4)),
    "gauss-newton": GaussNewton(starts=3, iterations=6, horizon=4),
    "sampling, then gauss-newton": Hybrid(replace(SMALL, iterations=1), GaussNewton(2, iterations=4, horizon=4)),
}
each_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def changed(optimizer: AnyOptimizer, **settings: Any) -> AnyOptimizer:
    """The optimizer with other settings; both halves of a hybrid get them, as far as they mean something there."""
    if not isinstance(optimizer, Hybrid):
        return replace(optimizer, **settings)
    of_search = {name: value for name, value in settings.items() if name != "iterations"}
    return Hybrid(replace(optimizer.search, **of_search), replace(optimizer.polish, **settings))
