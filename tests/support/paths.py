"""Where the checkout lies, and what may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # numerical fixtures; a clone without it skips the tests that read it
