"""`presage --version`: three versions, told without waiting for torch."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys

import pytest
import torch

from tests.support.cli.commands import run_command


def test_it_names_presage_python_and_the_build_of_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("--version") == 0
    own = importlib.metadata.version("presage-service")
    cuda, hip = torch.version.cuda, torch.version.hip
    built_for = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    here = f"Python {platform.python_version()} on {platform.machine()}"
    assert capsys.readouterr().out == f"presage {own}, {here}, torch {torch.__version__} ({built_for})\n"


def test_torch_is_not_imported_for_it() -> None:
    code = "import sys; from cli.version import version_line; version_line(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
