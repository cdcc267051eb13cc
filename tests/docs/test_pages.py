"""Pages that show files of the repository show them as they stand."""

from __future__ import annotations

import html
import re

import pytest

from tests.support.paths import ROOT

markdown = pytest.importorskip("markdown", reason="the extra docs is not installed")

PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXTENSIONS = {
    "pymdownx.snippets": {"base_path": [str(ROOT)], "check_paths": True},
    "pymdownx.superfences": {},
    "pymdownx.highlight": {"use_pygments": False},
}


def shown(page: str) -> str:
    """The page's code blocks, as a reader sees them."""
    made = markdown.markdown((ROOT / page).read_text(), extensions=[*EXTENSIONS], extension_configs=EXTENSIONS)
    return html.unescape("\n".join(re.findall(r"<code[^>]*>(.*?)</code>", made, re.DOTALL)))


@pytest.mark.parametrize("example", ["plan_once.py", "control_loop.py"])
def test_the_quickstart_shows_its_examples_whole(example: str) -> None:
    assert (ROOT / "examples" / example).read_text().strip() in shown("docs/quickstart.md")


def test_no_formatter_has_touched_a_snippet() -> None:
    """A formatter of Python blocks reads the mark of a snippet as an expression."""
    found = {page.name: re.findall(r"^.*8 *< *-.*$", page.read_text(), re.MULTILINE) for page in PAGES}
    assert sum(map(len, found.values())) >= 4
    for page, marks in found.items():
        assert [mark for mark in marks if not re.fullmatch(r'--8<-- "[\w./-]+"', mark)] == [], page
