"""Every command of README and docs/ is run as a reader would run it, or its reason for not being run stands here.

A reader is in the checkout, in a fresh shell, with what set-up made in `.venv`.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.built_in import built_in
from simulation import tasks
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PORTS = (50051, 8080)

ELSEWHERE = {
    "docs/training.md": "tests/docs/test_training_page.py runs the whole page at a tiny size",
}
"""Pages whose commands another test runs."""

NOT_RUN = {
    r"scripts/test\b": "this is what runs this test",
    r"PRESAGE_FUZZ_CASES=\d+ scripts/test\b": "the same with more cases",
    r"\.venv/bin/python -m benchmarks\.": "takes minutes; tests/benchmarks runs benchmarks at tiny sizes",
    r"scripts/audit\b": "asks the public advisory database",
    r"docker ": "needs a container engine; tests/deploy reads the files",
    r"kubectl ": "needs a cluster; tests/deploy renders the manifests",
    r"deploy/compose/make-secrets": "writes into the checkout; tests/deploy/test_compose.py runs it",
    r"openssl rand": "writes a key into the checkout",
    r"\.venv/bin/presage weights .*(?:downloads|packages)": "downloads; tests/cli/test_weights.py does it locally",
    r"\.venv/bin/presage (?:serve|classify)\b.*--model packages/": "uses what was downloaded",
    r"\.venv/bin/presage eval --model runs/tiny": "takes minutes; tests/cli/test_evaluate.py evaluates",
}
"""Why a command is not run here, by how it begins."""

SMALLER = {
    r"scripts/demo": " --episodes 1",
    r"\.venv/bin/presage train examples/tiny.yaml": " --steps 1 --episodes 160 --no-tensorboard",
}
"""What is added to commands that would take minutes."""

SERVICE = "scripts/serve"
RUNNABLE = (".venv/", "scripts/", "curl ", "docker ", "kubectl ", "openssl ", "deploy/", "PRESAGE_")


def shell_blocks(text: str) -> Iterator[str]:
    """The contents of fenced blocks that are shell, or that do not say what they are."""
    kind: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("```"):
            lines.append(line)
        elif kind is None:
            kind, lines = line[3:].strip(), []
        else:
            if kind in ("", "sh", "bash", "console"):
                yield "\n".join(lines)
            kind = None


def commands(page: Path) -> list[str]:
    """The page's shell commands, lines that end in a backslash joined, comments taken off."""
    found = []
    for block in shell_blocks(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#.*$", "", line).strip()
            if command.startswith(RUNNABLE):
                found.append(command)
            elif command.startswith(("presage ", "python ", "pip ")):
                pytest.fail(f"{page.name}: {command}: a fresh shell does not find it; write .venv/bin/...")
    return found


def every() -> list[tuple[str, str]]:
    return [(str(page.relative_to(ROOT)), command) for page in PAGES for command in commands(page)]


def reason(page: str, command: str) -> str:
    """Why a command is not run here; empty for one that is."""
    if page in ELSEWHERE:
        return ELSEWHERE[page]
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), "")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout, where commands may write: links to all of it, and two pictures."""
    if (ROOT / ".venv").is_symlink() or Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv/bin/presage").exists():
        pytest.skip("these tests do not run in the checkout's own .venv, which scripts/test makes")
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    for name in sorted({Path(each).parts[0] for each in tracked}):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    robot = tasks.make("arm")
    for name, state in (("camera.png", (0.2, 0.9)), ("goal.png", (1.0, -0.2))):
        Image.fromarray(robot.render_state(np.array(state))).save(folder / name)
    return folder


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "TMPDIR") if name in os.environ}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def service(checkout: Path) -> Iterator[None]:
    """`scripts/serve` as the documents say it, on the ports that they name."""
    if "arm" not in built_in():
        pytest.skip("the built-in package arm is not here")
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port} is taken on this machine")
    command = ["bash", "-c", f"exec {SERVICE}"]
    with subprocess.Popen(
        command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == "ready: gRPC on 127.0.0.1:50051, REST on http://127.0.0.1:8080\n"
            yield
        finally:
            started.terminate()


def test_every_command_is_run_or_has_its_reason() -> None:
    found = every()
    assert len(found) > 25
    assert {command for _page, command in found if command.split()[0] == SERVICE} == {SERVICE}
    runs = [command for page, command in found if not reason(page, command)]
    assert sum(command.startswith("curl ") for command in runs) >= 4
    for pattern in (*NOT_RUN, *SMALLER):
        assert any(re.match(pattern, command) for _page, command in found), f"{pattern} is no command of any page"


@pytest.mark.parametrize(("page", "command"), [pair for pair in every() if not reason(*pair) and pair[1] != SERVICE])
def test_a_command_does_what_its_page_says(page: str, command: str, checkout: Path, service: None) -> None:
    for pattern, more in SMALLER.items():
        if re.match(pattern, command):
            command += more
    if command.startswith("curl ") and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = run(command, checkout)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip() or "-o " in command or "--out" in command
