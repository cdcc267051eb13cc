"""JSON logs are JSON alone, whoever writes to standard error."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.paths import ROOT

PROGRAM = """
import logging, os, subprocess, sys
import structlog
from server.observability.logging import configure_logging, wrap_plain_lines

configure_logging("json", "info")
wrap_plain_lines()
structlog.get_logger().info("ours", number=1)
logging.getLogger("library").warning("a library's")
os.write(2, b"E0000 00:00:00.000000 native.cc:1] a native library's\\n")
os.write(2, b"half a line, ")
os.write(2, b"and the rest\\n\\n")
os.write(2, b'["an", "array"]\\n')
subprocess.run(["sh", "-c", "echo a child\\\\'s >&2"], check=True)
os.write(2, "bytes \\xff\\n".encode("latin-1"))
raise ValueError("and a traceback")
"""


def test_every_line_is_an_object_with_an_event() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, check=False)
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    events = [entry["event"] for entry in entries]
    assert done.returncode == 1
    assert events[:2] == ["ours", "a library's"]
    assert events[2] == "E0000 00:00:00.000000 native.cc:1] a native library's"
    assert events[3:6] == ["half a line, and the rest", '["an", "array"]', "a child's"]
    assert events[6] == "bytes \ufffd"
    assert events[-1] == "ValueError: and a traceback"
    assert {entry["source"] for entry in entries[2:]} == {"stderr"}
    assert all(entry["timestamp"].endswith("Z") for entry in entries)
