"""The published V-JEPA 2-AC planning loop, replayed draw by draw on recordings of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from planner.optimizers.cem import CEM
from planner.types import PlanningError, Problem
from planner.vjepa2_ac import GripperRules
from planner.world_model import Actions, Context, Latents
from tests.support.paths import SHARED
from tests.support.planner.problems import reach
from tests.support.planner.recordings import recorded_search

FIXTURE = SHARED / "parity" / "fixtures" / "cem_toy.pt"
CASES = ["h1", "h2_notebook", "h4_defaults", "h2_axis_fixed", "h3_close_gripper1"]


@dataclass
class ToyWorld:
    """z' = z + W a, as in the recordings; remembers what it was asked."""

    weight: Tensor
    asked: list[Tensor] = field(default_factory=list)
    block: int = 1

    def rollout(self, context: Context, actions: Actions) -> Latents:
        self.asked.append(actions)
        (start,) = context
        return start[:, None, None] + (actions @ self.weight.T).cumsum(2)


@pytest.mark.skipif(not FIXTURE.exists(), reason="needs ../shared/parity, which a user's clone does not hold")
@pytest.mark.parametrize("case", CASES)
def test_the_recorded_loop_is_replayed(case: str) -> None:
    recorded = torch.load(FIXTURE, weights_only=True)
    settings: dict[str, Any] = recorded["config"][case]
    inputs, outputs = recorded["inputs"], recorded["outputs"]
    cem, space = recorded_search(settings, inputs[f"{case}.noise"])
    world = ToyWorld(inputs["W"])
    context, goal = inputs["context"].reshape(1, -1), inputs["goal"].flatten()
    plan = cem.plan(world, Problem((context,), goal, space, seed=0))

    candidates = torch.cat(world.asked[: settings["cem_steps"]])
    torch.testing.assert_close(candidates, outputs[f"{case}.actions"], atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.actions, outputs[f"{case}.result"][0], atol=1e-6, rtol=0)
    for asked, costs in zip(candidates, outputs[f"{case}.sims"], strict=True):
        predicted = world.rollout((context,), asked.unsqueeze(0))
        ours = cem.cost(predicted, goal.unsqueeze(0), asked.unsqueeze(0)).sum(-1)[0]
        torch.testing.assert_close(ours, costs, atol=1e-5, rtol=1e-5)
        elites = [set(each.topk(cem.elites, largest=False).indices.tolist()) for each in (ours, costs)]
        assert elites[0] == elites[1]


def test_presets_hold_the_published_numbers() -> None:
    paper, notebook, lewm = CEM.vjepa2_ac_paper(), CEM.vjepa2_ac_notebook(), CEM.lewm_paper()
    assert (paper.samples, paper.iterations, paper.elites, paper.horizon) == (800, 10, 10, 1)
    assert (notebook.samples, notebook.iterations, notebook.elites, notebook.horizon) == (25, 2, 10, 2)
    assert (lewm.samples, lewm.iterations, lewm.elites, lewm.horizon) == (300, 30, 30, 5)


def test_a_gripper_is_clipped_closed_and_rid_of_weak_commands() -> None:
    rules = GripperRules(close_after=1)
    candidates = torch.zeros(5, 4, 7)
    candidates[..., 6] = 3.0
    ruled = rules.apply(candidates, block=2)
    assert (ruled[:, :2, 6] == 0.75).all()
    assert (ruled[:, 2:, 6] == 1.0).all()
    assert (candidates[..., 6] == 3.0).all()
    settled = rules.settle(torch.tensor([[0.1, 0.2], [0.1, -0.3]]))
    torch.testing.assert_close(settled, torch.tensor([[0.1, 0.0], [0.1, -0.3]]))


@pytest.mark.parametrize("wrong", [{"clip": 0}, {"dead_zone": -1}, {"close_after": -1}])
def test_gripper_rules_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanningError, match=rf"gripper\.{next(iter(wrong))}"):
        GripperRules(**wrong)


def test_the_lewm_preset_plans_within_bounds() -> None:
    world = ToyWorld(0.1 * torch.eye(2))
    plan = replace(CEM.lewm_paper(unbounded=False), samples=60, elites=6).plan(world, reach((0.3, -0.2)))
    assert plan.cost < 1e-4
    assert plan.step_costs[:-1] == (0.0,) * 4
