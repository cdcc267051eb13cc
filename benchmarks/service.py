"""What the service adds to a plan: the same small plan with and without its processes and doors, in one run.

Four kinds of call: the planner in this process; the application called from this process, its engine in another; and
the whole service over gRPC and over REST.

`python -m benchmarks.service` prints a table. A plan is kept small (few samples, one iteration), so that what is added
shows; calls of the three kinds alternate, so that whatever else the machine does hits all of them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import presage
import torch
from PIL import Image

from cli.demo.machine import describe_machine
from cli.private_service import private_service
from model.catalog import load
from planner.cem import CEM
from planner.types import Problem
from server.app import Application, AppSettings
from server.messages import GoalRequest, Observation, PlannerSettings, PlanRequest
from simulation.tasks import make
from training.evaluation import action_space

SAMPLES, ITERATIONS, ELITES, HORIZON = 16, 1, 4, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="of each kind")
    parser.add_argument("--model", default="arm")
    parser.add_argument("--out", type=Path, help="folder to write service.json and service.md to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {
        "calls": arguments.calls,
        "plan": {"samples": SAMPLES, "iterations": ITERATIONS, "horizon": HORIZON},
        "milliseconds": measure(arguments.model, arguments.calls),
        "machine": describe_machine(),
        "commit": commit(),
    }
    table = markdown(figures)
    if arguments.out is not None:
        (arguments.out / "service.json").write_text(json.dumps(figures, indent=2) + "\n")
        (arguments.out / "service.md").write_text(table)
    print(table)


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    plan = ", ".join(f"{name} {value}" for name, value in figures["plan"].items())
    machine = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    lines = [
        "# What the service adds to a plan",
        "",
        f"`python -m benchmarks.service`: {figures['calls']} calls of each kind ({plan}), a 64 px JPEG, one thread for",
        f"engine and planner each. {machine}; commit {figures['commit']}.",
        "",
        "| plan | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|",
    ]
    for name, row in figures["milliseconds"].items():
        lines.append(f"| {name} | {row['p50']:.2f} | {row['p95']:.2f} | {row['p99']:.2f} |")
    return "\n".join(lines) + "\n"


def measure(model: str, calls: int) -> dict[str, dict[str, float]]:
    """Percentiles of whole calls from this process, and of what each door adds to the in-process plan's median."""
    robot = make("arm")
    rng = np.random.default_rng(0)
    jpegs = [jpeg_bytes(robot.render_state(robot.random_state(rng))) for _ in range(calls)]
    goal = robot.render_state(robot.random_state(rng))
    with (
        private_service(model, device="cpu", threads=1) as service,
        presage.Client(service.grpc) as client,
        closing(asyncio.new_event_loop()) as loop,
    ):
        application = loop.run_until_complete(_started(model))
        goal_id = client.goal(goal).goal_id
        http = httpx.Client(base_url=service.rest, timeout=30, trust_env=False)
        size = presage.PlannerSettings(samples=SAMPLES, iterations=ITERATIONS, elites=ELITES, horizon=HORIZON)
        kinds: dict[str, Callable[[bytes, int], object]] = {
            "planner, in process": _in_process(model, goal),
            "application, in process": _application(loop, application, goal),
            "gRPC": lambda jpeg, seed: client.plan(jpeg, goal=goal_id, settings=size, seed=seed),
            "REST": lambda jpeg, seed: rest_plan(http, jpeg, goal_id, seed),
        }
        for plan in kinds.values():
            for seed, jpeg in enumerate(jpegs[:20]):
                plan(jpeg, seed)
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for seed, jpeg in enumerate(jpegs):
            for name, plan in kinds.items():
                began = time.perf_counter()
                plan(jpeg, seed)
                taken[name].append(1e3 * (time.perf_counter() - began))
        http.close()
        loop.run_until_complete(application.stop(0.0))
    rows = {name: percentiles(ms) for name, ms in taken.items()}
    for base in ("planner", "application"):
        alone = float(np.median(taken[f"{base}, in process"]))
        for door in ("gRPC", "REST"):
            rows[f"{door} adds to the {base}"] = percentiles([ms - alone for ms in taken[door]])
    return rows


async def _started(model: str) -> Application:
    application = await Application.start(AppSettings(models=(model,), devices=("cpu",), engine_threads=1))
    await application.wait_ready(120)
    return application


def _application(
    loop: asyncio.AbstractEventLoop, application: Application, goal_image: np.ndarray
) -> Callable[[bytes, int], object]:
    """The same plan by the service's own core, without a door."""
    goal_id = loop.run_until_complete(application.create_goal(GoalRequest(image=goal_image))).goal_id
    size = PlannerSettings(SAMPLES, ITERATIONS, ELITES, HORIZON)

    def plan(jpeg: bytes, seed: int) -> object:
        received = time.monotonic()
        frame = np.array(Image.open(io.BytesIO(jpeg)))
        request = PlanRequest(Observation((frame,)), goal_id=goal_id, planner=size, seed=seed)
        return loop.run_until_complete(application.plan(request, None, received, 0.0))

    return plan


def _in_process(model: str, goal_image: np.ndarray) -> Callable[[bytes, int], object]:
    """The same plan without a service: decode, encode, search."""
    loaded = load(model, torch.device("cpu"))
    goal, space = loaded.encode(torch.from_numpy(goal_image[None]))[0], action_space(loaded)
    optimiser = CEM(SAMPLES, ITERATIONS, ELITES, HORIZON)

    def plan(jpeg: bytes, seed: int) -> object:
        frame = torch.from_numpy(np.array(Image.open(io.BytesIO(jpeg))))
        context = loaded.context([loaded.encode(frame[None])[0]], None)
        return optimiser.plan(loaded, Problem(context, goal, space, seed)).actions.numpy()

    return plan


def rest_plan(http: httpx.Client, jpeg: bytes, goal_id: str, seed: int) -> object:
    body = {
        "observation": {"images": [{"encoded": base64.b64encode(jpeg).decode()}]},
        "goal_id": goal_id,
        "planner": {"samples": SAMPLES, "iterations": ITERATIONS, "elites": ELITES, "horizon": HORIZON},
        "seed": seed,
    }
    return http.post("/v1/plans", json=body).raise_for_status().json()


def jpeg_bytes(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def percentiles(ms: list[float]) -> dict[str, float]:
    return {f"p{percent}": round(float(np.percentile(ms, percent)), 3) for percent in (50, 95, 99)}


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
