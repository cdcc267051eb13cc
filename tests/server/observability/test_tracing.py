"""Trace context: read as the standard says, told on both transports, named in logs, and sent as spans where wanted."""

from __future__ import annotations

import asyncio
import importlib.util

import pytest
import structlog
from presage.v1 import models_pb2, sessions_pb2

from server.config import load
from server.observability import tracing
from server.service.application import Application
from server.serving import spans_of
from server.transport.listeners import StartError
from tests.support.server.transports import open_service

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_span_belongs_to_its_callers_trace() -> None:
    span = tracing.begun(PARENT)
    assert (span.trace_id, span.parent_id, span.flags) == (TRACE_ID, "00f067aa0ba902b7", 1)
    assert span.span_id != span.parent_id
    assert tracing.begun(span.header).trace_id == TRACE_ID
    assert tracing.begun(PARENT[:-2] + "00").flags == 0
    assert tracing.begun("01" + PARENT[2:] + "-more").trace_id == TRACE_ID  # a later version may say more


@pytest.mark.parametrize(
    "header",
    [
        None, "", "nonsense", PARENT.upper(), PARENT + "-more", "ff" + PARENT[2:], PARENT[:-1], " " + PARENT,
        f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE_ID}-{'0' * 16}-01",
    ],
)  # fmt: skip
def test_a_header_that_breaks_the_standard_begins_a_trace_of_its_own(header: str | None) -> None:
    span = tracing.begun(header)
    assert span.trace_id != TRACE_ID
    assert (len(span.trace_id), len(span.span_id), span.parent_id) == (32, 16, "")


@pytest.mark.asyncio(loop_scope="session")
async def test_both_transports_tell_the_span_and_every_log_line_names_it(application: Application) -> None:
    async with open_service(application) as service:
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
            gone = await service.rest.get("/v1/sessions/none", headers={"traceparent": PARENT})
            call = service.models.List(models_pb2.ModelsListRequest(), metadata=(("traceparent", PARENT),))
            await call
            by_grpc = dict(await call.trailing_metadata())["traceparent"]
            refused = service.sessions.Get(sessions_pb2.SessionsGetRequest(session_id="none"))
            refused_with = dict(await refused.trailing_metadata())["traceparent"]
        spans = [header.split("-")[2] for header in (gone.headers["traceparent"], by_grpc, refused_with)]
        assert gone.headers["traceparent"].split("-")[1] == by_grpc.split("-")[1] == TRACE_ID
        assert refused_with.split("-")[1] != TRACE_ID
        told = {entry["span_id"]: entry for entry in logs if entry["event"] == "call"}
        assert set(spans) == set(told)
        assert [told[span]["trace_id"] == TRACE_ID for span in spans] == [True, True, False]
        assert tracing.current() == ""


def test_an_endpoint_without_the_extra_is_told_when_the_service_starts() -> None:
    if importlib.util.find_spec("opentelemetry.exporter") is not None:
        pytest.skip("the extra otel is installed")
    settings = load(flags={"otlp_endpoint": "http://127.0.0.1:4318/v1/traces"})
    with pytest.raises(StartError, match="the extra otel"):
        spans_of(settings)
    assert spans_of(load()) is None


@pytest.mark.asyncio(loop_scope="session")
async def test_tasks_of_a_call_work_for_its_trace() -> None:
    span = tracing.begun(PARENT)
    with tracing.working_for(span):
        task = asyncio.create_task(_current())
    assert await task == span.header
    assert tracing.current() == ""


async def _current() -> str:
    return tracing.current()


@pytest.mark.asyncio(loop_scope="session")
async def test_spans_are_sent_with_the_ids_that_callers_and_logs_are_told(application: Application) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from server.observability.opentelemetry import OtelSpans

    sent = InMemorySpanExporter()
    spans = OtelSpans(SimpleSpanProcessor(sent), "1.2.3")
    async with open_service(application, spans=spans) as service:
        ok = await service.rest.get("/v1/models", headers={"traceparent": PARENT})
        gone = await service.rest.get("/v1/sessions/none")
        unsampled = {"traceparent": PARENT[:-2] + "00"}
        await service.rest.get("/v1/models", headers=unsampled)
        await service.rest.get("/livez")
    spans.close()
    first, second = sent.get_finished_spans()
    for span, reply in ((first, ok), (second, gone)):
        _, trace_id, span_id, _ = reply.headers["traceparent"].split("-")
        assert (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}") == (trace_id, span_id)
        assert span.resource.attributes["service.version"] == "1.2.3"
        assert span.attributes["presage.request_id"] == reply.headers["x-request-id"]
        assert span.end_time > span.start_time
    assert (first.name, first.status.is_ok, f"{first.parent.span_id:016x}") == ("Models.List", True, "00f067aa0ba902b7")
    assert (second.name, second.status.is_ok, second.parent) == ("Sessions.Get", False, None)
    assert second.attributes["presage.code"] == "UNKNOWN_SESSION"
