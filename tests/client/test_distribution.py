"""What strangers install: an old Python's grammar, three dependencies, and a README that runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import presage
import pytest

from tests.support.client.protocol_server import Running
from tests.support.client.protocol_service import ACTION
from tests.support.paths import ROOT

FOLDER = ROOT / "clients" / "python"
SOURCES = sorted((FOLDER / "src" / "presage").rglob("*.py"))

ONLY_WITH = """
    import importlib.abc, sys

    # typing_extensions is what grpcio itself asks for.
    ALLOWED = {"presage", "numpy", "grpc", "google", "typing_extensions", *sys.stdlib_module_names}

    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            top = name.partition(".")[0]
            if top not in ALLOWED or name.startswith(("google.rpc", "google.api")):
                raise ImportError("the client must not need " + name)

    sys.meta_path.insert(0, Blocker())
    import presage

    client = presage.Client("127.0.0.1:9", timeout_s=30.0)
    try:
        client.models()
    except presage.Unavailable:
        print("works", sorted({"torch", "fastapi", "PIL", "pydantic"} & set(sys.modules)))
    client.close()
"""


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names came with Python 3.10")
def test_it_works_with_nothing_but_numpy_grpc_and_protobuf() -> None:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(ONLY_WITH)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "works []\n", done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_its_sources_are_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_its_annotations_are_never_evaluated() -> None:
    for path in SOURCES:
        if path.parent.name == "presage" and path.name not in ("__init__.py",):
            assert "from __future__ import annotations\n" in path.read_text(encoding="utf-8"), path.name


@pytest.mark.skipif(sys.version_info < (3, 9), reason="ast.unparse came with Python 3.9")
def test_the_annotations_of_its_values_are_evaluated_by_the_codec_on_python_3_8_too() -> None:
    tree = ast.parse((FOLDER / "src" / "presage" / "values.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            text = ast.unparse(node.annotation)
            assert " | " not in text, f"{text} is Optional or Union here"
            assert not re.search(r"\b(tuple|list|dict)\[", text), f"{text} is Tuple here"


def test_the_wheel_holds_the_client_and_asks_for_three_packages(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"presage-{presage.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 100_000
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"presage-{presage.__version__}.dist-info/METADATA").decode()
    needed = re.findall(r"(?m)^Requires-Dist: (.*)$", metadata)
    assert sorted(needed) == ["grpcio>=1.60", "numpy>=1.20", "protobuf>=5.29"]
    assert "Requires-Python: >=3.8" in metadata
    assert {"presage/py.typed", "presage/v1/planning_pb2.pyi", "presage/client.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_readmes_examples_run(server: Running, image: np.ndarray, tmp_path: Path, monkeypatch: Any) -> None:
    class Arm:
        taken = 0

        def observe(self) -> tuple[np.ndarray, None]:
            return image, None

        def act(self, action: np.ndarray) -> None:
            assert action.shape == (ACTION,)
            self.taken += 1

    blocks = re.findall(r"(?s)```python\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) == 3
    (tmp_path / "episode.mp4").write_bytes(bytes(1000))
    monkeypatch.chdir(tmp_path)
    first, control, questions = (block.replace("127.0.0.1:50051", server.address) for block in blocks)
    robot = Arm()
    names: dict[str, Any] = {"goal_image": image, "image": image, "other": image // 2, "robot": robot}
    exec(first, names)
    assert robot.taken == 6
    names["client"] = presage.Client(server.address)
    names.update(actions=np.zeros((4, ACTION)), candidates=np.zeros((3, 4, ACTION)))
    with names["client"]:
        exec(control.replace("ticks=300", "ticks=3"), names)
        names["session"] = names["client"].session(goal=names["goal"])
        exec(questions, names)
    assert names["report"].ticks == 3
    assert names["futures"].latents.shape == (2, 4)
    assert names["costs"].tolist() == [0.0, 0.0, 0.0]
