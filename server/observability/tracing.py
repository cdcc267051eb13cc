"""W3C trace context: the identity of a call across services, read from callers, told to them, named in every log line.

Sending spans anywhere is optional and lives in otel. https://www.w3.org/TR/trace-context
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import structlog

HEADER = "traceparent"
SAMPLED = 1

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class TraceContext:
    """One span of a trace, in lower-case hexadecimal. `parent_id` is empty for a trace that begins here."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    flags: int = SAMPLED

    @property
    def header(self) -> str:
        """As a traceparent header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


class SpanSink(Protocol):
    """Takes spans that are over. Must neither wait nor fail."""

    def ended(self, trace: TraceContext, name: str, attributes: dict[str, str], began_ns: int, ended_ns: int) -> None:
        """`attributes["presage.code"]` is OK or the reason of an error; instants are on the system clock."""


def begun(header: str | None) -> TraceContext:
    """A new span: a child of the caller's, if its header is one the standard allows, else of a new trace."""
    found = _FORM.fullmatch(header) if header else None
    if found is not None:
        version, trace_id, parent_id, flags, more = found.groups()
        allowed = version != "ff" and not (version == "00" and more)
        if allowed and trace_id.strip("0") and parent_id.strip("0"):
            return TraceContext(trace_id, secrets.token_hex(8), parent_id, int(flags, 16) & SAMPLED)
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8))


_current: ContextVar[TraceContext | None] = ContextVar("presage_trace", default=None)


def current() -> str:
    """The traceparent of the call that this task works for; empty outside of any."""
    trace = _current.get()
    return "" if trace is None else trace.header


@contextmanager
def working_for(trace: TraceContext) -> Iterator[None]:
    """Name the trace in the log lines of this task and of those it starts."""
    token = _current.set(trace)
    try:
        with structlog.contextvars.bound_contextvars(trace_id=trace.trace_id, span_id=trace.span_id):
            yield
    finally:
        _current.reset(token)
