"""`scripts/setup` with a real pip and no network: a project of one module, whose extra is a wheel in a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "presage-service"
version = "1.0"
dependencies = []

[project.optional-dependencies]
service = ["something"]
http = ["nowhere-to-be-had"]
"""
BACKEND = """
import zipfile
from pathlib import Path


def build_editable(folder, settings=None, metadata=None):
    name = "presage_service-1.0-py3-none-any.whl"
    extras = {"service": "something", "http": "nowhere-to-be-had"}
    lines = "".join(f"Provides-Extra: {e}\\nRequires-Dist: {p}; extra == '{e}'\\n" for e, p in extras.items())
    with zipfile.ZipFile(Path(folder, name), "w") as wheel:
        wheel.writestr("presage_service.pth", str(Path.cwd()))
        wheel.writestr("presage_service-1.0.dist-info/METADATA",
                       f"Metadata-Version: 2.1\\nName: presage-service\\nVersion: 1.0\\n{lines}")
        wheel.writestr("presage_service-1.0.dist-info/WHEEL",
                       "Wheel-Version: 1.0\\nGenerator: here\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("presage_service-1.0.dist-info/RECORD", "")
    return name


def build_wheel(folder, settings=None, metadata=None):
    raise NotImplementedError
"""


class Checkout:
    """A checkout of its own, set up as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir(parents=True)
        for name in ("setup", "environment.py"):
            shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "backend.py").write_text(BACKEND)
        (folder / "constraints.txt").write_text("something==2.0\n")
        (folder / "wheels").mkdir()
        with zipfile.ZipFile(folder / "wheels/something-2.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("something.py", "")
            about = "something-2.0.dist-info/"
            wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: something\nVersion: 2.0\n")
            wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(about + "RECORD", "")

    def set_up(self, extras: str, **variables: str) -> subprocess.CompletedProcess[str]:
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder / "wheels"), "PIP_CONFIG_FILE": os.devnull}
        environment = {"PATH": "/usr/bin:/bin", "EXTRAS": extras, "PYTHON": sys.executable, **pip, **variables}
        command = ["bash", self.folder / "scripts/setup"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    def has(self, module: str) -> bool:
        asked = [self.folder / ".venv/bin/python", "-c", f"import {module}"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """One that is set up already, without extras."""
    made = Checkout(tmp_path_factory.mktemp("setup") / "checkout")
    done = made.set_up("")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stdout + done.stderr
    assert "GB to fetch" in done.stdout
    assert not made.has("something")
    return made


def test_what_is_up_to_date_is_left_alone_without_a_word(checkout: Checkout) -> None:
    again = checkout.set_up("")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_an_extra_is_added_and_stays_when_less_is_asked_for(checkout: Checkout) -> None:
    assert checkout.set_up("service").returncode == 0
    assert checkout.has("something")
    assert checkout.set_up("").stdout == ""
    assert checkout.has("something")
    (checkout.folder / "constraints.txt").write_text("something==2.0\n# newer\n")
    assert "service" in checkout.set_up("").stdout  # pins that changed are those of all that is installed
    assert checkout.has("something")


def test_pips_own_reason_is_told_and_what_was_there_still_works(checkout: Checkout) -> None:
    failed = checkout.set_up("http")
    assert failed.returncode == 1
    assert "No matching distribution found for nowhere-to-be-had" in failed.stderr
    assert ".venv/setup.log" in failed.stderr
    assert checkout.set_up("").returncode == 0


def test_an_extra_that_is_none_is_refused_by_name(checkout: Checkout) -> None:
    refused = checkout.set_up("service,everything")
    assert refused.returncode == 1
    assert refused.stderr == "EXTRAS must be among http, service, got everything\n"


def test_a_python_that_is_too_old_or_none_is_refused(checkout: Checkout) -> None:
    refused = checkout.set_up("", PYTHON="/bin/false")
    assert refused.returncode == 1
    assert "PYTHON must be a Python of 3.10 or newer, got /bin/false" in refused.stderr


def test_a_venv_that_was_left_half_made_is_made_again(checkout: Checkout) -> None:
    (checkout.folder / ".venv/.presage-unfinished").touch()
    done = checkout.set_up("service")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Making .venv again: it was left half made" in done.stdout
    assert checkout.has("something")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("rm .venv/bin/python*", "has no Python that runs"),
        ("mv .venv/lib/python3.* .venv/lib/python3.2", "was made by another Python"),
        ("rm -r .venv/lib/python3.*/site-packages/*", "has no pip"),
        ("sed -i s,/.venv,/x/.venv, .venv/bin/activate", "was made in another folder"),
        ("true", ""),
    ],
)
def test_a_venv_that_cannot_be_used_is_recognized(tmp_path: Path, spoil: str, why: str) -> None:
    spoilt = Checkout(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    packages = next(tmp_path.glob(".venv/lib/python3.*/site-packages"))
    (packages / "pip.py").touch()
    subprocess.run(["bash", "-c", spoil], cwd=tmp_path, check=True)
    asked = "import environment; print(environment._unusable())"
    told = subprocess.run(
        [sys.executable, "-c", asked], cwd=spoilt.folder / "scripts", capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith(why)
    assert bool(told.stdout.strip()) == bool(why)


def test_a_venv_of_another_python_is_made_again_where_this_one_is_asked_for(tmp_path: Path) -> None:
    made = Checkout(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    next(tmp_path.glob(".venv/lib/python3.*/site-packages")).joinpath("pip.py").touch()
    asked = "import sys, environment; sys.version_info = (3, 99, 0); print(environment._unusable())"
    for variables, stamped, wanted in (({"PYTHON": "python3.99"}, True, True), ({}, True, False), ({}, False, True)):
        (tmp_path / ".venv/.presage-setup").write_text("") if stamped else (tmp_path / ".venv/.presage-setup").unlink()
        told = subprocess.run(
            [sys.executable, "-c", asked],
            cwd=made.folder / "scripts",
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("not cpython 3.99" in told.stdout) == wanted


def test_a_link_is_never_removed(checkout: Checkout, tmp_path: Path) -> None:
    linked = Checkout(tmp_path / "linked")
    (tmp_path / "elsewhere").mkdir()
    (linked.folder / ".venv").symlink_to(tmp_path / "elsewhere")
    refused = linked.set_up("")
    assert refused.returncode == 1
    assert "is a link to" in refused.stderr
    assert (tmp_path / "elsewhere").exists()
