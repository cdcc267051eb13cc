from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planner.constraints import limits_of, project
from planner.limits import project_within, stack_limits
from planner.optimizers.gradient import Gradient
from planner.types import ActionSpace, PlanningError
from tests.support.planner.problems import integrator, reach, space

EDGES = st.floats(-50, 50, allow_nan=False).map(lambda x: round(x, 3))


@st.composite
def spaces(draw: st.DrawFn) -> ActionSpace:
    """Any feasible mixture of bounds, frozen dimensions, a norm cap, a slew limit and a dwell."""
    dimensions = draw(st.integers(1, 4))
    low, high, frozen, slew = [], [], [], []
    for _ in range(dimensions):
        start, width = draw(EDGES), draw(st.sampled_from([0.1, 0.3, 2.0, 70.0]))
        low.append(start)
        high.append(start + width)
        frozen.append(draw(st.sampled_from([None, None, start + 0.7 * width])))
        slew.append(draw(st.sampled_from([0.001, 0.1, 5.0])))
    made = ActionSpace(
        names=tuple("abcd"[:dimensions]),
        units=("1",) * dimensions,
        low=tuple(low),
        high=tuple(high),
        rate_hz=10.0,
        slew=tuple(slew) if draw(st.booleans()) else None,
        frozen=tuple(frozen) if draw(st.booleans()) else None,
        dwell=tuple(draw(st.integers(1, 4)) for _ in range(dimensions)) if draw(st.booleans()) else None,
    )
    if not draw(st.booleans()):
        return made
    order = draw(st.sampled_from([1, 2]))
    counted = tuple(name for name in made.names if draw(st.booleans())) or None
    held = made.frozen or (None,) * dimensions
    least = torch.tensor(
        [
            max(a, min(b, 0.0)) if f is None else f
            for name, a, b, f in zip(made.names, made.low, made.high, held, strict=True)
            if counted is None or name in counted
        ],
        dtype=torch.float64,
    )
    slack = draw(st.sampled_from([1e-3, 0.1, 10.0]))
    cap = torch.linalg.vector_norm(least, ord=order).item() + slack
    return replace(made, max_norm=cap, norm_order=order, norm_of=counted)


def broken_dwells(made: ActionSpace, actions: Tensor, previous: Tensor | None, held: tuple[float, ...] | None) -> int:
    """How often a value in actions [time, action] gives way before its time, counted action by action."""
    broken = 0
    for index, least in enumerate(made.dwell or ()):
        value = None if previous is None else previous[index].item()
        count = math.inf if held is None else held[index]
        for action in actions[:, index].tolist():
            broken += value is not None and action != value and count < least
            count = count + 1 if action == value else 1
            value = action
    return broken


def violations(
    made: ActionSpace, actions: Tensor, previous: Tensor | None, held: tuple[float, ...] | None = None
) -> list[str]:
    """What actions [..., time, action] break, judged in float64 without any tolerance (but the frozen value's own)."""
    exact, broken = actions.double(), []
    if (exact < torch.tensor(made.low, dtype=torch.float64)).any():
        broken.append("low")
    if (exact > torch.tensor(made.high, dtype=torch.float64)).any():
        broken.append("high")
    for index, value in enumerate(made.frozen or ()):
        if value is not None and (exact[..., index] - value).abs().max() > 1e-6 * max(1.0, abs(value)):
            broken.append("frozen")
    if made.max_norm is not None:
        frozen_rounding = 1e-5 if any(value is not None for value in made.frozen or ()) else 0.0
        counted = [index for index, name in enumerate(made.names) if made.norm_of is None or name in made.norm_of]
        norms = torch.linalg.vector_norm(exact[..., counted], ord=made.norm_order, dim=-1)
        if (norms > made.max_norm + frozen_rounding).any():
            broken.append("norm")
    if made.slew is not None:
        if previous is not None:
            exact = torch.cat([previous.double().expand_as(exact[..., :1, :]), exact], dim=-2)
        if (exact.diff(dim=-2).abs() > torch.tensor(made.slew, dtype=torch.float64)).any():
            broken.append("slew")
    if any(broken_dwells(made, each, previous, held) for each in actions.reshape(-1, *actions.shape[-2:])):
        broken.append("dwell")
    return broken


