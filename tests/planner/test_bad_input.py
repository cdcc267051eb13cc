"""What cannot be planned is refused by name, by every optimizer; or it is the committed prefix, and says so."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.anytime import plan_in_time
from planner.optimizers.hybrid import Hybrid
from planner.types import ActionSpace, PlanningError
from planner.world_model import Actions, Context, Latents
from tests.support.planner.every_optimizer import OPTIMIZERS, SMALL, AnyOptimizer, changed, each_optimizer
from tests.support.planner.problems import integrator, reach, space


@dataclass(frozen=True)
class Blind:
    """A model that predicts NaN, whatever it is asked."""

    block: int = 1

    def rollout(self, context: Context, actions: Actions) -> Latents:
        return integrator().rollout(context, actions) * math.nan


@each_optimizer
def test_rollouts_that_are_all_nan_are_never_a_plan(optimizer: AnyOptimizer) -> None:
    for problem in (reach(), reach(warm_start=torch.zeros(4, 2)), reach(committed=torch.zeros(2, 2))):
        with pytest.raises(PlanningError) as refused:
            plan_in_time(optimizer, Blind(), problem)
        assert refused.value.field == "cost"


@each_optimizer
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_goal_that_is_no_place_is_refused(optimizer: AnyOptimizer, value: float) -> None:
    with pytest.raises(PlanningError) as refused:
        optimizer.plan(integrator(), reach((0.1, value)))
    assert refused.value.field == "goal"


@each_optimizer
def test_a_start_that_is_no_place_is_refused(optimizer: AnyOptimizer) -> None:
    with pytest.raises(PlanningError) as refused:
        optimizer.plan(integrator(), replace(reach(), context=(torch.tensor([[0.0, math.nan]]),)))
    assert refused.value.field == "cost"


@each_optimizer
def test_no_horizon_is_refused(optimizer: AnyOptimizer) -> None:
    with pytest.raises(PlanningError) as refused:
        changed(optimizer, horizon=0)
    assert refused.value.field == "horizon"


@pytest.mark.parametrize("optimizer", [OPTIMIZERS[name] for name in ("cem", "icem", "hybrid")])
def test_more_elites_than_samples_are_refused(optimizer: AnyOptimizer) -> None:
    search = optimizer.search if isinstance(optimizer, Hybrid) else optimizer
    with pytest.raises(PlanningError) as refused:
        changed(search, elites=65)
    assert refused.value.field == "elites"


def test_bounds_inside_out_and_frozen_outside_them_are_refused() -> None:
    with pytest.raises(PlanningError, match=r"action_space\.x must have finite low <= high, got \(1.0, -1.0\)"):
        space(bound=-1.0)
    with pytest.raises(PlanningError, match=r"action_space\.frozen\.y must lie in \[-1.0, 1.0\], got 1.5"):
        space(frozen=(None, 1.5))


@each_optimizer
def test_a_deadline_already_past_is_an_error_without_anything_to_execute(optimizer: AnyOptimizer) -> None:
    with pytest.raises(PlanningError) as refused:
        optimizer.plan(integrator(), reach(), deadline=99.0, clock=lambda: 100.0)
    assert refused.value.field == "deadline"


@each_optimizer
def test_a_deadline_already_past_leaves_the_committed_prefix(optimizer: AnyOptimizer) -> None:
    committed = torch.tensor([[0.5, -0.5], [0.25, 0.0]])
    plan = optimizer.plan(integrator(), reach(committed=committed), deadline=99.0, clock=lambda: 100.0)
    assert torch.equal(plan.actions, committed)
    assert torch.equal(plan.distribution.std, torch.zeros(2, 2))
    assert (plan.stop_reason, plan.iterations) == ("deadline", 0)
    assert math.isnan(plan.cost)


@each_optimizer
def test_a_deadline_already_past_keeps_the_committed_prefix_before_a_warm_start(optimizer: AnyOptimizer) -> None:
    committed, warm = torch.tensor([[0.5, -0.5]]), torch.full((4, 2), 0.125)
    problem = reach(committed=committed, warm_start=warm)
    plan = optimizer.plan(integrator(), problem, deadline=99.0, clock=lambda: 100.0)
    assert torch.equal(plan.actions, torch.cat([committed, warm[1:]]))
    assert plan.stop_reason == "deadline"


NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(NUMBERS, NUMBERS),
    st.tuples(NUMBERS, NUMBERS),
    st.none() | st.tuples(st.none() | NUMBERS, st.none() | NUMBERS),
    st.none() | st.tuples(NUMBERS, NUMBERS),
    st.none() | NUMBERS,
    st.none() | st.tuples(st.integers(-1, 5), st.integers(-1, 5)),
)
def test_whatever_the_limits_are_there_is_a_plan_inside_them_or_a_named_error(
    low: tuple[float, float],
    high: tuple[float, float],
    frozen: tuple[float | None, float | None] | None,
    slew: tuple[float, float] | None,
    max_norm: float | None,
    dwell: tuple[int, int] | None,
) -> None:
    try:
        made = ActionSpace(("a", "b"), ("m", "m"), low, high, 10.0, slew, frozen, max_norm, dwell=dwell)
        plan = SMALL.plan(integrator(), reach(space=made))
    except PlanningError as refused:
        assert refused.field
        return
    assert plan.actions.isfinite().all()
    assert (plan.actions.double() >= torch.tensor(low).double()).all()
    assert (plan.actions.double() <= torch.tensor(high).double()).all()
