"""Packages that only an extra of pyproject.toml installs: the error where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from presage.user_error import UserError


class MissingExtra(UserError, ImportError):
    """A package is not installed; the message says what needs it and how to install it."""


def missing(packages: tuple[str, ...], extra: str, what: str) -> str:
    """Which of these packages are not installed, as a message that says what to do; empty where all are."""
    absent = [package for package in packages if find_spec(package) is None]
    return f"{what} needs {' and '.join(absent)}; {advice(extra)}" if absent else ""


def require(package: str, extra: str, what: str) -> None:
    """Raises MissingExtra where ``package``, which ``what`` needs and ``extra`` brings, is not installed."""
    if message := missing((package,), extra, what):
        raise MissingExtra(message)


def advice(extra: str) -> str:
    """How an extra is installed."""
    return f"install the extra '{extra}' (pip install -c constraints.txt -e '.[{extra}]')"
