"""What holds for the repository as a whole and no linter checks."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SERVING = ("server", "model", "planner", "clients")


def tracked(suffix: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", f"*{suffix}"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {path.parent for path in tracked(".py") if path.is_relative_to(ROOT / "tests")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_proto_is_no_python_package() -> None:
    assert not list((ROOT / "proto").rglob("__init__.py"))


def test_nothing_on_the_serving_path_can_unpickle() -> None:
    """No pickle but the name of the error that `torch.load(..., weights_only=True)` refuses code with."""
    found = []
    for path in tracked(".py"):
        if path.relative_to(ROOT).parts[0] not in SERVING:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            if {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & set(names):
                uses = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
                attributes = {n.attr for n in uses if isinstance(n.value, ast.Name) and n.value.id == "pickle"}
                if names != ["pickle"] or attributes != {"UnpicklingError"}:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                safe = {"torch.load": ("weights_only", True)}.get(ast.unparse(node.func), ("allow_pickle", False))
                given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                if given.get(safe[0]) is not safe[1]:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}")
    assert found == []


def test_constraints_pin_everything_and_name_no_index() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pin = r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+(; [\w .<>=!'()]+)?"
    assert [line for line in lines if not re.fullmatch(pin, line)] == []
    assert "torch==2.13.0" in lines


def test_the_built_in_packages_are_small_enough_for_git() -> None:
    for weights in (ROOT / "model" / "packages").rglob("*.safetensors"):
        assert weights.stat().st_size < 20_000_000
