"""Prometheus metrics, as a value.

Labels never hold what a caller chose (session, goal, request): their number is bounded by the code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from presage.values import Plan
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from server.observability.sparse_log import SparseLog

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds: steps around a plan
_SLOW = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)  # whole calls
_COUNTS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 100)


class Totals(Collector):
    """Counters that the service keeps elsewhere; read when the metrics are."""

    def __init__(self) -> None:
        self._read: dict[str, Callable[[], float]] = {}

    def read(self, name: TotalName, value: Callable[[], float]) -> None:
        """From now on the counter is what `value` returns."""
        self._read[name] = value

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, documentation in _TOTALS.items():
            yield CounterMetricFamily(name, documentation, value=self._read.get(name, lambda: 0.0)())


TotalName = Literal[
    "presage_engine_restarts", "presage_records", "presage_records_dropped", "presage_connections_ended"
]
_TOTALS: dict[TotalName, str] = {
    "presage_engine_restarts": "How often an engine died and was started again",
    "presage_records": "Plans kept by the flight recorder",
    "presage_records_dropped": "Plans the flight recorder had no time or room for",
    "presage_connections_ended": "Connections refused, or ended for a newer one, at the limit on connections",
}


@dataclass(frozen=True)
class Telemetry:
    """The metrics of one service, in a registry of its own."""

    registry: CollectorRegistry
    requests: Counter
    request_seconds: Histogram
    in_flight: Gauge
    queue_seconds: Histogram
    decode_seconds: Histogram
    encode_seconds: Histogram
    plan_seconds: Histogram
    plan_iterations: Histogram
    plans: Counter
    plans_degraded: Counter
    plans_short: Counter
    degraded_log: SparseLog
    skipped_observations: Counter
    uploaded_bytes: Counter
    sessions: Gauge
    engine_calls: Gauge
    goal_bytes: Gauge
    engine_memory: Gauge
    connections: Gauge
    totals: Totals
    ready: Gauge
    build: Info

    @classmethod
    def create(cls) -> Telemetry:
        registry, totals = CollectorRegistry(), Totals()
        registry.register(totals)
        ProcessCollector(registry=registry)  # the front's memory, processor time, open files and start
        return cls(
            registry=registry,
            requests=Counter(
                "presage_requests",
                "Calls answered, by reason of the answer",
                ("transport", "rpc", "code"),
                registry=registry,
            ),
            request_seconds=Histogram(
                "presage_request_seconds",
                "Calls from receipt to answer",
                ("transport", "rpc"),
                buckets=_SLOW,
                registry=registry,
            ),
            in_flight=Gauge(
                "presage_requests_in_flight", "Calls and streams in progress", ("transport",), registry=registry
            ),
            queue_seconds=Histogram("presage_queue_seconds", "Plans waiting", buckets=_FAST, registry=registry),
            decode_seconds=Histogram("presage_decode_seconds", "Images decoded", buckets=_FAST, registry=registry),
            encode_seconds=Histogram(
                "presage_encode_seconds", "Observations encoded", buckets=_FAST, registry=registry
            ),
            plan_seconds=Histogram("presage_plan_seconds", "Plans searched", buckets=_SLOW, registry=registry),
            plan_iterations=Histogram(
                "presage_plan_iterations", "Search iterations", buckets=_COUNTS, registry=registry
            ),
            plans=Counter(
                "presage_plans", "Plans made, by why the search stopped", ("stop_reason",), registry=registry
            ),
            plans_degraded=Counter("presage_plans_degraded", "Plans cut short for want of time", registry=registry),
            plans_short=Counter(
                "presage_plans_short",
                "Plans cut short for want of time, by each thing that they lack",
                ("lacks",),
                registry=registry,
            ),
            degraded_log=SparseLog("plans_degraded", time.monotonic),
            skipped_observations=Counter(
                "presage_skipped_observations", "Observations replaced by a newer one", registry=registry
            ),
            uploaded_bytes=Counter("presage_uploaded_bytes", "Bytes of clips received", registry=registry),
            sessions=Gauge("presage_sessions", "Open sessions", registry=registry),
            engine_calls=Gauge("presage_engine_calls", "Calls in engines, running or waiting", registry=registry),
            goal_bytes=Gauge("presage_goal_bytes", "Bytes of goals' latents held", registry=registry),
            engine_memory=Gauge(
                "presage_engine_resident_memory_bytes",
                "Resident memory of an engine process; the front's is process_resident_memory_bytes",
                ("engine",),
                registry=registry,
            ),
            connections=Gauge("presage_connections", "Open connections", ("transport",), registry=registry),
            totals=totals,
            ready=Gauge("presage_ready", "Whether new work is welcome", registry=registry),
            build=Info("presage_build", "What is running", registry=registry),
        )

    def observe_plan(self, plan: Plan) -> None:
        timings = plan.timings
        self.queue_seconds.observe(timings.queue_ms / 1e3)
        self.decode_seconds.observe(timings.decode_ms / 1e3)
        self.encode_seconds.observe(timings.encode_ms / 1e3)
        self.plan_seconds.observe(timings.plan_ms / 1e3)
        self.plan_iterations.observe(plan.iterations_done)
        self.plans.labels(plan.stop_reason).inc()
        if plan.degraded:
            self.plans_degraded.inc()
            for lacking in plan.shortage:
                self.plans_short.labels(lacking).inc()
            self.degraded_log.warn(model=plan.provenance.model, lacks=list(plan.shortage), warnings=list(plan.warnings))

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
