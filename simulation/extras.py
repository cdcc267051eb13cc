"""Errors for robots whose extra is not installed, and where its files lie."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from presage.user_error import UserError


class MissingSimulator(UserError, ImportError):
    """A simulator, or a library it draws with, is not installed; the message says how to install it."""


def package_folder(package: str, missing: str) -> Path:
    """Where an installed package's files lie; it is not imported. MissingSimulator with ``missing`` otherwise."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingSimulator(missing)
    return Path(found.submodule_search_locations[0])