@settings(max_examples=300, deadline=None)
@given(spaces(), st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([0.1, 3.0, 1e4]), st.booleans())
def test_no_projected_action_violates_anything(
    made: ActionSpace, seed: int, time: int, size: float, moving: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    middle = (torch.tensor(made.low) + torch.tensor(made.high)) / 2
    wild = middle + size * torch.randn(5, time, made.dimensions, generator=generator)
    previous = project(made, wild[0, :1] * 0.5)[0] if moving else None
    held = tuple(torch.randint(1, 5, (made.dimensions,), generator=generator).tolist()) if moving else None
    projected = project(made, wild, previous, held=held)
    assert violations(made, projected, previous, held) == []
    assert torch.equal(project(made, projected, previous, held=held), projected)


@settings(max_examples=100, deadline=None)
@given(spaces(), st.integers(0, 2**31), st.integers(1, 4))
def test_committed_actions_are_kept_and_what_follows_obeys(made: ActionSpace, seed: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    wild = 30 * torch.randn(3, 6, made.dimensions, generator=generator)
    committed = project(made, wild[0])[:steps]
    projected = project(made, wild, None, committed)
    assert torch.equal(projected[:, :steps], committed.expand(3, -1, -1))
    assert violations(made, projected, None) == []


@settings(max_examples=100, deadline=None)
@given(spaces(), spaces(), st.integers(0, 2**31))
def test_a_batch_projects_each_search_by_its_own_limits(first: ActionSpace, second: ActionSpace, seed: int) -> None:
    made = [first, second] if first.dimensions == second.dimensions else [first, first]
    wild = 10 * torch.randn(2, 4, 3, first.dimensions, generator=torch.Generator().manual_seed(seed))
    together = project_within(stack_limits([limits_of(each, 3) for each in made]), wild)
    for row, each in enumerate(made):
        torch.testing.assert_close(together[row], project(each, wild[row]))
        assert violations(each, together[row], None) == []


def test_what_obeys_everything_is_returned_unchanged() -> None:
    made = space(2, slew=0.5, max_norm=1.2)
    calm = torch.tensor([[0.1, 0.2], [0.4, -0.2], [0.0, -0.1]])
    assert torch.equal(project(made, calm), calm)


def test_a_norm_cap_scales_an_action_and_keeps_its_direction() -> None:
    projected = project(space(2, bound=5.0, max_norm=1.0), torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(projected, torch.tensor([[0.6, 0.8]]))
    projected = project(space(2, bound=5.0, max_norm=1.0, norm_order=1), torch.tensor([[3.0, -1.0]]))
    torch.testing.assert_close(projected, torch.tensor([[0.75, -0.25]]))


def test_slew_starts_from_the_last_action_executed() -> None:
    made = space(1, slew=0.25)
    projected = project(made, torch.ones(5, 1), torch.tensor([-0.5]))
    torch.testing.assert_close(projected.flatten(), torch.tensor([-0.25, 0.0, 0.25, 0.5, 0.75]))


def test_a_committed_step_of_exactly_the_slew_limit_is_kept_to_the_last_bit() -> None:
    committed = torch.tensor([[0.25], [0.5], [0.75]])
    projected = project(space(1, slew=0.25), torch.zeros(5, 1), torch.zeros(1), committed)
    assert torch.equal(projected[:3], committed)
    torch.testing.assert_close(projected[3:].flatten(), torch.tensor([0.5, 0.25]))


def test_bounds_that_float32_cannot_hold_are_rounded_inwards() -> None:
    made = ActionSpace(("a",), ("m",), (-0.1,), (0.3,), 10.0)
    projected = project(made, torch.tensor([[-1.0], [1.0]])).double()
    assert projected.min() >= -0.1
    assert projected.max() <= 0.3


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"low": (1.5, -1.0)}, "action_space.x"),
        ({"low": (float("nan"), -1.0)}, "action_space.x"),
        ({"frozen": (2.0, None)}, "action_space.frozen.x"),
        ({"slew": (0.0, 1.0)}, "action_space.slew"),
        ({"slew": (0.1,)}, "action_space.slew"),
        ({"max_norm": 0.0}, "action_space.max_norm"),
        ({"frozen": (0.8, None), "max_norm": 0.5}, "action_space.max_norm"),
        ({"low": (0.5, 0.5), "max_norm": 0.6}, "action_space.max_norm"),
        ({"norm_of": ()}, "action_space.norm_of"),
        ({"norm_of": ("x", "z")}, "action_space.norm_of"),
        ({"max_norm": 0.5, "norm_order": 3}, "action_space.norm_order"),
        ({"dwell": (0, 1)}, "action_space.dwell"),
        ({"dwell": (1.5, 1)}, "action_space.dwell"),
        ({"dwell": (float("inf"), 1)}, "action_space.dwell"),
        ({"dwell": (2,)}, "action_space.dwell"),
        ({"rate_hz": 0.0}, "action_space.rate_hz"),
        ({"names": ()}, "action_space.names"),
    ],
)
def test_an_action_space_nothing_fits_is_refused_by_name(settings: dict[str, object], field: str) -> None:
    with pytest.raises(PlanningError) as refused:
        replace(space(2), **settings)  # type: ignore[arg-type]
    assert refused.value.field == field


def test_what_no_action_can_obey_from_here_is_refused_by_name() -> None:
    with pytest.raises(PlanningError, match=r"previous_action\.x must be within one slew step of \[-1, 1\], got 3"):
        project(space(1, slew=0.25), torch.zeros(4, 1), torch.tensor([3.0]))
    with pytest.raises(PlanningError, match="previous_action must reach norm 1"):
        project(space(2, bound=3.0, slew=0.25, max_norm=1.0), torch.zeros(4, 2), torch.tensor([3.0, 3.0]))
    with pytest.raises(PlanningError, match=r"committed\[1\]\.x must obey the action space"):
        project(space(1, slew=0.25), torch.zeros(4, 1), None, torch.tensor([[0.0], [0.9]]))
    with pytest.raises(PlanningError, match=r"committed must be \[at most 1, 1\]"):
        project(space(1), torch.zeros(1, 1), None, torch.zeros(2, 1))
    with pytest.raises(PlanningError, match=r"action_space\.slew\.x must exceed the rounding"):
        project(space(1, bound=1e6, slew=0.01), torch.zeros(1, 1))
    with pytest.raises(PlanningError, match="actions must have 2 entries each"):
        project(space(2), torch.zeros(4, 3))


