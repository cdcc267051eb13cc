"""The optimizers that a request or a model package can name, and the part of an action space they search.

For callers who hold settings as plain values; in Python, make an optimizer from its own class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

from presage.limits import ActionLimits
from presage.optimizers import Metric, check_cost, check_metric, check_optimizer

from planner.anytime import Optimizer
from planner.constraints import limited
from planner.cost import ChannelDistance, GoalDistance
from planner.noise import TimeCorrelatedNoise
from planner.optimizers.cem import CEM
from planner.optimizers.gauss_newton import GaussNewton
from planner.optimizers.gradient import Gradient
from planner.optimizers.hybrid import Hybrid
from planner.optimizers.mppi import MPPI
from planner.optimizers.policy import Policy
from planner.receding import Tail
from planner.types import ActionSpace, PlanningError, refused

PUBLISHED: Mapping[str, CEM] = {
    "vjepa2_ac": CEM.vjepa2_ac_paper(),
    "lewm": CEM.lewm_paper(),
    "dino_wm": CEM.dino_wm_paper(),
    "jepa_wms": CEM.jepa_wms_paper(),
    "jepa_wms_droid": CEM.jepa_wms_droid_paper(),
}
"""Published searches at their published sizes."""
EXPLORED = 3  # of so many plans of real-time iteration one samples first, to leave a valley that steps cannot
REPLACE_MARGIN = 0.1  # of its cost, by which a plan of real-time iteration beats what is left of the last one: a search
# beside the goal finds plans that the model alone takes for better, and the robot leaves the goal for a moment
STARTS = 4  # of real-time iteration: the plan under way, and three drawn widely around it
BY_MODEL_STEPS = TimeCorrelatedNoise(action=0.0)
"""Real-time iteration draws and changes the actions of a model step together. A cost sees only where a step ends: a
plan with actions of its own may leave the goal and come back within a step, and a loop that replans within it leaves
again, and again."""


def optimizer(
    name: str, samples: int, iterations: int, elites: int, horizon: int, discount: float = 1.0, over: str = ""
) -> Optimizer:
    """The named optimizer at that size; `samples` are the starts of `gradient`, and only CEMs have elites.

    `over` names the steps that count, empty for the optimizer's own choice, and `discount` is the weight of each model
    step's distance to the goal, relative to the step before. Raises PlanningError for an unknown name, or a size or a
    discount that its class refuses.
    """
    priced = cost(name, discount, over)
    sampling = partial(CEM, samples=samples, elites=elites, horizon=horizon, cost=priced)
    match name:
        case "cem":
            return sampling(iterations=iterations)
        case "icem":
            return replace(
                CEM.icem(), samples=samples, iterations=iterations, elites=elites, horizon=horizon, cost=priced
            )
        case published if published in PUBLISHED:
            return replace(
                PUBLISHED[published],
                samples=samples,
                iterations=iterations,
                elites=elites,
                horizon=horizon,
                cost=priced,
            )
        case "policy":
            return Policy(horizon=horizon, cost=priced)
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
            drawn = sampling(iterations=1, elites=min(samples, max(elites, 2 * STARTS)), noise=BY_MODEL_STEPS)
            stepping = max(1, iterations - 1)
            steps = GaussNewton(
                starts=min(STARTS, drawn.kept_count),
                iterations=stepping,
                opening=stepping,
                horizon=horizon,
                initial_std=1.0,
                noise=BY_MODEL_STEPS,
                cost=priced,
            )
            return Hybrid(drawn, steps, search_when_warm=False, search_one_in=EXPLORED, replace_margin=REPLACE_MARGIN)
        case _:
            raise AssertionError(name)  # refused above


class Settings(Protocol):
    """A search's settings as plain values: of a package (`model.package.PlannerDefaults`) or of a request."""

    @property
    def optimizer(self) -> str: ...

    @property
    def samples(self) -> int: ...

    @property
    def iterations(self) -> int: ...

    @property
    def elites(self) -> int: ...

    @property
    def horizon(self) -> int: ...

    @property
    def discount(self) -> float: ...

    @property
    def cost(self) -> str: ...


def configured(settings: Settings) -> Optimizer:
    """The optimizer that settings name. Raises PlanningError as `optimizer` does."""
    return optimizer(
        settings.optimizer,
        settings.samples,
        settings.iterations,
        settings.elites,
        settings.horizon,
        settings.discount,
        settings.cost,
    )


