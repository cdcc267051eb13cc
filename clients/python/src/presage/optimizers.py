"""The searches that a request or a model package may name, and the rules of what they make small.

Names alone, without torch: `planner.registry` makes the searches, and client, service and planner refuse the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from presage.protocol.arrays import Refuse

OptimizerName = Literal[
    "cem",
    "icem",
    "mppi",
    "gradient",
    "hybrid",
    "gauss_newton",
    "real_time_iteration",
    "vjepa2_ac",
    "lewm",
    "dino_wm",
    "jepa_wms",
    "jepa_wms_droid",
    "policy",
]
"""Five are published searches, whose cost is of the last step alone: `vjepa2_ac` (white noise, L1, gripper rules, the
last mean), `lewm`, `dino_wm` and `jepa_wms` (white noise and squared L2 in units of the training actions' std, not
bounded but for the plan, the last mean), which differ in their sizes, and `jepa_wms_droid` (the same within bounds).
`real_time_iteration` (Diehl et al. 2005) spreads a search over the plans of a control loop: each takes a step or two of
Gauss-Newton from the plan under way and from a few others. Without a plan to begin with it samples once first. `policy`
is what a package's proposer says, in one pass and without a search."""
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
LAST_STEP_ALONE = ("vjepa2_ac", "lewm", "dino_wm", "jepa_wms", "jepa_wms_droid")
UNBOUNDED = ("lewm", "dino_wm", "jepa_wms")
"""Candidates of these go beyond the bounds where no limit is set; plans do not."""
SAMPLING = ("cem", "icem", "hybrid", "gauss_newton", "real_time_iteration", *LAST_STEP_ALONE)
PROPOSER_ALONE = "policy"
CostName = Literal["sum", "last", "least"]
"""What of a plan's steps counts."""
COSTS: tuple[str, ...] = get_args(CostName)
Metric = Literal["l2", "l1", "rms", "cosine"]
"""Distance of latents."""
METRICS: tuple[str, ...] = get_args(Metric)
LEAST_DISCOUNT, MOST_DISCOUNT = 0.1, 10.0


def check_optimizer(name: str, refuse: Refuse, field: str = "planner.optimizer") -> None:
    """Raises what `refuse` makes for a name that there is not."""
    if name not in OPTIMIZERS:
        raise refuse(field, f"must be one of {', '.join(OPTIMIZERS)}", name, "INVALID_FIELD")


def check_metric(metric: str, refuse: Refuse, field: str = "planner.metric") -> None:
    """Raises what `refuse` makes for a distance of latents that there is not."""
    if metric not in METRICS:
        raise refuse(field, f"must be one of {', '.join(METRICS)}", metric, "INVALID_FIELD")


def check_cost(optimizer: str, discount: float, cost: str | None, refuse: Refuse, field: str = "planner") -> None:
    """Raises what `refuse` makes for a cost that there is not, or that an optimizer has not, and for a wrong discount.

    `cost` None is the optimizer's own.
    """

    def check(holds: bool, name: str, rule: str, value: object) -> None:
        if not holds:
            raise refuse(f"{field}.{name}", rule, value, "INVALID_FIELD")

    check(cost is None or cost in COSTS, "cost", f"must be one of {', '.join(COSTS)}", cost)
    in_range = LEAST_DISCOUNT <= discount <= MOST_DISCOUNT
    check(in_range, "discount", f"must be within {LEAST_DISCOUNT} and {MOST_DISCOUNT}", discount)
    if optimizer in LAST_STEP_ALONE:
        alone = f"for {optimizer}, which counts the last step alone"
        check(cost in (None, "last"), "cost", f"must be last {alone}", cost)
        check(discount == 1, "discount", f"must be 1 {alone}", discount)
    elif cost in ("last", "least"):
        check(discount == 1, "discount", f"must be 1 with the cost {cost}, which counts one step alone", discount)
