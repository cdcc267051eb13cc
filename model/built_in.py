"""The packages that come with Presage, by name. Imports no torch."""

from __future__ import annotations

from pathlib import Path

BUILT_IN = Path(__file__).parent / "packages"


def built_in() -> tuple[str, ...]:
    """Names of the packages that come with Presage."""
    return tuple(sorted(folder.name for folder in BUILT_IN.iterdir() if folder.is_dir())) if BUILT_IN.exists() else ()
