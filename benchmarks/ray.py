"""What Ray Serve adds to a call: the same small plan from one process and from a Ray beside it, in one run.

`python -m benchmarks.ray` prints a table: unary calls over both transports, messages of a control stream, and calls
from eight callers at once. Calls of both sides alternate, so that whatever else the machine does hits both alike. Both
sides serve the same model with one engine of one thread. Needs `ray[serve]`; runs itself in a namespace where it can.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import presage

from benchmarks.service import jpeg_bytes, percentiles, rest_plan
from benchmarks.source import commit
from cli.demo.machine import describe_machine
from cli.private_service import PrivateService, private_service
from deploy.ray import namespace
from simulation.tasks import make

SIZE = presage.PlannerSettings(samples=16, iterations=1, elites=4, horizon=5)
CALLERS = 8
WARM_UP = 10  # calls of each kind that are not counted
GRPC_PORT, HTTP_PORT = 50151, 8180


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=60, help="of each kind on each side")
    parser.add_argument("--model", default="arm")
    parser.add_argument("--out", type=Path, help="folder to write ray.json and ray.md to")
    arguments = parser.parse_args()
    if {name for _, name in socket.if_nameindex()} != {"lo"}:
        if not namespace.possible():
            print("Ray would listen on every address: this needs root, unshare and ip", file=sys.stderr)
            return 1
        return subprocess.run(namespace.inside(sys.executable, "-m", "benchmarks.ray", *sys.argv[1:])).returncode
    with private_service(arguments.model, device="cpu", threads=1) as alone, ray_service(arguments.model) as cluster:
        rows = measure({"one process": alone, "Ray Serve": cluster}, arguments.calls)
    figures = {"calls": arguments.calls, "rows": rows, "machine": describe_machine(), "commit": commit()}
    table = markdown(figures)
    if arguments.out is not None:
        (arguments.out / "ray.json").write_text(json.dumps(figures, indent=2) + "\n")
        (arguments.out / "ray.md").write_text(table)
    print(table)
    return 0


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    machine = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    lines = [
        "# What Ray Serve adds to a call",
        "",
        f"`python -m benchmarks.ray`: {figures['calls']} calls of each kind on each side, alternating; a plan of 16",
        "samples and one iteration from a 64 px JPEG, one replica, one engine thread.",
        f"{machine}; commit {figures['commit']}.",
        "",
        "| call | one process p50 / p95 / p99 ms | Ray Serve p50 / p95 / p99 ms | ratio of p50 |",
        "|---|---|---|---|",
    ]
    for kind, row in figures["rows"].items():
        shown = [
            " / ".join(f"{row[side][key]:.2f}" for key in ("p50", "p95", "p99")) for side in row if side != "ratio"
        ]
        lines.append(f"| {kind} | {' | '.join(shown)} | {row['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def measure(sides: dict[str, PrivateService], calls: int) -> dict[str, Any]:
    """Rows of milliseconds by kind of call and side."""
    robot, rng = make("arm"), np.random.default_rng(0)
    jpegs = [jpeg_bytes(robot.render_state(robot.random_state(rng))) for _ in range(calls)]
    goal_image = robot.render_state(robot.random_state(rng))
    kinds: dict[str, dict[str, Callable[[bytes, int], object]]] = {"gRPC": {}, "REST": {}, "control stream": {}}
    taken: dict[str, dict[str, list[float]]] = {name: {side: [] for side in sides} for name in kinds}
    crowd = f"gRPC, {CALLERS} callers at once, per call"
    taken[crowd] = {side: [] for side in sides}
    with ExitStack() as stack:
        for side, service in sides.items():
            client = stack.enter_context(presage.Client(service.grpc, affinity="bench", timeout_s=60.0))
            goal = client.goal(goal_image)
            http = httpx.Client(base_url=service.rest, timeout=60, trust_env=False, headers={"x-session-id": "bench"})
            loop = stack.enter_context(stack.enter_context(client.session(goal=goal)).control(settings=SIZE))
            kinds["gRPC"][side] = _unary(client, goal.goal_id)
            kinds["REST"][side] = _over_rest(stack.enter_context(http), goal.goal_id)
            kinds["control stream"][side] = _over_stream(loop)
        for kind, by_side in kinds.items():
            for seed, jpeg in enumerate([*jpegs[:1] * WARM_UP, *jpegs]):
                for side, plan in by_side.items():
                    began = time.perf_counter()
                    plan(jpeg, seed)
                    taken[kind][side].append(1e3 * (time.perf_counter() - began))
        pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
        for first in range(0, calls, CALLERS):
            batch = jpegs[first : first + CALLERS]
            for side, plan in kinds["gRPC"].items():
                began = time.perf_counter()
                list(pool.map(plan, batch, range(len(batch))))
                taken[crowd][side].append(1e3 * (time.perf_counter() - began) / len(batch))
    rows: dict[str, Any] = {}
    for kind, by_side in taken.items():
        measured = {side: percentiles(ms[WARM_UP:] if kind in kinds else ms) for side, ms in by_side.items()}
        single, cluster = measured.values()
        rows[kind] = {**measured, "ratio": round(cluster["p50"] / single["p50"], 3)}
    return rows


def _unary(client: presage.Client, goal_id: str) -> Callable[[bytes, int], object]:
    return lambda jpeg, seed: client.plan(jpeg, goal_id, settings=SIZE, seed=seed)


def _over_rest(http: httpx.Client, goal_id: str) -> Callable[[bytes, int], object]:
    return lambda jpeg, seed: rest_plan(http, jpeg, goal_id, seed)


def _over_stream(loop: presage.ControlLoop) -> Callable[[bytes, int], object]:
    def plan(jpeg: bytes, seed: int) -> object:
        loop.send(jpeg, seed=seed)
        made = loop.wait(60.0)
        assert made is not None, "the control stream fell silent"
        return made

    return plan


@contextmanager
def ray_service(model: str) -> Iterator[PrivateService]:
    """One replica on a Ray of its own."""
    command = [sys.executable, "-m", "deploy.ray", "--model", model, "--device", "cpu", "--threads", "1"]
    command += ["--num-cpus", "4", "--grpc-port", str(GRPC_PORT), "--http-port", str(HTTP_PORT)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRESAGE_")}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise SystemExit(f"the service on Ray did not start: {log.read()[-2000:]}")
            told = json.loads(line)
            yield PrivateService(told["grpc"], told["rest"])
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()
            process.stdout.close()


if __name__ == "__main__":
    sys.exit(main())
