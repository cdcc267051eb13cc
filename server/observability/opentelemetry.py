"""Exports spans to an OpenTelemetry collector, where the extra `otel` is installed and an endpoint is set.

Ids are those of the trace context, so that logs, replies and spans name the same. Nothing else of the service knows
OpenTelemetry.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import replace

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.observability.tracing import HEADER, TraceContext

_propagator = TraceContextTextMapPropagator()
_given: ContextVar[TraceContext] = ContextVar("presage_span")


class _GivenIds(IdGenerator):
    """The ids that the service gave a span already."""

    def generate_span_id(self) -> int:
        return int(_given.get().span_id, 16)

    def generate_trace_id(self) -> int:
        return int(_given.get().trace_id, 16)


class OtelSpans:
    """A `tracing.SpanSink` over OpenTelemetry's SDK. `close` sends what waits."""

    def __init__(self, processor: SpanProcessor, version: str) -> None:
        resource = Resource.create({"service.name": "presage", "service.version": version})
        self._provider = TracerProvider(resource=resource, id_generator=_GivenIds(), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("presage")

    @classmethod
    def to(cls, endpoint: str, version: str) -> OtelSpans:
        """Send spans to an OTLP endpoint over HTTP, in batches, from a thread. Raises ImportError without the extra."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), version)

    def ended(self, trace: TraceContext, name: str, attributes: dict[str, str], began_ns: int, ended_ns: int) -> None:
        """See `tracing.SpanSink`. A trace that its caller did not sample is not sent."""
        parent = replace(trace, span_id=trace.parent_id).header  # none where there is no parent: nothing is read then
        context = _propagator.extract({HEADER: parent}, context=Context())
        token = _given.set(trace)
        try:
            span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes, start_time=began_ns)
        finally:
            _given.reset(token)
        code = attributes["presage.code"]
        span.set_status(Status(StatusCode.OK) if code == "OK" else Status(StatusCode.ERROR, code))
        span.end(ended_ns)

    def close(self) -> None:
        """Send what waits, within the SDK's own time limits."""
        self._provider.shutdown()
