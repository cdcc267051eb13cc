"""The documentation site builds without a warning, and shows what its pages take from elsewhere in the repository."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="needs the extra docs")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def words(page: Path) -> str:
    """What a reader sees of a page, with its spaces."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.mark.parametrize("example", ["plan_once.py", "control_loop.py"])
def test_the_quickstart_shows_whole_examples(site: Path, example: str) -> None:
    assert (ROOT / "examples" / example).read_text().strip() in words(site / "quickstart/index.html")


@pytest.mark.parametrize(("page", "source"), [("security", "SECURITY.md"), ("changes", "CHANGELOG.md")])
def test_pages_of_the_root_are_part_of_the_site(site: Path, page: str, source: str) -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / source).read_text(), re.MULTILINE)
    shown = words(site / page / "index.html")
    assert len(headings) >= 2
    assert [heading for heading in headings if heading not in shown] == []


def test_no_page_shows_how_it_is_put_together(site: Path) -> None:
    pages = sorted(site.rglob("index.html"))
    assert len(pages) >= 20
    assert [page for page in pages if re.search(r"--8\s*<|^::: ", words(page), re.MULTILINE)] == []
