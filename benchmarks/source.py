"""The commit that a measurement was made with."""

from __future__ import annotations

import subprocess


def commit() -> str:
    """The short hash of the checked-out commit; "unknown" outside a checkout."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
