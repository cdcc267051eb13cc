"""What the service adds to a plan, and how it stands load, deadlines and faults: on a model that costs nothing.

`python -m benchmarks.service --minutes 5` prints the tables. First four kinds of the same small plan: the planner in
this process, the application called from this process (its engine in another), the whole service over gRPC and over
REST; they alternate, so that whatever else the machine does hits all alike. Then 100 control streams for the minutes
asked for, plans at deadlines under full load, engines killed under load, sessions that expire. About nine minutes
altogether; `--quick` is a rehearsal of one. On two cores robots and service share them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import torch
from PIL import Image
from presage.v1 import models_pb2, planning_pb2, planning_pb2_grpc
from presage.values import PlannerSettings

from benchmarks import null_model, service_load
from benchmarks.service_load import NullService, null_service, seen
from benchmarks.source import commit
from cli.demo.machine import describe_machine
from planner.optimizers.cem import CEM
from planner.types import Problem
from server.config import Settings
from server.service.application import Application
from server.values.calls import GoalRequest, Observation, PlanRequest
from training.evaluation.closed_loop import action_space

SAMPLES, ITERATIONS, ELITES, HORIZON = 16, 1, 4, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500, help="of each kind, for what is added to a plan")
    parser.add_argument("--minutes", type=float, default=5.0, help="of control streams")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--deadlines", type=int, default=1000, help="plans taken on at a deadline")
    parser.add_argument("--kills", type=int, default=20, help="of engines")
    parser.add_argument("--sessions", type=int, default=1000, help="that expire")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: small everything")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="some of the tables")
    parser.add_argument("--out", type=Path, help="folder to write service.json and service.md to")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.calls, arguments.minutes, arguments.streams = 60, 0.1, 20
        arguments.deadlines, arguments.kills, arguments.sessions = 60, 2, 100
    torch.set_num_threads(1)
    figures = {**measure(arguments), "machine": describe_machine(), "commit": commit()}
    table = markdown(figures)
    if arguments.out is not None:
        (arguments.out / "service.json").write_text(json.dumps(figures, indent=2) + "\n")
        (arguments.out / "service.md").write_text(table)
    print(table)


PARTS = ("overhead", "streams", "deadlines", "kills", "expiry")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of every part asked for, each against the same service."""
    rng = np.random.default_rng(0)
    jpegs = [jpeg_bytes(_picture(rng)) for _ in range(50)]
    figures: dict[str, Any] = {}
    with null_service() as service:
        for part in arguments.only:
            match part:
                case "overhead":
                    figures[part] = overhead(service, jpegs, arguments.calls)
                case "streams":
                    work = service_load.streams(service, jpegs[0], arguments.streams, 60 * arguments.minutes)
                    figures[part] = asyncio.run(work)
                case "deadlines":
                    figures[part] = asyncio.run(service_load.deadlines(service, jpegs[0], arguments.deadlines))
                case "kills":
                    figures[part] = asyncio.run(service_load.kills(service, jpegs[0], arguments.kills))
                case "expiry":
                    figures[part] = asyncio.run(service_load.expiry(service, jpegs[0], arguments.sessions))
    return figures


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    machine = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    lines = [
        "# The service on a model that costs nothing",
        "",
        f"`python -m benchmarks.service`, a 256 px JPEG, one engine thread. {machine}; commit {figures['commit']}.",
        "",
    ]
    if "overhead" in figures:
        lines += ["| plan | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|"]
        for name, row in figures["overhead"].items():
            lines.append(f"| {name} | {row['p50']:.2f} | {row['p95']:.2f} | {row['p99']:.2f} |")
        lines.append("")
    for part in PARTS[1:]:
        if part in figures:
            lines += [f"| {part} | |", "|---|---|"]
            lines += [f"| {name.replace('_', ' ')} | {_shown(value)} |" for name, value in figures[part].items()]
            lines.append("")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items()) or "none"
    return " to ".join(str(entry) for entry in value) if isinstance(value, list) else str(value)


