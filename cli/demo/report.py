"""The demo's report: one self-contained HTML page with style, charts and pictures inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from cli.demo import charts
from cli.demo.episode_card import episode_card, strip
from cli.demo.pictures import file_uri
from cli.demo.record import DemoRecord
from training.evaluation.statistics import percentile

STYLE = Path(__file__).with_name("report.css")
DOORS = {"grpc": "gRPC", "rest": "REST"}


def write_report(path: Path, record: DemoRecord, gif: Path) -> None:
    """Write the page; `gif` is put inside it."""
    path.write_text(render(record, file_uri(gif, "image/gif")), encoding="utf-8")


def render(record: DemoRecord, gif_uri: str) -> str:
    """The page's text."""
    body = "\n".join(
        (
            _header(record),
            _tiles(record),
            _overview(record, gif_uri),
            _episodes(record),
            _latency(record),
            _clip(record),
            _terms(record),
            _provenance(record),
        )
    )
    title = escape(f"Presage demo: {record.successes} of {len(record.tried)} goals reached")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def milliseconds(value: float | None) -> str:
    """A duration with as many digits as mean something."""
    if value is None:
        return "none"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def _header(record: DemoRecord) -> str:
    count = len(record.tried)
    headline = f"{record.successes} of {count} goal images reached" if count else "Every pair was solved at its start"
    lead = (
        f"A simulated robot (<b>{escape(record.task)}</b>), a process of its own, was shown images of where to be. "
        f"It sent what its camera saw to a Presage service over {DOORS[record.transport]} and did what the plans said. "
        f"The service searched for them with the world model <b>{escape(record.served.name)}</b>, which knows the "
        "robot from pixels alone."
    )
    return f'<h1>{headline}</h1>\n<p class="lead">{lead}</p>'


def _tiles(record: DemoRecord) -> str:
    value, count = record.summary(), len(record.tried)
    low, high = record.interval
    steps = [episode.steps for episode in record.tried if episode.success]
    typical = percentile(steps, 50)
    tiles = []
    if count:
        rate = f"{record.successes / count:.0%}"
        tiles.append(("success", rate, f"95 % interval {low:.0%} to {high:.0%}, n = {count}"))
        chance = f"{record.random_successes / count:.0%}"
        tiles.append(("random policy", chance, f"{record.random_successes} of the same {count} pairs"))
    if typical is not None:
        seconds = typical / record.action.rate_hz
        tiles.append(("steps to the goal", f"{typical:.0f}", f"median; {seconds:.1f} s of robot time"))
    plan95, over95 = milliseconds(value["plan_ms_p95"]), milliseconds(value["overhead_ms_p95"])
    tiles.append(("one plan", milliseconds(value["plan_ms_p50"]), f"p50; p95 {plan95}"))
    tiles.append(("the service adds", milliseconds(value["overhead_ms_p50"]), f"p50; p95 {over95}"))
    return '<div class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</div>"


def _tile(name: str, number: str, more: str) -> str:
    main, _, unit = number.partition(" ")
    unit = f" <small>{escape(unit)}</small>" if unit else ""
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="number">{escape(main)}{unit}</div>'
        f'<div class="more">{escape(more)}</div></div>'
    )


def _overview(record: DemoRecord, gif_uri: str) -> str:
    count = len(record.tried)
    rows = [
        ("this model", record.successes, count, "model"),
        ("random", record.random_successes, count, "random"),
    ]
    bars = charts.rate_bars(rows) if count else ""
    left_out = len(record.episodes) - count
    excluded = f" {left_out} more were solved at their start and do not count." if left_out else ""
    note = (
        f"Both had {record.budget_steps} robot actions for each of the same {count} held-out pairs of start and goal, "
        f"25 steps apart, that no training has seen.{excluded} Whiskers are Wilson's 95 % intervals."
    )
    return (
        '<div class="pair wide-pair">'
        f'<div class="card"><h3>Goals reached</h3>{bars}<p class="note">{note}</p></div>'
        '<div class="card"><h3>What the camera saw, beside each goal</h3>'
        f'<img class="gif" src="{gif_uri}" alt="episodes in motion, each beside its goal image"></div></div>'
    )


def _episodes(record: DemoRecord) -> str:
    x_max = max(episode.steps for episode in record.episodes)
    cards = "\n".join(episode_card(episode, record.action.block, max(x_max, 10)) for episode in record.episodes)
    key = (
        '<div class="key"><span><i></i>distance of each frame to the goal</span>'
        '<span><i class="predicted"></i>what each plan predicted</span>'
        '<span><i class="mark"></i>a new plan</span></div>'
    )
    note = (
        "Distances are in the model's latent space, in the planner's cost: the mean squared difference to the goal's "
        f"latent. Pictures are the camera's own, {record.served.image.height} pixels wide, as the model saw them."
    )
    return f'<h2>Episodes</h2>\n<p class="note">{note}</p>{key}\n<div class="episodes">{cards}</div>'


