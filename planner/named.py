"""The optimisers that a request or a model package can ask for by name, and the part of an action space they search.

For callers who hold settings as plain values; in Python, make an optimiser from its own class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from planner.anytime import Optimiser
from planner.cem import CEM
from planner.cost import GoalDistance
from planner.gauss_newton import GaussNewton
from planner.gradient import Gradient
from planner.hybrid import Hybrid
from planner.mppi import MPPI
from planner.types import ActionSpace, PlanningError

OptimiserName = Literal["cem", "icem", "mppi", "gradient", "hybrid", "gauss_newton", "vjepa2_ac"]
"""`vjepa2_ac` is the published V-JEPA 2-AC search: white noise, last-step L1, gripper rules, the last mean."""
OPTIMISERS: tuple[str, ...] = get_args(OptimiserName)


def optimiser(name: str, samples: int, iterations: int, elites: int, horizon: int) -> Optimiser:
    """The named optimiser at that size; `samples` are the starts of `gradient`, and only CEMs have elites.

    Raises PlanningError for an unknown name or a size that its class refuses.
    """
    match name:
        case "cem":
            return CEM(samples=samples, iterations=iterations, elites=elites, horizon=horizon)
        case "icem":
            return replace(CEM.icem(), samples=samples, iterations=iterations, elites=elites, horizon=horizon)
        case "vjepa2_ac":
            published = CEM.vjepa2_ac_paper()
            return replace(published, samples=samples, iterations=iterations, elites=elites, horizon=horizon)
        case "mppi":
            return MPPI(samples=samples, iterations=iterations, horizon=horizon)
        case "gradient":
            return Gradient(starts=samples, iterations=iterations, horizon=horizon)
        case "hybrid":
            return _hybrid(samples, iterations, elites, horizon)
        case "gauss_newton":
            return _gauss_newton(samples, iterations, elites, horizon)
        case _:
            raise PlanningError("planner.optimiser", f"must be one of {', '.join(OPTIMISERS)}", name)


def _hybrid(samples: int, iterations: int, elites: int, horizon: int) -> Hybrid:
    """One or two iterations sample, all others polish the best four at most: polish is cheap, and wants to be long."""
    if iterations < 2:
        raise PlanningError("planner.iterations", "must be >= 2 for hybrid", iterations)
    sampling = 1 if iterations < 16 else 2
    search = CEM(samples=samples, iterations=sampling, elites=elites, horizon=horizon)
    starts = min(4, search.kept_count)
    return Hybrid(search, Gradient(starts=starts, iterations=iterations - sampling, step=0.2, horizon=horizon))


def _gauss_newton(samples: int, iterations: int, elites: int, horizon: int) -> Hybrid:
    """One or two iterations sample, all others take Gauss-Newton steps, at first from the best two."""
    if iterations < 2:
        raise PlanningError("planner.iterations", "must be >= 2 for gauss_newton", iterations)
    sampling = 1 if iterations < 8 else 2
    search = CEM(samples=samples, iterations=sampling, elites=elites, horizon=horizon)
    polish = GaussNewton(starts=min(2, search.kept_count), iterations=iterations - sampling, horizon=horizon)
    return Hybrid(search, polish)


def cost(name: str) -> GoalDistance:
    """What the named optimiser makes small. Raises PlanningError for an unknown name."""
    smallest = optimiser(name, samples=3, iterations=2, elites=2, horizon=1).cost
    assert isinstance(smallest, GoalDistance)
    return smallest


def searched(space: ActionSpace, dimensions: Sequence[str]) -> ActionSpace:
    """The space with every other dimension held at mid-range, which is rest; all are searched where none is named.

    A dimension that the space itself holds stays held. Raises PlanningError for a name that it does not have.
    """
    for name in dimensions:
        if name not in space.names:
            raise PlanningError("planner.dimensions", f"must be among {', '.join(space.names)}", name)
    if not dimensions:
        return space
    held = space.frozen or (None,) * space.dimensions
    return replace(
        space,
        frozen=tuple(
            value if value is not None or name in dimensions else (low + high) / 2
            for name, value, low, high in zip(space.names, held, space.low, space.high, strict=True)
        ),
    )
