"""`presage --version`: what a report of a fault should begin with."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from importlib.util import find_spec
from pathlib import Path

import typer

_BUILDS = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}


def show_version(wanted: bool) -> None:
    """Say it and end, if this is wanted."""
    if wanted:
        typer.echo(version_line())
        raise typer.Exit


def version_line() -> str:
    """Presage, Python, and torch with what it was built for; torch is not imported, which takes seconds."""
    own = importlib.metadata.version("presage-service")
    return f"presage {own}, Python {platform.python_version()} on {platform.machine()}, torch {torch_build()}"


def torch_build() -> str:
    """Such as "2.13.0+cpu (CPU)" or "2.13.0+cu130 (CUDA 13.0)"; "not installed" without torch."""
    found = find_spec("torch")  # finds the file, runs nothing of it
    if found is None or found.origin is None:
        return "not installed"
    text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    told = dict(re.findall(r"^(__version__|cuda|hip|xpu)\b[^=\n]*= *'([^'\n]+)'", text, re.MULTILINE))
    built_for = next((f"{title} {told[name]}" for name, title in _BUILDS.items() if name in told), "CPU")
    return f"{told.get('__version__', importlib.metadata.version('torch'))} ({built_for})"
