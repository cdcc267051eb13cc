from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from planner.anytime import IterationClock, Pace
from planner.optimizers.cem import CEM
from planner.optimizers.gradient import Gradient
from planner.optimizers.hybrid import Hybrid
from planner.types import PlanningError
from planner.world_model import Actions, Context, Latents
from tests.support.planner.problems import integrator, reach

SETTINGS = CEM(samples=16, iterations=50, elites=4, horizon=4)


@dataclass
class SlowWorld:
    """An integrator on a clock of its own: every rollout takes the next of `durations`, then the last one."""

    durations: list[float]
    now: float = 100.0
    ends: list[float] = field(default_factory=list)
    block: int = 1

    def clock(self) -> float:
        return self.now

    def rollout(self, context: Context, actions: Actions) -> Latents:
        self.now += self.durations[min(len(self.ends), len(self.durations) - 1)]
        self.ends.append(self.now)
        return integrator().rollout(context, actions)


@pytest.mark.parametrize("duration", [0.001, 0.01, 0.03, 0.099])
def test_no_iteration_ends_past_the_deadline(duration: float) -> None:
    world = SlowWorld([duration])
    plan = SETTINGS.plan(world, reach(), deadline=100.1, clock=world.clock)
    assert world.now <= 100.1
    assert plan.iterations == len(world.ends) >= 1
    assert plan.stop_reason == ("iterations" if duration == 0.001 else "deadline")


def test_an_unsteady_machine_is_given_more_room() -> None:
    unsteady = [0.010, 0.014, 0.006, 0.013, 0.008, 0.015] * 4
    for deadline in (100.05, 100.08, 100.13, 100.2):
        world = SlowWorld(unsteady)
        SETTINGS.plan(world, reach(), deadline=deadline, clock=world.clock)
        assert world.now <= deadline


def test_a_first_iteration_that_had_to_warm_up_is_forgotten() -> None:
    clock = IterationClock()
    clock.observe(0.5)
    assert clock.estimate_s > 0.5
    clock.observe(0.01)
    assert clock.estimate_s < 0.02
    clock.observe(0.5)  # not the first: it may happen again
    assert clock.estimate_s > 0.1


def test_most_of_the_time_there_is_gets_used() -> None:
    world = SlowWorld([0.01])
    plan = SETTINGS.plan(world, reach(), deadline=100.2, clock=world.clock)
    assert plan.iterations >= 17


def test_a_learned_pace_forbids_an_iteration_that_would_end_late() -> None:
    world = SlowWorld([0.03])
    pace = Pace()
    SETTINGS.plan(world, reach(), deadline=100.5, clock=world.clock, pace=pace)
    assert pace.estimate_s(16 * 4) == pytest.approx(0.03, rel=0.15)
    begun = len(world.ends)
    with pytest.raises(PlanningError, match="deadline was hit before the first iteration"):
        SETTINGS.plan(world, reach(), deadline=world.now + 0.02, clock=world.clock, pace=pace)
    assert len(world.ends) == begun


def test_a_pace_is_kept_for_each_size_of_iteration() -> None:
    pace = Pace()
    assert pace.estimate_s(100) == 0
    for _ in range(40):
        pace.observe(100, 0.010)
        pace.observe(400, 0.030)
    assert pace.estimate_s(100) == pytest.approx(0.010, rel=0.01)
    assert pace.estimate_s(400) == pytest.approx(0.030, rel=0.01)
    assert pace.estimate_s(200) == pytest.approx(0.020, rel=0.01)  # twice a smaller one
    assert pace.estimate_s(390) == pytest.approx(0.030, rel=0.01)  # no more than a larger one
    assert pace.estimate_s(50) == pytest.approx(0.010, rel=0.01)
    assert pace.estimate_s(800) == pytest.approx(0.060, rel=0.01)


@dataclass
class LaboriousWorld:
    """An integrator on a clock of its own, on which every step of a candidate takes a tenth of a millisecond."""

    now: float = 100.0
    block: int = 1

    def clock(self) -> float:
        return self.now

    def rollout(self, context: Context, actions: Actions) -> Latents:
        steps = actions.shape[:3].numel() * (3 if actions.requires_grad else 1)
        self.now += 1e-4 * steps
        return integrator().rollout(context, actions)


@pytest.mark.parametrize(
    "optimizer",
    [
        Hybrid(CEM(64, 2, 8, 4), Gradient(2, 10, 4)),
        CEM(64, 8, 4, 4, sample_decay=0.5),
        CEM(64, 8, 4, 4, full_above=0.2),
    ],
    ids=["hybrid", "decaying", "adaptive"],
)
def test_iterations_of_unequal_size_are_never_late_once_known(optimizer: Hybrid | CEM) -> None:
    world, pace = LaboriousWorld(), Pace()
    optimizer.plan(world, reach(), clock=world.clock, pace=pace)
    for seed in range(20):
        began, allowed = world.now, 0.04 + 0.005 * seed
        plan = optimizer.plan(world, reach(seed=seed), deadline=began + allowed, clock=world.clock, pace=pace)
        assert world.now <= began + allowed
        assert plan.iterations >= 1
    with pytest.raises(PlanningError, match="deadline was hit before the first iteration"):
        optimizer.plan(world, reach(), deadline=world.now + 0.002, clock=world.clock, pace=pace)


