"""Runs commands inside the test's process, as the `presage` script would."""

from __future__ import annotations

from cli import exit_codes
from cli.main import app


def run_command(*arguments: str) -> int:
    """The exit code; what was written is the test's to capture."""
    try:
        return exit_codes.run(lambda: app(list(arguments), prog_name="presage"))
    except SystemExit as ended:
        return int(ended.code or 0)
