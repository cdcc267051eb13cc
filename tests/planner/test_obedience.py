"""No action that any optimizer evaluates or returns breaks a limit, whatever the limits are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from presage.limits import held_for
from torch import Tensor

from planner import registry
from planner.anytime import plan_in_time
from planner.constraints import project
from planner.optimizers.cem import CEM
from planner.optimizers.policy import Policy
from planner.receding import warm_start
from planner.types import ActionSpace, Problem
from planner.world_model import Actions, Context, Latents
from tests.planner.test_constraints import spaces, violations
from tests.support.planner.every_optimizer import OPTIMIZERS, SMALL, AnyOptimizer, changed

TINY: dict[str, AnyOptimizer] = {
    name: changed(optimizer, iterations=3, horizon=3) for name, optimizer in OPTIMIZERS.items()
} | {"mean": replace(SMALL, samples=16, elites=4, iterations=3, horizon=3, result="mean")}

# Those that are published search beyond the bounds of a space that is not strict.
PUBLISHED = {
    name: replace(registry.PUBLISHED[name], samples=16, elites=4, iterations=3, horizon=3)
    for name in registry.PUBLISHED
}

# Adding to a sequence what a projection had changed of it broke this dwell by one rounding.
KEPT = ActionSpace(names=("a", "b"), units=("1", "1"), low=(0.0, 0.0), high=(0.1, 0.1), rate_hz=10.0, dwell=(1, 2))


@dataclass(frozen=True)
class Watched:
    """Adds actions up, in units of the widest range; remembers what it was asked."""

    size: float
    asked: list[Tensor] = field(default_factory=list)
    block: int = 2

    def rollout(self, context: Context, actions: Actions) -> Latents:
        self.asked.append(actions.detach().clone())
        return context[0][:, None, None] + (actions / self.size).cumsum(2)[:, :, 1::2]


def problem_in(made: ActionSpace, seed: int, moving: bool, committed: int) -> Problem:
    """A goal far off, from any action before, with any actions under way and any warm start."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(made.low), torch.tensor(made.high)
    wild = (low + high) / 2 + (high - low) * torch.randn(12, made.dimensions, generator=generator)
    before = project(made, wild[:4])
    previous, held = (before[-1], held_for(before.tolist())) if moving else (None, None)
    under_way = project(made, wild[4:6], previous, held=held)[:committed] if committed else None
    return Problem(
        context=(torch.zeros(1, made.dimensions),),
        goal=torch.randn(made.dimensions, generator=generator),
        space=made,
        seed=seed,
        warm_start=wild[6:] if seed % 2 else None,
        previous_action=previous,
        held=held,
        committed=under_way,
    )


@pytest.mark.parametrize("optimizer", TINY.values(), ids=TINY.keys())
@settings(max_examples=40, deadline=None)
@example(made=KEPT, seed=1, moving=True, committed=0)
@given(spaces(), st.integers(0, 2**31), st.booleans(), st.integers(0, 2))
def test_no_action_breaks_a_limit(
    optimizer: AnyOptimizer, made: ActionSpace, seed: int, moving: bool, committed: int
) -> None:
    problem = problem_in(made, seed, moving, committed)
    world = Watched(max(high - low for low, high in zip(made.low, made.high, strict=True)))
    plan = plan_in_time(optimizer, world, problem)
    for actions in (*world.asked, plan.actions):
        assert violations(made, actions, problem.previous_action, problem.held) == []
    if problem.committed is not None:
        assert torch.equal(plan.actions[:committed], problem.committed)


@pytest.mark.parametrize("optimizer", PUBLISHED.values(), ids=PUBLISHED.keys())
@settings(max_examples=40, deadline=None)
@given(spaces(), st.integers(0, 2**31), st.booleans(), st.integers(0, 2))
def test_no_sample_of_a_published_search_breaks_a_limit_of_a_strict_space(
    optimizer: CEM, made: ActionSpace, seed: int, moving: bool, committed: int
) -> None:
    middle = tuple((low + high) / 2 for low, high in zip(made.low, made.high, strict=True))
    made = replace(made, strict=True, mean=middle, std=(3.0,) * made.dimensions)
    problem = problem_in(made, seed, moving, committed)
    world = Watched(max(high - low for low, high in zip(made.low, made.high, strict=True)))
    plan = plan_in_time(optimizer, world, problem)
    for actions in (*world.asked, plan.actions):
        assert violations(made, actions, problem.previous_action, problem.held) == []


@settings(max_examples=40, deadline=None)
@given(spaces(), st.integers(0, 2**31), st.booleans())
def test_no_proposal_breaks_a_limit(made: ActionSpace, seed: int, moving: bool) -> None:
    problem = problem_in(made, seed, moving, committed=0)
    wild = 50 * torch.randn(3, 6, made.dimensions, generator=torch.Generator().manual_seed(seed))
    problem = replace(problem, proposals=wild)
    world = Watched(max(high - low for low, high in zip(made.low, made.high, strict=True)))
    for optimizer in (TINY["cem"], Policy(horizon=3)):
        plan = plan_in_time(optimizer, world, problem)
        for actions in (*world.asked, plan.actions):
            assert violations(made, actions, problem.previous_action, problem.held) == []


def _listed(action: Tensor | None) -> list[float] | None:
    return None if action is None else action.tolist()


@settings(max_examples=40, deadline=None)
@given(spaces(), st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6))
def test_what_is_executed_over_several_plans_breaks_no_limit(
    made: ActionSpace, seed: int, first: int, second: int
) -> None:
    world = Watched(max(high - low for low, high in zip(made.low, made.high, strict=True)))
    problem, sent = problem_in(made, seed, moving=False, committed=0), []
    for executed in (first, second, 2):
        plan = plan_in_time(TINY["cem"], world, problem)
        sent.append(plan.actions[:executed])
        rest = warm_start(plan, executed, made)
        held = held_for(sent[-1].tolist(), _listed(problem.previous_action), problem.held)
        assert torch.equal(rest[: 6 - executed], plan.actions[executed:])
        assert violations(made, rest, plan.actions[executed - 1], held) == []
        problem = replace(problem, warm_start=rest, previous_action=plan.actions[executed - 1], held=held)
    assert violations(made, torch.cat(sent), None) == []
