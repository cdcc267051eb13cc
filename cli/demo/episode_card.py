"""One episode's part of the report: its pictures, its filmstrip, and how far it was from the goal over time."""

from __future__ import annotations

from html import escape

from cli.demo import charts
from cli.demo.pictures import Frame, data_uri, strip_indices
from cli.demo.record import EpisodeRecord, Frames

STRIP = 9  # frames in a filmstrip


def episode_card(episode: EpisodeRecord, block: int, x_max: float) -> str:
    """The episode as an HTML article; charts run to `x_max` robot actions."""
    badge, said = _verdict(episode)
    count = len(episode.plans)
    plans = f"{count} plan{'' if count == 1 else 's'}"
    chance = f"random policy: {f'reached in {episode.random_steps}' if episode.random_success else 'not reached'}"
    header = (
        f"<header><strong>Episode {episode.number + 1}</strong>"
        f'<span class="badge {badge}">{said}</span><span>{plans}</span><span>{chance}</span>'
        f"<span>held-out pair {episode.pair}</span></header>"
    )
    views = (
        _view(episode.frames[0], "start"),
        _view(episode.goal, "goal", "goal"),
        _view(episode.frames[-1], f"end, step {episode.steps}"),
        _view(episode.random_end, f"random, step {episode.random_steps}", "apart"),
    )
    pictures = f'<div><div class="views">{"".join(views)}</div>{strip(episode.frames)}</div>'
    return (
        f'<article class="card episode">{header}{pictures}<div>{distance_chart(episode, block, x_max)}</div></article>'
    )


def strip(frames: Frames) -> str:
    """A filmstrip: frames evenly spaced in time, with their steps."""
    shown = "".join(_view(frames[index], str(index)) for index in strip_indices(len(frames), STRIP))
    return f'<div class="strip">{shown}</div>'


def distance_chart(episode: EpisodeRecord, block: int, x_max: float) -> str:
    """Each frame's distance to the goal, and what every plan predicted from where it was made."""
    lines = []
    for each in episode.plans:
        # A plan made in time for nothing has no costs to show.
        steps = [(each.step + block * (number + 1), cost) for number, cost in enumerate(each.plan.step_costs)]
        within = [(step, cost) for step, cost in steps if step <= x_max]
        lines.append(charts.Line([(each.step, each.plan.goal_distance), *within], "predicted"))
    lines.append(charts.Line(list(enumerate(episode.goal_distances)), "actual"))
    marks = [(each.step, each.plan.goal_distance) for each in episode.plans]
    return charts.line_chart(
        lines,
        x_label="robot actions",
        y_label="distance to the goal",
        width=352,
        height=232,
        marks=marks,
        x_max=x_max,
        title=f"distance to the goal over time in episode {episode.number + 1}",
    )


def _verdict(episode: EpisodeRecord) -> tuple[str, str]:
    if episode.initially_solved:
        return "plain", "solved at its start, not counted"
    if episode.success:
        return "good", f"✓ reached in {episode.steps} steps"
    return "bad", f"✗ not reached in {episode.steps} steps"


def _view(frame: Frame, caption: str, style: str = "") -> str:
    name = f' class="{style}"' if style else ""
    text = escape(caption)
    picture = f'<img{name} src="{data_uri(frame)}" width="{frame.shape[1]}" height="{frame.shape[0]}" alt="{text}">'
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"
