"""The evaluation's report: one self-contained HTML page with rates, plots and filmstrips."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cli.demo import charts
from cli.demo.episode_card import strip
from cli.demo.pictures import data_uri

if TYPE_CHECKING:
    from training.evaluation.closed_loop import Episode, Evaluation

STYLE = Path(__file__).parent / "demo" / "report.css"
SHOWN = 12  # failures, and as many successes, that are shown as filmstrips

Render = Callable[[NDArray[np.float64]], NDArray[np.uint8]]


def render(
    value: Mapping[str, Any], evaluation: Evaluation, goals: Mapping[int, NDArray[np.float64]], picture: Render
) -> str:
    """The page's text. `value` is the evaluation's JSON, `goals` the goal state of each pair, `picture` the camera."""
    failures = [episode for episode in evaluation.episodes if not episode.success]
    reached = [episode for episode in evaluation.episodes if episode.success]
    body = "\n".join(
        (
            _header(value),
            _rates(value, evaluation),
            _plots(value, evaluation),
            _strips(f"Not reached ({len(failures)})", failures[:SHOWN], goals, picture),
            _strips(f"Reached ({len(reached)})", reached[:SHOWN], goals, picture),
            f"<h2>Figures</h2>\n<pre>{escape(json.dumps(value, indent=2))}</pre>",
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(_title(value))}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _title(value: Mapping[str, Any]) -> str:
    return f"{value['model']} on {value['task']}: {value['success_rate']:.1%} of {value['episodes']} goals reached"


def _header(value: Mapping[str, Any]) -> str:
    lead = (
        f"Held-out pairs of start and goal, {value['offset']} steps apart, chosen by seed {value['seed']}; a budget of "
        f"{value['budget_steps']} robot actions; success counts at the first hit. "
        f"{value['initially_solved_excluded']} pairs that were solved at their start are left out."
    )
    return f'<h1>{escape(_title(value))}</h1>\n<p class="lead">{lead}</p>'


def _rates(value: Mapping[str, Any], evaluation: Evaluation) -> str:
    count = len(evaluation.episodes)
    rows = [
        ("this model", evaluation.successes, count, "model"),
        ("random", sum(episode.success for episode in evaluation.random), count, "random"),
    ]
    if evaluation.oracle is not None:
        rows.append(("oracle", sum(episode.success for episode in evaluation.oracle), count, "random"))
    note = f"All on the same {count} pairs; whiskers are Wilson's 95 % intervals. The oracle is told the states."
    model, random = (_solved_within(tried, value["budget_steps"]) for tried in (evaluation.episodes, evaluation.random))
    curve = charts.line_chart(
        [charts.Line(model, "actual"), charts.Line(random, "predicted")],
        x_label="robot actions",
        y_label="share reached",
        title="share of goals reached within so many actions",
    )
    return (
        '<div class="pair"><div class="card"><h3>Goals reached</h3>'
        f'{charts.rate_bars(rows)}<p class="note">{note}</p></div>'
        f'<div class="card"><h3>Reached within so many actions (below: random)</h3>{curve}</div></div>'
    )


def _solved_within(episodes: Sequence[Episode], budget: int) -> list[tuple[float, float]]:
    taken = np.array([episode.steps for episode in episodes if episode.success])
    return [(float(step), float((taken <= step).sum()) / len(episodes)) for step in range(budget + 1)]


def _plots(value: Mapping[str, Any], evaluation: Evaluation) -> str:
    ahead = value["open_loop_actions"]
    lines = [
        charts.Line([(0, 0.0), *zip(ahead, value["open_loop_unchanged"], strict=True)], "predicted"),
        charts.Line([(0, 0.0), *zip(ahead, value["open_loop_error"], strict=True)], "actual"),
    ]
    error = charts.line_chart(
        lines, x_label="robot actions ahead", y_label="mean squared error", title="open-loop error against horizon"
    )
    times = charts.histogram(
        [ms for episode in evaluation.episodes for ms in episode.plan_ms], x_label="one plan, ms", width=340
    )
    note = (
        "Dotted: what is wrong with predicting that nothing changes. The true actions of "
        f"{value['true_actions_candidates']} episodes, each priced beside all the others', come first in "
        f"{value['true_actions_first']:.0%} of them; their median rank is {value['true_actions_median_rank']:.1%} from "
        "the top."
    )
    return (
        f'<div class="pair"><div class="card"><h3>Open-loop error</h3>{error}<p class="note">{note}</p></div>'
        f'<div class="card"><h3>Time of a plan</h3>{times}</div></div>'
    )


def _strips(title: str, episodes: Sequence[Episode], goals: Mapping[int, NDArray[np.float64]], picture: Render) -> str:
    cards = []
    for episode in episodes:
        frames = np.stack([picture(state) for state in episode.states])
        goal = data_uri(picture(goals[episode.pair]))
        said = f"pair {episode.pair}: {'reached in' if episode.success else 'not reached in'} {episode.steps} actions"
        cards.append(
            f'<article class="card"><h3>{said}</h3><div class="views"><figure class="goal">'
            f'<img src="{goal}" alt="goal"><figcaption>goal</figcaption></figure></div>{strip(frames)}</article>'
        )
    shown = "".join(cards) or '<p class="note">none</p>'
    return f'<h2>{escape(title)}</h2>\n<div class="pair">{shown}</div>'
