"""The report and the GIF hold what the demo's record says, and need nothing from outside."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.demo import charts
from cli.demo.json_values import as_json, from_json
from cli.demo.pictures import strip_indices, write_gif
from cli.demo.record import DemoRecord, PlanRecord
from cli.demo.report import milliseconds, write_report
from tests.support.cli.records import made_up_demo, made_up_plan

KEYS = [
    *("task", "model", "transport", "episodes", "successes", "success_rate", "random_success_rate"),
    *("initially_solved", "plan_ms_p50", "plan_ms_p95", "overhead_ms_p50", "overhead_ms_p95", "seed"),
]


@pytest.fixture(scope="module")
def record() -> DemoRecord:
    return made_up_demo(4)


@pytest.fixture(scope="module")
def page(record: DemoRecord, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_gif(folder / "demo.gif", record.episodes, 10.0)
    write_report(folder / "report.html", record, folder / "demo.gif")
    return (folder / "report.html").read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Checks that what is opened is closed, in order."""

    EMPTY = ("meta", "img", "br", "path", "polyline", "circle", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: object) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "url(" not in page
    assert "http" not in page.replace("</html", "").replace("DOCTYPE html", "")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_every_chart_is_well_formed_and_shows_only_numbers(page: str) -> None:
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(found) == 4 + 1 + 2 + 1  # an episode's each, the rates, two histograms, the clip
    for chart in found:
        ElementTree.fromstring(chart)
        assert "nan" not in chart.lower().replace("nance", "")


def test_the_page_reports_failures_and_what_was_left_out(page: str) -> None:
    assert "2 of 3 goal images reached" in page
    assert "✗ not reached in" in page
    assert "1 more were solved at their start and do not count" in page
    assert "0123456789abcdef" * 4 in page


def test_the_summary_counts_only_pairs_that_were_not_solved_at_their_start(record: DemoRecord) -> None:
    value = record.summary()
    assert list(value) == KEYS
    assert (value["episodes"], value["successes"], value["initially_solved"]) == (3, 2, 1)
    assert value["success_rate"] == pytest.approx(2 / 3)


def test_overhead_is_the_round_trip_less_encoding_and_planning(record: DemoRecord) -> None:
    each = record.episodes[0].plans[0]
    timings = each.plan.timings
    assert each.overhead_ms == each.round_trip_ms - timings.plan_ms - timings.encode_ms
    overheads = [plan.overhead_ms for episode in record.episodes for plan in episode.plans]
    assert record.summary()["overhead_ms_p50"] == pytest.approx(np.median(overheads))


def test_a_demo_without_a_plan_still_makes_a_page(record: DemoRecord, tmp_path: Path) -> None:
    solved = replace(record, episodes=record.episodes[-1:], clip=replace(record.clip, episode=3))
    value = solved.summary()
    assert (value["episodes"], value["success_rate"], value["plan_ms_p50"]) == (0, None, None)
    write_gif(tmp_path / "demo.gif", solved.episodes, 10.0)
    write_report(tmp_path / "report.html", solved, tmp_path / "demo.gif")
    assert "Every pair was solved at its start" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_gif_moves_at_the_robots_rate_and_rests_at_the_end(record: DemoRecord, tmp_path: Path) -> None:
    write_gif(tmp_path / "demo.gif", record.episodes, 10.0)
    with Image.open(tmp_path / "demo.gif") as gif:
        longest = max(len(episode.frames) for episode in record.episodes)
        durations = []
        for index in range(gif.n_frames):  # type: ignore[attr-defined]
            gif.seek(index)
            durations.append(gif.info["duration"])
        assert sum(durations) == 100 * (longest - 1) + 1800
        assert durations[-1] >= 1800


def test_a_plan_survives_its_way_through_json() -> None:
    sent = made_up_plan(5, 0.5, 2)
    back = from_json(PlanRecord, json.loads(json.dumps(as_json(sent))))
    assert (back.step, back.round_trip_ms) == (sent.step, sent.round_trip_ms)
    assert back.plan.actions.tolist() == sent.plan.actions.tolist()
    for name, value in vars(sent.plan).items():
        assert name == "actions" or getattr(back.plan, name) == value, name


@pytest.mark.parametrize(
    ("largest", "found"),
    [(10, [0, 5, 10]), (1, [0, 0.5, 1]), (0.037, [0, 0.01, 0.02, 0.03]), (340, [0, 100, 200, 300]), (0, [0, 1])],
)
def test_ticks_are_round_and_within_range(largest: float, found: list[float]) -> None:
    assert charts.ticks(largest) == pytest.approx(found)


def test_a_strip_has_its_ends_and_no_frame_twice() -> None:
    assert strip_indices(51, 9)[0] == 0
    assert strip_indices(51, 9)[-1] == 50
    assert strip_indices(3, 9) == [0, 1, 2]
    assert strip_indices(1, 9) == [0]


def test_durations_have_the_digits_that_mean_something() -> None:
    assert [milliseconds(value) for value in (312.4, 31.24, 3.124, None)] == ["312 ms", "31.2 ms", "3.12 ms", "none"]