def _hybrid(search: CEM, polish: Gradient | GaussNewton, iterations: int, long: int) -> Hybrid:
    """One iteration samples (two of `long` or more), all others polish, from no more starts than there are elites."""
    if iterations < 2:
        raise PlanningError("planner.iterations", "must be >= 2 to sample and then polish", iterations)
    sampling = 1 if iterations < long else 2
    starts = min(polish.starts, search.kept_count)
    return Hybrid(
        replace(search, iterations=sampling), replace(polish, starts=starts, iterations=iterations - sampling)
    )


def cost(name: str, discount: float = 1.0, over: str = "") -> GoalDistance:
    """What the named optimizer makes small. Raises PlanningError for a name or a discount that there is not."""
    check_optimizer(name, refused)
    check_cost(name, discount, over or None, refused)
    if name in PUBLISHED:
        published = PUBLISHED[name].cost
        assert isinstance(published, GoalDistance)
        return published
    if over == "last":
        return GoalDistance(over="last")
    if over == "least":
        return GoalDistance(over="least")
    return GoalDistance() if discount == 1 else GoalDistance(over="discounted", discount=discount)


def tail(name: str) -> Tail:
    """What follows what is left of a plan, as the named optimizer's warm start (`receding.of_length`)."""
    return "mean" if name in PUBLISHED and PUBLISHED[name].unbounded else "rest"


class Actions(Protocol):
    """The actions of a model as its package describes them (`model.package.ActionSpec`)."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def units(self) -> tuple[str, ...]: ...

    @property
    def low(self) -> tuple[float, ...]: ...

    @property
    def high(self) -> tuple[float, ...]: ...

    @property
    def rate_hz(self) -> float: ...

    @property
    def mean(self) -> tuple[float, ...]: ...

    @property
    def std(self) -> tuple[float, ...]: ...

    @property
    def at_rest(self) -> tuple[float, ...]: ...

    @property
    def limits(self) -> ActionLimits | None: ...


def action_space(actions: Actions, narrower: ActionLimits | None = None) -> ActionSpace:
    """What plans with these actions must keep to: the package's limits, or `narrower` ones in their place."""
    space = ActionSpace(
        names=actions.names,
        units=actions.units,
        low=actions.low,
        high=actions.high,
        rate_hz=actions.rate_hz,
        mean=actions.mean,
        std=actions.std,
        stated_rest=actions.at_rest,
    )
    return limited(space, narrower or actions.limits)


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


def by_channels(optimizer: Optimizer, groups: tuple[tuple[int, float], ...]) -> Optimizer:
    """The optimizer with its distance to the goal taken of each group of channels: their number, and its weight."""
    if isinstance(optimizer, Hybrid):
        return replace(
            optimizer,
            search=cast(CEM, by_channels(optimizer.search, groups)),
            polish=cast("Gradient | GaussNewton", by_channels(optimizer.polish, groups)),
        )
    assert isinstance(optimizer.cost, GoalDistance)
    return replace(optimizer, cost=ChannelDistance(groups, optimizer.cost))  # type: ignore[type-var]  # a dataclass


def adjusted(
    optimizer: Optimizer, metric: str = "", narrowing: float | None = None, sample_decay: float | None = None
) -> Optimizer:
    """The optimizer with another distance to the goal, and with rates of its own where it has them; empty keeps its.

    `narrowing` is the share of the std that MPPI leaves one iteration later, `sample_decay` the share of the samples
    that CEMs leave: at 1 all iterations roll out as many. Raises PlanningError for a metric that there is not, for a
    rate outside its range, and for one that the optimizer does not have.
    """
    if isinstance(optimizer, Hybrid):
        if narrowing is not None:
            raise PlanningError("planner.narrowing", "must be left out but for mppi", narrowing)
        return replace(
            optimizer,
            search=cast(CEM, adjusted(optimizer.search, metric, None, sample_decay)),
            polish=cast("Gradient | GaussNewton", adjusted(optimizer.polish, metric)),
        )
    settings: dict[str, Any] = {}
    if metric:
        check_metric(metric, refused)
        assert isinstance(optimizer.cost, GoalDistance)
        settings["cost"] = replace(optimizer.cost, metric=cast(Metric, metric))
    if narrowing is not None:
        if not isinstance(optimizer, MPPI):
            raise PlanningError("planner.narrowing", "must be left out but for mppi", narrowing)
        settings["narrowing"] = narrowing
    if sample_decay is not None:
        if not isinstance(optimizer, CEM):
            raise PlanningError("planner.sample_decay", "must be left out but for searches by samples", sample_decay)
        settings["sample_decay"] = sample_decay
    return replace(optimizer, **settings) if settings else optimizer  # type: ignore[type-var]  # each is a dataclass
