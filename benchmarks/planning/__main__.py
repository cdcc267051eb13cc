"""Run the planning benchmarks: tables to the screen, figures as JSON, and a page with a chart."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.planning import accelerator, chart, compact, lewm, vjepa2
from benchmarks.planning.problems import Served, arm_problems
from benchmarks.planning.timing import Table, written
from benchmarks.source import commit
from cli.demo.machine import describe_machine
from model.registry import load
from model.runtime.devices import usable
from model.runtime.memory import keep_memory
from server.worker import precision
from server.worker.process import own_search


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="everything small: under 3 minutes on two cores")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--out", type=Path, help="folder for planning.json, planning.md and planning.png")
    parser.add_argument("--device", default="auto", help="of the V-JEPA 2 tables: cpu, cuda, or auto")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    figures, tables = measure(arguments.quick, arguments.device)
    figures["tables"] = [asdict(table) for table in tables]
    page = markdown(figures, tables)
    print(page)
    if arguments.json is not None:
        _write(arguments.json, json.dumps(figures, indent=2) + "\n")
    if arguments.out is not None:
        _write(arguments.out / "planning.json", json.dumps(figures, indent=2) + "\n")
        _write(arguments.out / "planning.md", page)
    picture = arguments.out / "planning.png" if arguments.out else arguments.json and arguments.json.with_suffix(".png")
    if picture:
        (table,) = (table for table in tables if table.title == "Final cost against time")
        points = [(str(row[0]), float(str(row[3])), float(str(row[4]))) for row in table.rows]
        chart.draw(picture, points, f"{table.title}: {table.note}")
    print(figures["summary"])


def measure(quick: bool, device_name: str) -> tuple[dict[str, Any], list[Table]]:
    """Every table, and the ratios the project is judged by."""
    began, scale = time.monotonic(), compact.QUICK if quick else compact.WHOLE
    device = usable(device_name)
    keep_memory()
    arm = load("arm", torch.device("cpu"))
    work = precision.Work.of(arm, own_search(arm.package.config.planner))
    torch.set_num_threads(precision.fastest_threads(lambda: work.done_by(arm), precision.available_cpus()))
    served = Served.choose(arm)
    problems = arm_problems(arm, scale.problems)
    sections: dict[str, Callable[[], Any]] = {
        "plain": lambda: compact.against_plain_loops(served, problems[0], scale),
        "sizes": lambda: (compact.sizes(served, problems[0], scale), None),
        "pareto": lambda: (compact.pareto(served, problems, scale), None),
        "warm": lambda: compact.warm_starts(served, problems, scale),
        "punctual": lambda: compact.punctuality(served, problems, scale),
        "company": lambda: compact.company(served, problems, scale),
        "lewm": lambda: lewm.plans(lewm.PUBLISHED, lewm.QUICK if quick else lewm.WHOLE, 2 if quick else 3),
        "plans": lambda: vjepa2.plans(device, *_vjepa2_scale(quick, device)),
        "clip": lambda: vjepa2.embeddings(device, 2 if quick and device.type == "cpu" else vjepa2.LAYERS, 2),
    }
    tables, ratios, took = [], {}, {}
    for name, section in sections.items():
        started = time.monotonic()
        found = section()
        took[name] = round(time.monotonic() - started, 1)
        if found is not None:
            tables.append(found[0])
            ratios[name] = found[1]
    if device.type == "cpu":
        tables.append(accelerator.wanted({}))
    figures = {
        "quick": quick,
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if device.type == "cuda" else "none: nothing here is of a GPU",
        "precision": {"arm": served.precision, "why": served.why},
        "commit": commit(),
        "seconds": {**took, "all": round(time.monotonic() - began, 1)},
        "ratios": ratios,
        "summary": _summary(ratios),
    }
    return figures, tables


def markdown(figures: dict[str, Any], tables: list[Table]) -> str:
    """The figures as a page."""
    machine = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    command = "python -m benchmarks.planning" + (" --quick" if figures["quick"] else "")
    lines = [
        "# How fast plans are",
        "",
        f"`{command}`, {figures['seconds']['all']:.0f} s. {machine}; {figures['threads']} threads; accelerator: "
        f"{figures['accelerator']}; commit {figures['commit']}. Medians of runs in turns.",
    ]
    return "\n".join([*lines, *(f"\n{written(table)}" for table in tables)]) + "\n"


def _summary(ratios: dict[str, Any]) -> str:
    plain, plans = ratios["plain"], ratios["plans"]
    parts = [
        f"compact 300x30x5: {plain['plan_ms']:.0f} ms, {plain['of_published_loop']:.1f}x the published loop, "
        f"{plain['of_one_call_loop']:.1f}x one call in float32, {plain['of_floor']:.2f} of the floor",
        f"warm 100 ms cost {ratios['warm']:.3f} of 300x30",
        f"overshoot p99 {ratios['punctual']:.2f} ms",
        f"robots batched {ratios['company']:.2f}x",
        "LeWM " + ", ".join(f"{ratio:.1f}x the published loop in {name}" for name, ratio in ratios["lewm"].items()),
        "V-JEPA 2-AC " + ", ".join(f"{name.replace('_', ' ')} {ratio:.1f}x" for name, ratio in plans.items()),
        f"clip against transformers {_clip(ratios['clip'])}"
        if "clip" in ratios
        else "clip: transformers is not installed",
    ]
    return "; ".join(parts)


def _clip(ratios: dict[str, float]) -> str:
    return ", ".join(f"{ratio:.1f}x in {name}" for name, ratio in ratios.items())


def _vjepa2_scale(quick: bool, device: torch.device) -> tuple[int, int, tuple[int, ...], int]:
    """Layers, samples, horizons and repeats."""
    if device.type == "cpu":
        return (1, 4, (1, 2), 2) if quick else (4, 8, (1, 2, 4), 3)
    return (vjepa2.LAYERS, 64 if quick else 800, (1, 2) if quick else (1, 2, 4), 3)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
