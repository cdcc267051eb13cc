"""The optimizers that a request or a model package can name, and the part of an action space they search.

For callers who hold settings as plain values; in Python, make an optimizer from its own class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

from planner.anytime import Optimizer
from planner.cost import GoalDistance
from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import GaussNewton
from planner.optimizers.gradient import Gradient
from planner.optimizers.hybrid import Hybrid
from planner.optimizers.mppi import MPPI
from planner.types import ActionSpace, PlanningError

OptimizerName = Literal["cem", "icem", "mppi", "gradient", "hybrid", "gauss_newton", "real_time_iteration", "vjepa2_ac"]
"""`vjepa2_ac` is the published V-JEPA 2-AC search: white noise, last-step L1, gripper rules, the last mean.
`real_time_iteration` (Diehl et al. 2005) spreads a search over the plans of a control loop: each takes a step or two of
Gauss-Newton from the plan under way and from a few others. Without a plan to begin with it samples once first."""
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
LEAST_DISCOUNT, MOST_DISCOUNT = 0.1, 10.0
EXPLORED = 3  # of so many plans of real-time iteration one samples first, to leave a valley that steps cannot
STARTS = 4  # of real-time iteration: the plan under way, and three drawn widely around it


def optimizer(name: str, samples: int, iterations: int, elites: int, horizon: int, discount: float = 1.0) -> Optimizer:
    """The named optimizer at that size; `samples` are the starts of `gradient`, and only CEMs have elites.

    `discount` is the weight of each model step's distance to the goal, relative to the step before. Raises
    PlanningError for an unknown name, or a size or a discount that its class refuses.
    """
    priced = cost(name, discount)
    sampling = partial(CEM, samples=samples, elites=elites, horizon=horizon, cost=priced)
    match name:
        case "cem":
            return sampling(iterations=iterations)
        case "icem":
            return replace(
                CEM.icem(), samples=samples, iterations=iterations, elites=elites, horizon=horizon, cost=priced
            )
        case "vjepa2_ac":
            published = CEM.vjepa2_ac_paper()
            return replace(published, samples=samples, iterations=iterations, elites=elites, horizon=horizon)
        case "mppi":
            return MPPI(samples=samples, iterations=iterations, horizon=horizon, cost=priced)
        case "gradient":
            return Gradient(starts=samples, iterations=iterations, horizon=horizon, cost=priced)
        case "hybrid":
            polish = Gradient(starts=4, step=0.2, horizon=horizon, cost=priced)
            return _hybrid(sampling(), polish, iterations, long=16)  # a descent is cheap, and wants to be long
        case "gauss_newton":
            return _hybrid(sampling(), GaussNewton(starts=2, horizon=horizon, cost=priced), iterations, long=8)
        case "real_time_iteration":
            drawn = sampling(iterations=1, elites=min(samples, max(elites, 2 * STARTS)))
            starts = min(STARTS, drawn.kept_count)
            steps = GaussNewton(
                starts=starts, iterations=max(1, iterations - 1), horizon=horizon, initial_std=1.0, cost=priced
            )
            return Hybrid(drawn, steps, search_when_warm=False, search_one_in=EXPLORED)
        case _:
            raise AssertionError(name)  # refused above


def _hybrid(search: CEM, polish: Gradient | GaussNewton, iterations: int, long: int) -> Hybrid:
    """One iteration samples (two of `long` or more), all others polish, from no more starts than there are elites."""
    if iterations < 2:
        raise PlanningError("planner.iterations", "must be >= 2 to sample and then polish", iterations)
    sampling = 1 if iterations < long else 2
    starts = min(polish.starts, search.kept_count)
    return Hybrid(
        replace(search, iterations=sampling), replace(polish, starts=starts, iterations=iterations - sampling)
    )


def cost(name: str, discount: float = 1.0) -> GoalDistance:
    """What the named optimizer makes small. Raises PlanningError for a name or a discount that there is not."""
    if name not in OPTIMIZERS:
        raise PlanningError("planner.optimizer", f"must be one of {', '.join(OPTIMIZERS)}", name)
    if not LEAST_DISCOUNT <= discount <= MOST_DISCOUNT:
        raise PlanningError("planner.discount", f"must be within {LEAST_DISCOUNT} and {MOST_DISCOUNT}", discount)
    if name == "vjepa2_ac":
        if discount != 1:
            raise PlanningError(
                "planner.discount", "must be 1 for vjepa2_ac, which counts the last step alone", discount
            )
        published = CEM.vjepa2_ac_paper().cost
        assert isinstance(published, GoalDistance)
        return published
    return GoalDistance() if discount == 1 else GoalDistance(over="discounted", discount=discount)


def searched(space: ActionSpace, dimensions: Sequence[str]) -> ActionSpace:
    """The space with every other dimension held at rest (`ActionSpace.rest`); all are searched where none is named.

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
            value if value is not None or name in dimensions else rest
            for name, value, rest in zip(space.names, held, space.rest, strict=True)
        ),
    )