def overhead(service: NullService, jpegs: list[bytes], calls: int) -> dict[str, dict[str, float]]:
    """Percentiles of whole calls from this process, and of what each gateway adds to the in-process plan's median."""
    size = models_pb2.PlannerSettings(samples=SAMPLES, iterations=ITERATIONS, elites=ELITES, horizon=HORIZON)
    goal = np.array(Image.open(io.BytesIO(jpegs[-1])))
    with (
        grpc.insecure_channel(service.grpc, [("grpc.enable_http_proxy", 0)]) as channel,
        httpx.Client(base_url=service.rest, timeout=30, trust_env=False) as http,
        closing(asyncio.new_event_loop()) as loop,
    ):
        planning = planning_pb2_grpc.PlanningStub(channel)
        body = {"image": {"encoded": base64.b64encode(jpegs[-1]).decode()}}
        goal_id = http.post("/v1/goals", json=body).raise_for_status().json()["goal_id"]
        application = loop.run_until_complete(_started())

        def by_grpc(jpeg: bytes, seed: int) -> object:
            request = planning_pb2.PlanRequest(observation=seen(jpeg), goal_id=goal_id, planner=size, seed=seed)
            return planning.Plan(request, timeout=30)

        kinds: dict[str, Callable[[bytes, int], object]] = {
            "planner, in process": _in_process(goal),
            "application, in process": _application(loop, application, goal),
            "gRPC": by_grpc,
            "REST": lambda jpeg, seed: rest_plan(http, jpeg, goal_id, seed),
        }
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for seed in range(-20, calls):
            for name, plan in kinds.items():
                began = time.perf_counter()
                plan(jpegs[seed % len(jpegs)], abs(seed))
                if seed >= 0:
                    taken[name].append(1e3 * (time.perf_counter() - began))
        loop.run_until_complete(application.stop(0.0))
    rows = {name: percentiles(ms) for name, ms in taken.items()}
    for base in ("planner", "application"):
        alone = float(np.median(taken[f"{base}, in process"]))
        for gateway in ("gRPC", "REST"):
            rows[f"{gateway} adds to the {base}"] = percentiles([ms - alone for ms in taken[gateway]])
    return rows


async def _started() -> Application:
    settings = Settings(models=("null",), devices=("cpu",), engine_threads=1)
    application = await Application.start(settings, loader=null_model.load)
    await application.wait_ready(120)
    return application


def _application(
    loop: asyncio.AbstractEventLoop, application: Application, goal_image: np.ndarray
) -> Callable[[bytes, int], object]:
    """The same plan by the service's own core, without a gateway."""
    goal_id = loop.run_until_complete(application.create_goal(GoalRequest(image=goal_image))).goal_id
    size = PlannerSettings(SAMPLES, ITERATIONS, ELITES, HORIZON)

    def plan(jpeg: bytes, seed: int) -> object:
        received = time.monotonic()
        frame = np.array(Image.open(io.BytesIO(jpeg)))
        request = PlanRequest(Observation((frame,)), goal_id=goal_id, planner=size, seed=seed)
        return loop.run_until_complete(application.plan(request, None, received, 0.0))

    return plan


def _in_process(goal_image: np.ndarray) -> Callable[[bytes, int], object]:
    """The same plan without a service: decode, encode, search."""
    loaded = null_model.load("null", "cpu")
    goal, space = loaded.encode(torch.from_numpy(goal_image[None]))[0], action_space(loaded)
    optimizer = CEM(SAMPLES, ITERATIONS, ELITES, HORIZON)

    def plan(jpeg: bytes, seed: int) -> object:
        frame = torch.from_numpy(np.array(Image.open(io.BytesIO(jpeg))))
        context = loaded.context([loaded.encode(frame[None])[0]], None)
        return optimizer.plan(loaded, Problem(context, goal, space, seed)).actions.numpy()

    return plan


def _picture(rng: np.random.Generator) -> np.ndarray:
    """Smooth, with some noise: about 25 kB as a JPEG, as a camera's would be."""
    rows, columns = np.mgrid[0 : null_model.SIDE, 0 : null_model.SIDE]
    phases = rng.uniform(0, 6, 3)
    waves = [120 + 60 * np.sin(rows / 20 + phase) + 40 * np.cos(columns / 33 + phase) for phase in phases]
    noisy = np.stack(waves, -1) + rng.normal(0, 8, (null_model.SIDE, null_model.SIDE, 3))
    return np.asarray(noisy.clip(0, 255), np.uint8)


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


if __name__ == "__main__":
    main()
