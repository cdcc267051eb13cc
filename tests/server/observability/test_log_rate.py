"""Log lines within a rate: a flood of one kind leaves the others readable, and says how much of it there was."""

from __future__ import annotations

import logging

import pytest
import structlog

from server.observability.log_rate import LimitedLines, LineRate


def test_a_flood_of_one_kind_is_cut_to_its_rate_and_others_are_not() -> None:
    now = 100.0
    rate = LineRate(burst=3, per_s=1.0, clock=lambda: now)
    assert [rate.admit("flood") for _ in range(6)] == [0, 0, 0, None, None, None]
    assert rate.admit("other") == 0
    now = 101.0
    assert rate.admit("flood") == 3
    assert rate.admit("flood") is None


def test_kinds_without_end_are_not_remembered_without_end() -> None:
    rate = LineRate(burst=1, per_s=0.0)
    admitted = [rate.admit(f"kind {number}") for number in range(10_000)]
    assert sum(each is not None for each in admitted) == 257
    assert len(rate._kinds) == 257


def test_lines_of_libraries_and_structured_ones_are_limited_alike() -> None:
    limited = LimitedLines(LineRate(burst=1, per_s=0.0))
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "Invalid HTTP request received.", None, None)
    assert limited.filter(record)
    assert not limited.filter(record)
    assert limited(None, "info", {"event": "call", "code": "DEADLINE"}) == {"event": "call", "code": "DEADLINE"}
    with pytest.raises(structlog.DropEvent):
        limited(None, "info", {"event": "call", "code": "DEADLINE"})
    assert limited(None, "info", {"event": "call", "code": "OVERLOADED"})