def _latency(record: DemoRecord) -> str:
    plans = record.plans
    if not plans:
        return ""
    trips = charts.histogram([each.round_trip_ms for each in plans], x_label="round trip, ms", width=470)
    added = charts.histogram(
        [each.overhead_ms for each in plans], x_label="round trip less encode and plan, ms", width=470
    )
    timings = [each.plan.timings for each in plans]
    parts = (
        ("waiting for the engine", [each.queue_ms for each in timings]),
        ("decoding the request", [each.decode_ms for each in timings]),
        ("encoding the image", [each.encode_ms for each in timings]),
        ("searching", [each.plan_ms for each in timings]),
        ("whole call, in the service", [each.total_ms for each in timings]),
        ("whole call, seen by the robot", [each.round_trip_ms for each in plans]),
    )
    rows = "".join(
        f'<tr><th>{name}</th><td class="number">{milliseconds(percentile(values, 50))}</td>'
        f'<td class="number">{milliseconds(percentile(values, 95))}</td>'
        f'<td class="number">{milliseconds(max(values))}</td></tr>'
        for name, values in parts
    )
    head = '<tr><th></th><td class="number">p50</td><td class="number">p95</td><td class="number">most</td></tr>'
    return (
        f"<h2>Time</h2>\n<p class='note'>{len(plans)} plans, one robot, loopback.</p>"
        f'<div class="pair"><div class="card"><h3>A plan, as the robot waits for it</h3>{trips}</div>'
        f'<div class="card"><h3>What the service adds to encoding and planning</h3>{added}</div></div>'
        f'<div class="card" style="margin-top:14px"><table>{head}{rows}</table></div>'
    )


def _clip(record: DemoRecord) -> str:
    clip = record.clip
    episode = next(one for one in record.episodes if one.number == clip.episode)
    line = charts.Line(list(zip(clip.embedding.frame_times_s, clip.embedding.goal_distances, strict=False)), "actual")
    chart = charts.line_chart([line], x_label="seconds into the clip", y_label="distance to the goal", width=470)
    pooled, per_frame = (_shape(shape) for shape in (clip.pooled_shape, clip.embedding.embedding.shape))
    rows = (
        ("file", f"{clip.file}, H.264, {clip.frames} frames, {clip.bytes / 1000:.1f} kB"),
        ("embedding, pooled", pooled),
        ("embedding, per frame", per_frame),
        ("upload, decode and embed", milliseconds(clip.upload_ms)),
    )
    return (
        f"<h2>The same, as a video clip</h2>\n<p class='note'>Episode {clip.episode + 1} was written as an MP4 file, "
        f"uploaded over {DOORS[record.transport]}, decoded in the service and embedded. Each frame's distance to the "
        "goal comes back with it; compression moves it a little.</p>"
        f'<div class="pair"><div class="card"><table>{_rows(rows)}</table>{strip(episode.frames)}</div>'
        f'<div class="card"><h3>Distance to the goal, frame by frame</h3>{chart}</div></div>'
    )


def _terms(record: DemoRecord) -> str:
    terms = (
        ("success", "The task's own rule held at some step within the budget. The model is not told the rule."),
        (
            "random policy",
            "Every action drawn uniformly within the robot's bounds, on the same pairs, seeded apart.",
        ),
        ("one plan", "The search alone, as the service tells it, without encoding the image."),
        (
            "the service adds",
            "Round trip on the robot's clock less what the service says it spent on encoding and planning: "
            "serializing, the network, queues and decoding.",
        ),
        (
            "replanning",
            f"After every {record.action.block} actions, from a new image; the last plan's rest is the warm start.",
        ),
    )
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms)
    return f"<h2>What the words mean</h2>\n<dl>{items}</dl>"


def _provenance(record: DemoRecord) -> str:
    model, made_by = record.served, record.made_by
    settings = {name: value for name, value in vars(made_by.planner).items() if value not in (None, ())}
    planner = ", ".join(f"{name} {value}" for name, value in settings.items())
    command = (
        f"presage demo --model {record.model} --task {record.task} --episodes {len(record.episodes)} "
        f"--seed {record.seed} --transport {record.transport}"
    )
    rows: list[tuple[str, str]] = [
        ("command", command),
        ("model", f"{model.name} ({model.family}), weights sha256 {model.weights_digest}"),
        ("planner", f"{planner}; {record.action.block} actions per model step"),
        ("engine", f"{made_by.device}, {made_by.dtype}, images {model.image.crop_policy}"),
        ("service", f"version {model.server_version}"),
        *_facts(record.machine),
        ("whole demo", f"{record.seconds:.0f} s, the service's start among them"),
    ]
    return f'<h2>Where the numbers come from</h2>\n<div class="card"><table>{_rows(rows, code="command")}</table></div>'


def _facts(machine: Mapping[str, str]) -> list[tuple[str, str]]:
    """The machine's rows, with the versions of packages on one line."""
    apart = ("processor", "system")
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in apart)
    return [*((name, machine[name]) for name in apart if name in machine), ("versions", versions)]


def _rows(rows: Sequence[tuple[str, str]], code: str = "") -> str:
    cells = ((name, f"<code>{escape(value)}</code>" if name == code else escape(value)) for name, value in rows)
    return "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in cells)


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
