"""The published planner, replayed with its own noise through the package, the registry's search and warm starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoints.action_statistics import ActionStatistics
from model.checkpoints.families import ImportOptions, import_weights
from model.lewm.world_model import LeWMWorldModel
from model.package import read_package
from model.preprocessing import ObservationError
from planner import registry
from planner.noise import NoiseShape, Stream
from planner.optimizers.cem import CEM
from planner.receding import warm_start
from planner.types import ActionSpace, Plan, Problem
from planner.world_model import CostFunction
from server.worker.model_adapter import action_space
from tests.support.model.lewm import fixture, needs_fixtures, write_folder

CPU = torch.device("cpu")
PRECISIONS = [torch.float32, torch.float64]


@dataclass(frozen=True)
class Recorded:
    """The published run's draws [iterations, samples, time, action]."""

    draws: Tensor

    def __call__(self, streams: Sequence[Stream], shape: NoiseShape, device: torch.device) -> Tensor:
        return torch.stack([self.draws[stream.iteration] for stream in streams])


@dataclass(frozen=True)
class Watched:
    """A cost that keeps what it was asked, and what it answered."""

    cost: CostFunction
    asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, predicted: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        shares = self.cost(predicted, goal, actions)
        self.asked.append((actions[0], shares.sum(-1)[0]))
        return shares


def package_of(folder: Path, data: dict[str, Any]) -> Path:
    """The fixture's network as a package with the fixture's statistics, and bounds that no candidate reaches."""
    network, given = fixture("lewm_network"), data["inputs"]
    downloaded = folder / "downloaded"
    downloaded.mkdir()
    (downloaded / "config.json").write_text(json.dumps(network["config"]["hydra"]))
    torch.save(network["checkpoint_layout"]["released"], downloaded / "weights.pt")
    statistics = ActionStatistics(
        mean=tuple(given["action_mean"].tolist()),
        std=tuple(given["action_std"].tolist()),
        low=(-50.0, -50.0),
        high=(50.0, 50.0),
        source="a test",
    )
    import_weights(downloaded, folder / "package", ImportOptions(statistics=statistics))
    return folder / "package"


def search_of(plan: dict[str, Any], draws: Tensor) -> tuple[CEM, Watched]:
    search = registry.optimizer("lewm", plan["samples"], plan["iterations"], plan["elites"], plan["horizon"])
    assert isinstance(search, CEM)
    watched = Watched(search.cost)
    return replace(search, noise=Recorded(draws.flatten(2).unflatten(2, (-1, 2))), cost=watched), watched


def check(plan: dict[str, Any], name: str, watched: Watched, wanted: dict[str, Tensor], width: int) -> None:
    """Every iteration's costs and elites are the published ones."""
    for iteration in range(plan["iterations"]):
        _, costs = watched.asked[iteration]
        ours = costs[: plan["samples"]] * width  # published is the sum, ours the mean
        reference = wanted[f"{name}.costs"][iteration]
        assert float((ours - reference).abs().max() / reference.abs().max()) <= 1e-5
        elites = set(ours.topk(plan["elites"], largest=False).indices.tolist())
        assert elites == set(wanted[f"{name}.elites"][iteration].tolist())


def solved(model: LeWMWorldModel, space: ActionSpace, search: CEM, context: tuple[Tensor, ...], goal: Tensor,
           start: Tensor | None = None) -> Plan:  # fmt: skip
    return search.plan(model, Problem(context=context, goal=goal, space=space, seed=0, warm_start=start))


@needs_fixtures
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ["h1", "h3"])
def test_a_replayed_plan_has_the_published_elites_and_actions(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    data = fixture("lewm_plan")
    given, wanted, plan = data["inputs"], data["outputs"], data["config"]["plans"][name]
    model = LeWMWorldModel(read_package(package_of(tmp_path, data)), CPU, dtype)
    space = action_space(model)
    assert space is not None
    goal = model.encode(given["goal_image"][None])[0]
    latents = list(model.encode(given[f"{name}.frames"]))
    past = given[f"{name}.past_actions"] if plan["history"] > 1 else None
    search, watched = search_of(plan, given[f"{name}.noise"])
    found = solved(model, space, search, model.context(latents, None, past), goal)
    check(plan, name, watched, wanted, len(goal))
    assert float((found.actions - wanted[f"{name}.actions"]).abs().max()) <= 1e-6


@needs_fixtures
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_a_replayed_warm_start_goes_on_as_published(dtype: torch.dtype, tmp_path: Path) -> None:
    data = fixture("lewm_plan")
    given, wanted, plan = data["inputs"], data["outputs"], data["config"]["plans"]["warm"]
    model = LeWMWorldModel(read_package(package_of(tmp_path, data)), CPU, dtype)
    space = action_space(model)
    assert space is not None
    goal = model.encode(given["goal_image"][None])[0]
    context = model.context(list(model.encode(given["warm.frames"])), None)
    executed = plan["receding"] * model.block
    actions, start = [], None
    for number in (0, 1):
        search, watched = search_of(plan, given[f"warm.plan{number}.noise"])
        found = solved(model, space, search, context, goal, start)
        check(plan, f"warm.plan{number}", watched, wanted, len(goal))
        actions.append(found.actions[:executed])
        start = warm_start(found, executed, space, registry.tail("lewm"))
    assert float((torch.cat(actions) - wanted["warm.actions"]).abs().max()) <= 1e-6


def test_candidates_go_beyond_the_bounds_and_the_plan_does_not(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    space = action_space(model)
    assert space is not None
    watched = Watched(CEM.lewm_paper().cost)
    search = replace(CEM.lewm_paper(), samples=40, iterations=4, elites=6, horizon=2, cost=watched)
    goal = 5 * torch.randn(24, generator=torch.Generator().manual_seed(1))
    found = solved(model, space, search, model.context([torch.zeros(24)], None), goal)
    assert max(float(actions[:40].abs().max()) for actions, _ in watched.asked[:-1]) > 1.0
    assert float(found.actions.abs().max()) <= 1.0
    best = [float(costs[40]) for _, costs in watched.asked[:-1]]
    assert found.iteration_costs == pytest.approx([min(best[: count + 1]) for count in range(4)])
    assert found.cost == pytest.approx(float(watched.asked[-1][1][0]))


def test_history_counts_as_far_as_actions_between_are_known(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    seen = list(torch.randn(3, 24))
    first = model.context(seen[-1:], None)
    assert [tuple(part.shape) for part in first] == [(1, 1, 24), (1, 0, 10)]
    assert [tuple(part.shape) for part in model.context(seen, None)] == [(1, 1, 24), (1, 0, 10)]
    second = model.context(seen, None, torch.zeros(5, 2))
    assert [tuple(part.shape) for part in second] == [(1, 2, 24), (1, 1, 10)]
    third = model.context(seen, None, torch.zeros(15, 2))
    assert [tuple(part.shape) for part in third] == [(1, 3, 24), (1, 2, 10)]
    with pytest.raises(ObservationError, match=r"past_actions must be \[a multiple of 5, 2\], got \[4, 2\]"):
        model.context(seen, None, torch.zeros(4, 2))


def small_model(folder: Path) -> LeWMWorldModel:
    statistics = ActionStatistics(mean=(0.1, -0.2), std=(0.4, 0.5), source="a test")
    import_weights(write_folder(folder / "downloaded"), folder / "package", ImportOptions(statistics=statistics))
    return LeWMWorldModel(read_package(folder / "package"), CPU)
