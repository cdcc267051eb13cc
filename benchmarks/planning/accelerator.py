"""What only an accelerator can show: the published search at its real size, 32 robots at once, graphs, 8-bit floats.

`python -m benchmarks.planning.accelerator [--device cuda] [--json FILE]` measures all of it on a device like an H200.
Without a device it prints what is wanted and that it was not measured; `--rehearse` runs everything at tiny sizes on
the processor, to see that it does run.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.planning import vjepa2
from benchmarks.planning.problems import arm_problems
from benchmarks.planning.timing import Table, interleaved, written
from benchmarks.source import commit
from cli.demo.machine import describe_machine
from model.layers.float8 import has_units, quantize_linears
from model.registry import load
from model.runtime.devices import usable
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from planner.anytime import plan_in_time
from planner.optimizers.cem import CEM
from planner.types import Plan
from planner.world_model import WorldModel
from server.engine.messages import SearchSize
from server.worker import cuda_graphs

NOT_MEASURED = "not measured here"
Figures = dict[str, float]


@dataclass(frozen=True)
class Target:
    """A figure that is wanted, what it must be, and what it should."""

    name: str
    what: str
    must: str
    aim: str


TARGETS = (
    Target("horizon_1", "V-JEPA 2-AC, 800 samples, horizon 1: times as fast as the published loop", ">= 4", ">= 8"),
    Target("floor_1", "the same against the floor at the device's own matrix rate", "<= 1.6", "<= 1.2"),
    Target("horizon_2", "horizon 2: times as fast as the published loop", ">= 6", ""),
    Target("horizon_4", "horizon 4: times as fast as the published loop", ">= 10", ""),
    Target("plan_ms", "V-JEPA 2-AC, 800 x 10 x horizon 1, one plan, ms", "", ""),
    Target("float8", "8-bit floats against bfloat16, horizon 1: times as fast", "", ""),
    Target("clip", "clip embedding, ViT-L, bfloat16: times as fast as transformers, float32", ">= 1.5", ">= 2"),
    Target("clip_alike", "the same against transformers in bfloat16", "", ""),
    Target("robots", "32 robots with arm in one batch: times as many plans/s as one after another", ">= 5", ">= 8"),
    Target("arm_ms", "arm, 300 x 30 x horizon 5, one plan with graphs, ms", "", "<= 20"),
    Target("arm_eager_ms", "the same without graphs, ms", "", ""),
)


@dataclass(frozen=True)
class Scale:
    """How much is measured. `clip_layers` 0 leaves the clip out."""

    layers: int
    samples: int
    horizons: tuple[int, ...]
    plan_iterations: int
    clip_layers: int
    robots: int
    arm: CEM
    repeats: int


WHOLE = Scale(vjepa2.LAYERS, 800, (1, 2, 4), 10, vjepa2.LAYERS, 32, CEM.lewm_paper(unbounded=False), 2)
TINY = Scale(1, 2, (1, 2, 4), 1, 1, 3, replace(CEM.lewm_paper(unbounded=False), samples=20, iterations=2, elites=4), 1)


def measure(device: torch.device, scale: Scale) -> tuple[Figures, list[Table]]:
    """Every figure that the device can give, by the names of `TARGETS`, and the tables they come from."""
    plans, ratios = vjepa2.plans(device, scale.layers, scale.samples, scale.horizons, scale.repeats, iterations=1)
    figures: Figures = {**ratios, "floor_1": float(str(plans.rows[0][-1]))}
    figures |= _predictor(device, scale)
    clip = vjepa2.embeddings(device, scale.clip_layers, scale.repeats) if scale.clip_layers else None
    if clip is not None:
        table, figures["clip"] = clip[0], clip[1]["bfloat16"]
        alike = [float(str(row[2])) for row in table.rows if row[0] == "transformers, bfloat16"]
        figures |= {"clip_alike": figures["clip"] / alike[0]} if alike else {}
    figures |= _arm(device, scale)
    return figures, [plans] if clip is None else [plans, clip[0]]


def _predictor(device: torch.device, scale: Scale) -> Figures:
    """A whole plan at the published size, and an iteration of it in 8-bit floats, where they have units."""
    shape = ActionPredictorConfig(latent_width=1408, depth=scale.layers)
    lowered = ActionPredictor(shape).eval().requires_grad_(False).to(device, torch.bfloat16)
    problem = vjepa2.problem(device)
    whole = replace(CEM.vjepa2_ac_paper(), samples=scale.samples, iterations=scale.plan_iterations, elites=2)
    figures = interleaved({"plan_ms": vjepa2.planned(whole, vjepa2.Acting(lowered), problem)}, scale.repeats)
    if not has_units(device) and device.type != "cpu":
        return figures
    quantized = copy.deepcopy(lowered)
    quantize_linears(quantized.predictor_blocks)
    once = replace(whole, iterations=1, result="best")
    works = {
        name: vjepa2.planned(once, vjepa2.Acting(predictor), problem)
        for name, predictor in (("bfloat16", lowered), ("float8", quantized))
    }
    ms = interleaved(works, scale.repeats)
    return {**figures, "float8": ms["bfloat16"] / ms["float8"]}


def _arm(device: torch.device, scale: Scale) -> Figures:
    """Plans with `arm` as an engine would make them: with graphs and without, of many robots and of one."""
    arm, search = load("arm", device), scale.arm
    size = SearchSize(search.samples, search.iterations, search.elites, search.horizon)
    captured, _ = cuda_graphs.searched(arm, size, "on", max_batch=scale.robots, max_steps=1 << 20)
    problems = [each.problem for each in arm_problems(arm, scale.robots)]

    def one(world: WorldModel) -> torch.Tensor:
        return plan_in_time(search, world, problems[0]).actions

    def together() -> torch.Tensor:
        searches = [search.start(problem, arm.block) for problem in problems]
        for _ in range(search.iterations):
            searches = search.improve(captured, searches)
        return searches[-1].best_actions

    def in_turn() -> torch.Tensor:
        plans: list[Plan] = [plan_in_time(search, captured, problem) for problem in problems]
        return plans[-1].actions

    ms = interleaved({"arm_ms": lambda: one(captured), "arm_eager_ms": lambda: one(arm)}, scale.repeats)
    of_many = interleaved({"together": together, "in turn": in_turn}, scale.repeats)
    return {**ms, "robots": of_many["in turn"] / of_many["together"]}


def wanted(figures: Mapping[str, float]) -> Table:
    """What is wanted of an H200, and what was found."""
    rows: list[tuple[object, ...]] = [
        (target.what, target.must, target.aim, figures.get(target.name, NOT_MEASURED)) for target in TARGETS
    ]
    note = "Ratios are of runs in turns on the same device; an iteration of a search stands for a plan of ten."
    return Table("On an accelerator", note, ("what", "must", "aim", "measured"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning.accelerator", description=__doc__)
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, or auto")
    parser.add_argument("--rehearse", action="store_true", help="everything tiny, on the processor; proves no figure")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = usable("cpu" if arguments.rehearse else arguments.device)
    began = time.monotonic()
    figures: Figures = {}
    tables: list[Table] = []
    if device.type != "cpu" or arguments.rehearse:
        figures, tables = measure(device, TINY if arguments.rehearse else WHOLE)
    whole = {} if arguments.rehearse else figures
    for table in (*tables, wanted(whole)):
        print(f"{written(table)}\n")
    if arguments.json is not None:
        report: dict[str, Any] = {
            "machine": describe_machine(),
            "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else NOT_MEASURED,
            "commit": commit(),
            "rehearsed": arguments.rehearse,
            "seconds": round(time.monotonic() - began, 1),
            "figures": figures,
            "tables": [asdict(table) for table in (*tables, wanted(whole))],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    shown = [f"{target.name} {whole[target.name]:.3g}" for target in TARGETS if target.name in whole]
    told = "rehearsed at tiny sizes: the figures above are none of a device's" if arguments.rehearse else NOT_MEASURED
    print("; ".join(shown) or told)


if __name__ == "__main__":
    main()
