"""Structured logs on standard error: lines to read, or one JSON object per line and nothing else."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Literal

import structlog

from server.observability.log_rate import LimitedLines, LineRate

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(style: LogFormat, level: LogLevel) -> None:
    """Send structured logs, and those of libraries at warning and above, to standard error. Call it once, at start."""
    shared: Sequence[structlog.typing.Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )
    renderer: structlog.typing.Processor
    if style == "json":  # tracebacks as plain text: the richer kinds show local variables, images and keys among them
        shared = (*shared, structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    else:
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    number = _LEVELS[level]
    limited = [] if number <= logging.DEBUG else [LimitedLines(LineRate())]
    structlog.configure(
        processors=[*limited, *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=renderer))
    for each in limited:
        handler.addFilter(each)
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def wrap_plain_lines() -> None:
    """Turn every line on standard error that is not a JSON object into one, whoever writes it. Call it once, at start.

    Native libraries (gRPC, FFmpeg, CUDA) and child processes write to file descriptor 2 without asking Python. The
    descriptor becomes a pipe; a thread copies JSON lines unchanged and wraps all others as
    `{"event": LINE, "level": "warning", "source": "stderr", "timestamp": ...}`.
    """
    sys.stderr.flush()
    original = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    copying = threading.Thread(target=_copy_lines, args=(reading, original), name="stderr-as-json", daemon=True)
    copying.start()

    def restore() -> None:
        sys.stderr.flush()
        os.dup2(original, 2)  # closes this process's end of the pipe: the thread reaches its end and stops
        copying.join(timeout=1.0)

    atexit.register(restore)


def _copy_lines(reading: int, original: int) -> None:
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            text = line.strip()
            if text:
                _write_all(original, (text if _is_object(text) else _wrapped(text)) + b"\n")


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _is_object(text: bytes) -> bool:
    if not text.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _wrapped(text: bytes) -> bytes:
    stamp = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    entry = {"event": text.decode(errors="replace"), "level": "warning", "source": "stderr", "timestamp": stamp}
    return json.dumps(entry).encode()
