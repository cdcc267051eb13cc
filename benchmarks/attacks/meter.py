"""What others see of a service while it is attacked: probes, another key's plans, and the memory of the front."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.attacks.target import OTHER, Target, resident_bytes

PLANS_HZ, DEADLINE_S, BUDGET_MS = 5.0, 0.5, 60.0
PROBES_HZ = 20.0
SLACK_S = 0.02  # what a reply sent at its deadline may take to be read here


@dataclass
class Meter:
    """Counts and times of what was tried beside an attack."""

    target: Target
    memory_before: int = 0
    memory_peak: int = 0
    probes_s: list[float] = field(default_factory=list)
    probes_failed: int = 0
    checks_s: list[float] = field(default_factory=list)
    checks_failed: int = 0
    plans_s: list[float] = field(default_factory=list)
    plans_refused: list[str] = field(default_factory=list)
    log_before: int = 0

    def report(self) -> dict[str, Any]:
        """The row's figures."""
        late = sum(took > DEADLINE_S + SLACK_S for took in self.plans_s)
        asked = len(self.plans_s) + len(self.plans_refused)
        return {
            "front_before_mib": round(self.memory_before / 2**20),
            "front_peak_delta_mib": round((self.memory_peak - self.memory_before) / 2**20),
            "livez": {"asked": len(self.probes_s) + self.probes_failed, "failed": self.probes_failed,
                      **_percentiles(self.probes_s)},
            "health_checks": {"asked": len(self.checks_s) + self.checks_failed, "failed": self.checks_failed,
                              **_percentiles(self.checks_s)},
            "plans": {"asked": asked, "answered": len(self.plans_s), "late": late, **_percentiles(self.plans_s),
                      "refused": sorted(set(self.plans_refused))},
            "log_kib": round((self.target.log.stat().st_size - self.log_before) / 1024, 1),
        }  # fmt: skip


def _percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {f"p{each}_ms": round(1e3 * float(np.percentile(seconds, each)), 1) for each in (50, 99, 100)}


@contextmanager
def metering(target: Target) -> Iterator[Meter]:
    """Probe, plan and weigh until this is left."""
    meter = Meter(target, resident_bytes(target.pid), log_before=target.log.stat().st_size)
    headers = {"x-api-key": OTHER} if target.key else {}
    with httpx.Client(base_url=target.rest, headers=headers, trust_env=False, timeout=10) as client:
        body = _plan_body(client)
        stop = threading.Event()
        work: list[Callable[[], None]] = [
            lambda: _every(stop, 1 / PROBES_HZ, lambda: _probe(meter)),
            lambda: _every(stop, 0.5, lambda: _check(meter)),
            lambda: _every(stop, 1 / PLANS_HZ, lambda: _plan(meter, client, body)),
            lambda: _every(stop, 0.05, lambda: _weigh(meter)),
        ]
        threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in threads:
            thread.start()
        try:
            yield meter
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)


def _every(stop: threading.Event, period_s: float, work: Callable[[], None]) -> None:
    due = time.monotonic()
    while not stop.is_set():
        work()
        due = max(due + period_s, time.monotonic())
        stop.wait(max(0.0, due - time.monotonic()))


def _probe(meter: Meter) -> None:
    """As an orchestrator does: a connection of its own each time."""
    began = time.perf_counter()
    try:
        with socket.create_connection(meter.target.address("rest"), timeout=5) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                raise OSError
        meter.probes_s.append(time.perf_counter() - began)
    except OSError:
        meter.probes_failed += 1


def _check(meter: Meter) -> None:
    began = time.perf_counter()
    try:
        with grpc.insecure_channel(meter.target.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise RuntimeError
        meter.checks_s.append(time.perf_counter() - began)
    except (grpc.RpcError, RuntimeError):
        meter.checks_failed += 1


def _plan(meter: Meter, client: httpx.Client, body: dict[str, Any]) -> None:
    began = time.perf_counter()
    try:
        reply = client.post("/v1/plans", json=body, headers={"x-timeout-ms": str(1e3 * DEADLINE_S)})
        took = time.perf_counter() - began
        if reply.status_code == 200:
            meter.plans_s.append(took)
        else:
            meter.plans_refused.append(reply.json()["code"])
    except (httpx.HTTPError, ValueError) as error:
        meter.plans_refused.append(type(error).__name__)


def _weigh(meter: Meter) -> None:
    meter.memory_peak = max(meter.memory_peak, resident_bytes(meter.target.pid))


def plain_image(client: httpx.Client) -> dict[str, Any]:
    """A gray picture of the size that the service's first model takes."""
    model = client.get("/v1/models").raise_for_status().json()["models"][0]
    height, width = model["image"]["height"], model["image"]["width"]
    pixels = np.full((height, width, 3), 90, np.uint8).tobytes()
    return {"raw": {"height": height, "width": width, "format": "rgb8", "data": base64.b64encode(pixels).decode()}}


def _plan_body(client: httpx.Client) -> dict[str, Any]:
    """A plan of another robot: small, in a session, toward a goal of its own."""
    image = plain_image(client)
    goal = client.post("/v1/goals", json={"image": image}).raise_for_status().json()["goal_id"]
    session = client.post("/v1/sessions", json={"goal_id": goal}).raise_for_status().json()["session_id"]
    planner = {"samples": 32, "iterations": 2, "elites": 4}
    return {"session_id": session, "observation": {"images": [image]}, "budget_ms": BUDGET_MS, "planner": planner}
