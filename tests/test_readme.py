"""The README is true: its client code runs against the real service, and the files it names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.private_service import private_service
from model.built_in import built_in
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.skipif("arm" not in built_in(), reason="the built-in package arm is not here")
def test_the_client_code_runs_as_it_stands(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code) == 1
    with private_service("arm", device="cpu", threads=1) as service:
        script = tmp_path / "example.py"
        assert "127.0.0.1:50051" in code[0]
        script.write_text(code[0].replace("127.0.0.1:50051", service.grpc))
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    shape, reason, _distance = re.fullmatch(r"(\(\d+, 2\)) (\w+) (\S+)", done.stdout.strip()).groups()  # type: ignore[union-attr]
    assert shape == "(20, 2)" or shape == "(25, 2)"
    assert reason in ("budget", "iterations", "converged")


def test_every_file_it_names_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) >= 8
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def test_the_tour_has_six_stops() -> None:
    tour = README.split("## The system in six files")[1].split("\n## ")[0]
    assert len(re.findall(r"^\d\. ", tour, re.MULTILINE)) == 6
