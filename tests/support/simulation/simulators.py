"""Whether this machine can run and draw what MuJoCo simulates: installed, and with an OpenGL library."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.util import find_spec

import pytest

PACKAGES = {"cube": ("mujoco", "dm_control", "ogbench"), "reacher": ("mujoco", "dm_control")}


def require(task: str) -> None:
    """Skips the test, with the reason, where the task's simulator is missing."""
    if task in PACKAGES and (reason := lacking(task)):
        pytest.skip(reason)


@cache
def lacking(task: str) -> str:
    """What a task of MuJoCo's lacks here, or nothing. OpenGL is tried in a process that it can take along."""
    absent = [name for name in PACKAGES[task] if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)}: not installed (extra 'mujoco')"
    program = f"from simulation.tasks import make; make({task!r}, 16).render()"
    tried = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else ""