def test_a_dwell_keeps_a_value_until_its_time_is_over() -> None:
    made = space(2, dwell=(3, 1))
    wanted = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.4, 0.4], [0.4, 0.5], [0.4, 0.6], [0.5, 0.7]])
    projected = project(made, wanted)
    torch.testing.assert_close(projected[:, 0], torch.tensor([0.1, 0.1, 0.1, 0.4, 0.4, 0.4, 0.5]))
    assert torch.equal(projected[:, 1], wanted[:, 1])


def test_a_dwell_counts_what_was_executed_before_the_plan() -> None:
    wanted = torch.tensor([[0.5], [0.6], [0.7], [0.8], [0.9]])
    projected = project(space(1, dwell=(3,)), wanted, torch.tensor([0.1]), held=(1,))
    torch.testing.assert_close(projected.flatten(), torch.tensor([0.1, 0.1, 0.7, 0.7, 0.7]))
    projected = project(space(1, dwell=(3,)), wanted, torch.tensor([0.1]), held=(7,))
    torch.testing.assert_close(projected.flatten(), torch.tensor([0.5, 0.5, 0.5, 0.8, 0.8]))


def test_a_value_wanted_for_longer_than_its_dwell_may_change_at_any_time_after() -> None:
    calm = torch.tensor([[0.1], [0.1], [0.1], [0.4], [0.4], [-0.2], [-0.2], [-0.2], [-0.2], [0.0]])
    assert torch.equal(project(space(1, dwell=(2,)), calm), calm)


def test_a_dwell_and_a_slew_limit_change_values_seldom_and_a_little() -> None:
    projected = project(space(1, slew=0.25, dwell=(2,)), torch.ones(6, 1), torch.tensor([0.0]), held=(2,))
    torch.testing.assert_close(projected.flatten(), torch.tensor([0.25, 0.25, 0.5, 0.5, 0.75, 0.75]))


def test_a_norm_of_some_dimensions_leaves_the_others_alone() -> None:
    made = space(3, bound=5.0, max_norm=1.0, norm_of=("x", "y"))
    torch.testing.assert_close(project(made, torch.tensor([[3.0, 4.0, 5.0]])), torch.tensor([[0.6, 0.8, 5.0]]))


def test_descent_knows_what_a_kept_value_does_later() -> None:
    problem = reach((0.3, -0.2), space=space(bound=3.0, dwell=(2, 2)))
    plan = Gradient(iterations=80, horizon=4).plan(integrator(), problem)
    # Two values a and b, each kept twice: the positions are 0.1 a, 0.2 a, 0.2 a + 0.1 b, 0.2 a + 0.2 b.
    positions = torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.2, 0.1], [0.2, 0.2]]).double()
    wanted = problem.goal.double().expand(4, 2)
    best = torch.linalg.lstsq(positions, wanted).solution  # [value, dimension]
    least = (positions @ best - wanted).square().mean(-1).sum().item()
    assert best.abs().max() < 3.0
    assert least - 1e-6 <= plan.cost <= 1.001 * least


@pytest.mark.parametrize(
    ("made", "previous", "held", "message"),
    [
        (space(1, dwell=(3,)), [0.5], None, "held must say how long previous_action was kept"),
        (space(1, dwell=(3,)), [0.5], (0,), "held must be 1 numbers >= 1"),
        (space(1, dwell=(3,)), [0.5], (1, 1), "held must be 1 numbers >= 1"),
        (space(1, dwell=(3,)), [1.5], (1,), r"previous_action\.x must lie in \[-1, 1\], as it has to be kept"),
        (space(1, dwell=(3,), frozen=(0.25,)), [0.5], (1,), r"previous_action\.x must lie in \[0\.25, 0\.25\]"),
        (space(2, dwell=(3, 3), max_norm=0.5), [0.5, 0.5], (1, 1), "previous_action must reach norm 0.5"),
    ],
)
def test_what_a_dwell_makes_impossible_is_refused_by_name(
    made: ActionSpace, previous: list[float], held: tuple[float, ...] | None, message: str
) -> None:
    with pytest.raises(PlanningError, match=message):
        project(made, torch.zeros(4, made.dimensions), torch.tensor(previous), held=held)


def test_committed_actions_that_break_a_dwell_are_refused() -> None:
    with pytest.raises(PlanningError, match=r"committed\[1\]\.x must obey the action space"):
        project(space(1, dwell=(2,)), torch.zeros(4, 1), None, torch.tensor([[0.0], [0.5]]))
