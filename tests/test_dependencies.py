"""What Presage is built on: pinned, within its ranges, under licenses that allow it, and at no version known to be bad.

This works offline and knows only the advisories in its list; `scripts/audit` asks the advisory database.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.paths import ROOT

SAFE_FROM = {
    "certifi": ("2024.7.4", "CVE-2024-39689"),
    "fastapi": ("0.109.1", "CVE-2024-24762"),
    "h11": ("0.16.0", "CVE-2025-43859"),
    "idna": ("3.7", "CVE-2024-3651"),
    "jinja2": ("3.1.6", "CVE-2025-27516"),
    "opencv-python": ("4.8.1.78", "CVE-2023-4863"),
    "pillow": ("10.3.0", "CVE-2024-28219"),
    "protobuf": ("5.29.5", "CVE-2025-4565"),
    "python-multipart": ("0.0.18", "CVE-2024-53981"),
    "pyyaml": ("5.4", "CVE-2020-14343"),
    "requests": ("2.32.4", "CVE-2024-47081"),
    "starlette": ("0.49.1", "CVE-2025-62727"),
    "torch": ("2.6.0", "CVE-2025-32434"),
    "urllib3": ("2.5.0", "CVE-2025-50181"),
    "werkzeug": ("3.0.6", "CVE-2024-49767"),
}
"""First versions without an advisory that concerned earlier ones."""

NOT_OURS = ("nvidia-", "triton", "cuda-", "setuptools")
"""What a build of torch brings, by platform, and what every environment has."""

ALLOWED = re.compile(r"MIT|BSD|Apache|ISC|PSF|Python Software|HPND|Zlib|MPL|Mozilla|0BSD|Unlicense|CMU", re.IGNORECASE)


PLACES = [
    {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": ".".join(version.split(".")[:2]),
        "python_full_version": version,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    for version in ("3.10.12", "3.11.2", "3.12.3", "3.13.0")
    for machine in ("x86_64", "aarch64")
]
"""The Pythons that are promised, as Ubuntu and Debian have them, on the machines that robots have."""

in_every_place = pytest.mark.parametrize(
    "place", PLACES, ids=lambda place: f"{place['python_full_version']}-{place['platform_machine']}"
)


def pinned_requirements(place: dict[str, str] | None = None) -> list[Requirement]:
    """The lines of constraints.txt that hold in a place, this one by default."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate(place)]


def pins(place: dict[str, str] | None = None) -> dict[str, str]:
    return {canonicalize_name(each.name): str(each.specifier)[2:] for each in pinned_requirements(place)}


def project() -> dict[str, Any]:
    """pyproject.toml's table; Python has a reader from 3.11 on, and pytest brings one before."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    table: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def declared(extras: tuple[str, ...] = (), place: dict[str, str] | None = None) -> list[Requirement]:
    """What pyproject.toml asks for in a place, this one by default."""
    table = project()
    found = [*table["dependencies"], *(each for name in extras for each in table["optional-dependencies"][name])]
    wanted = [Requirement(each) for each in found]
    return [each for each in wanted if each.marker is None or each.marker.evaluate(place)]


def needed(requirements: list[Requirement]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that these need, and those that they need in turn."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        for line in found[name].requires or []:
            inner = Requirement(line)
            asked = (
                [
                    inner.marker.evaluate({**default_environment(), "extra": extra})
                    for extra in requirement.extras or {""}
                ]
                if inner.marker
                else [True]
            )
            if any(asked):
                waiting.append(inner)
    return found


def test_everything_the_service_needs_is_pinned_and_installed_as_pinned() -> None:
    pinned, loose = pins(), []
    for name, distribution in needed(declared()).items():
        installed = Version(distribution.version).public
        if name not in pinned or Version(pinned[name]).public != installed:
            loose.append(f"{name} {installed}, pinned {pinned.get(name)}")
    loose = [line for line in loose if not line.startswith(NOT_OURS)]
    assert loose == []


def test_the_demo_needs_few_packages() -> None:
    assert len([name for name in needed(declared()) if not name.startswith(NOT_OURS)]) <= 50


@in_every_place
def test_everything_is_pinned_once_and_within_its_range(place: dict[str, str]) -> None:
    pinned = pins(place)
    wrong = []
    for requirement in declared(tuple(project()["optional-dependencies"]), place):
        version = pinned.get(canonicalize_name(requirement.name))
        if requirement.name != "presage-service" and (version is None or not requirement.specifier.contains(version)):
            wrong.append(f"{requirement} but pinned {version}")
    assert wrong == []
    times = Counter(canonicalize_name(each.name) for each in pinned_requirements(place))
    assert [name for name, count in times.items() if count > 1] == []


@in_every_place
def test_nothing_is_pinned_or_installed_at_a_version_known_to_be_bad(place: dict[str, str]) -> None:
    pinned, bad = pins(place), []
    for name, (first, advisory) in SAFE_FROM.items():
        versions = {pinned[name]} if name in pinned else set()
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.add(Version(importlib.metadata.version(name)).public)
        bad += [f"{name} {version}: {advisory}" for version in versions if Version(version) < Version(first)]
    assert bad == []
    assert len(set(SAFE_FROM) & set(pinned)) >= 12  # the list is about what is used


def test_licenses_of_what_the_service_needs_allow_its_use() -> None:
    odd = []
    for name, distribution in needed(declared()).items():
        metadata = distribution.metadata
        told = [metadata.get("License-Expression") or "", (metadata.get("License") or "")[:200]]
        told += [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
        if not ALLOWED.search(" ".join(told)) and not name.startswith(NOT_OURS):
            odd.append(f"{name}: {told}")
    assert odd == []