def test_a_deadline_already_past_returns_the_warm_start_and_says_that_nothing_was_evaluated() -> None:
    world = SlowWorld([0.01])
    warm = torch.tensor([[0.1, 0.2]] * 3 + [[7.0, 0.0]])
    plan = SETTINGS.plan(world, reach(warm_start=warm), deadline=99.0, clock=world.clock)
    assert world.ends == []
    torch.testing.assert_close(plan.actions, warm.clamp(-1, 1))
    assert (plan.stop_reason, plan.iterations, plan.iteration_costs) == ("deadline", 0, ())
    assert math.isnan(plan.cost)
    assert all(math.isnan(share) for share in plan.step_costs)


def test_a_deadline_already_past_without_a_warm_start_is_an_error() -> None:
    with pytest.raises(PlanningError) as refused:
        SETTINGS.plan(SlowWorld([0.01]), reach(), deadline=99.0, clock=lambda: 100.0)
    assert refused.value.field == "deadline"


def test_a_budget_ends_the_search_but_always_allows_one_iteration() -> None:
    world = SlowWorld([0.01])
    plan = SETTINGS.plan(world, reach(), budget_s=0.1, clock=world.clock)
    assert plan.stop_reason == "budget"
    assert world.now <= 100.1
    world = SlowWorld([0.5])
    plan = SETTINGS.plan(world, reach(), budget_s=0.1, clock=world.clock)
    assert (plan.stop_reason, plan.iterations) == ("budget", 1)
    with pytest.raises(PlanningError, match="budget_s must be > 0, got 0"):
        SETTINGS.plan(world, reach(), budget_s=0)


def test_a_budget_with_no_room_for_all_samples_gets_a_first_iteration_of_fewer() -> None:
    settings, pace, world = replace(SETTINGS, samples=64), Pace(), LaboriousWorld()
    learned = settings.plan(world, reach(), budget_s=0.3, clock=world.clock, pace=pace)
    assert (learned.first_share, learned.iterations) == (1.0, 11)
    for _ in range(4):
        began = world.now
        plan = settings.plan(world, reach(), budget_s=0.02, clock=world.clock, pace=pace)
        assert (plan.iterations, plan.stop_reason) == (1, "budget")
        assert world.now <= began + 0.02
    assert plan.first_share == 0.5
    assert settings.plan(world, reach(), budget_s=0.1, clock=world.clock, pace=pace).first_share == 1.0


def test_a_deadline_trusts_a_thinner_iteration_only_once_it_was_seen() -> None:
    settings, pace, world = replace(SETTINGS, samples=64), Pace(), LaboriousWorld()
    pace.observe(64 * 4, 0.0256)
    with pytest.raises(PlanningError, match="deadline"):
        settings.plan(world, reach(), deadline=world.now + 0.02, clock=world.clock, pace=pace)
    pace.observe(32 * 4, 0.0128)
    began = world.now
    plan = settings.plan(world, reach(), deadline=began + 0.02, clock=world.clock, pace=pace)
    assert (plan.first_share, plan.iterations) == (0.5, 1)
    assert world.now <= began + 0.02


def test_a_thinned_first_iteration_is_the_same_in_company() -> None:
    settings = replace(SETTINGS, samples=64, iterations=3)
    world = integrator()
    thin, whole = (
        replace(settings.start(reach(seed=seed), 1), first_share=share) for seed, share in ((1, 0.25), (2, 1.0))
    )
    alone, together = [thin], [thin, whole]
    for _ in range(3):
        alone, together = settings.improve(world, alone), settings.improve(world, together)
    torch.testing.assert_close(together[0].best_actions, alone[0].best_actions)
    assert together[0].iteration_costs == pytest.approx(alone[0].iteration_costs)


def test_a_hard_deadline_rules_over_a_generous_budget() -> None:
    world = SlowWorld([0.01])
    plan = SETTINGS.plan(world, reach(), deadline=100.05, budget_s=10.0, clock=world.clock)
    assert plan.stop_reason == "deadline"
    assert world.now <= 100.05


def test_a_search_cut_short_returns_the_best_so_far() -> None:
    world = SlowWorld([0.01])
    cut = replace(SETTINGS, result="mean").plan(world, reach(), deadline=100.05, clock=world.clock)
    whole = replace(SETTINGS, iterations=cut.iterations).plan(integrator(), reach())
    assert cut.iteration_costs == whole.iteration_costs
    assert torch.equal(cut.actions, whole.actions)


def test_cancellation_takes_effect_within_one_iteration() -> None:
    world = SlowWorld([0.01])
    plan = SETTINGS.plan(world, reach(), clock=world.clock, cancelled=lambda: len(world.ends) >= 3)
    assert (plan.stop_reason, plan.iterations) == ("cancelled", 3)
    with pytest.raises(PlanningError, match="cancelled"):
        SETTINGS.plan(world, reach(), clock=world.clock, cancelled=lambda: True)


def test_the_clock_follows_a_machine_that_changes_pace() -> None:
    pace = IterationClock()
    assert pace.estimate_s == 0
    for _ in range(40):
        pace.observe(0.010)
    assert pace.estimate_s == pytest.approx(0.010, rel=0.01)
    for _ in range(40):
        pace.observe(0.050)
    assert pace.estimate_s == pytest.approx(0.050, rel=0.01)
