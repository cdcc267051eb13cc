"""`presage demo`: the real service and a simulated robot, each a process of its own, and a report of what they did."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exit_codes import CommandError
from cli.options import SeedOption, TaskModelOption, TaskOption, checked_task, model_for
from cli.output import JsonFlag, Output, open_output
from model import extras

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cli.demo.record import ClipRecord, DemoRecord
    from cli.demo.robot import Job, Try
    from cli.demo.robot_process import RobotReport

TRANSPORTS = ("grpc", "rest")
BUDGET_STEPS = 50
GIF_EPISODES = 6


def demo(
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many held-out goals to reach.")] = 10,
    seed: SeedOption = 7,
    transport: Annotated[str, typer.Option("--transport", help="The robot's way in: grpc or rest.")] = "grpc",
    report: Annotated[
        Path, typer.Option("--report", help="Folder for report.html, demo.gif, demo.json and a clip.")
    ] = Path("demo-report"),
    model: TaskModelOption = "",
    task: TaskOption = "arm",
    device: Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda or auto.")] = "auto",
    threads: Annotated[int, typer.Option("--threads", min=0, help="CPU threads of the engine; 0: torch's choice.")] = 0,
    json_: JsonFlag = False,
) -> None:
    """Start the service, let a simulated robot reach goal images through it, and write a report of how often it did."""
    if transport not in TRANSPORTS:
        raise typer.BadParameter(f"must be grpc or rest, got {transport!r}", param_hint="--transport")
    model = model_for(model, checked_task(task))
    if transport == "rest":
        extras.require("httpx", "http", "--transport rest")
    output = open_output(json_)

    from cli.demo.machine import describe_machine
    from cli.demo.pictures import write_gif
    from cli.demo.record import DemoRecord
    from cli.demo.report import write_report
    from cli.demo.robot import Job
    from cli.private_service import ended_by_sigterm, private_service

    began = time.monotonic()
    tries = _tries(task, episodes, seed)
    report.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(ended_by_sigterm())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        with output.err.status(f"starting the service with model {model} ..."):
            service = stack.enter_context(private_service(model, device=device, threads=threads))
        address = service.grpc if transport == "grpc" else service.rest
        output.remark(f"the service is ready on {address}; a robot process is going to drive through it")
        robot = _drive(output, Job(transport, address, task, BUDGET_STEPS, folder, tries), model)
        with output.err.status("sending back an episode as a video clip ..."):
            clip = _send_clip(transport, address, robot, report)
    record = DemoRecord(
        task=task,
        model=model,
        transport=transport,
        seed=seed,
        budget_steps=BUDGET_STEPS,
        episodes=robot.episodes,
        served=robot.model,
        clip=clip,
        machine=describe_machine(),
        seconds=time.monotonic() - began,
    )
    with output.err.status("writing the report ..."):
        write_gif(report / "demo.gif", record.episodes[:GIF_EPISODES], record.action.rate_hz)
        (report / "demo.json").write_text(json.dumps(record.summary(), indent=2) + "\n")
        write_report(report / "report.html", record, report / "demo.gif")
    output.result(record.summary(), _summary(record, report))


def _tries(task: str, episodes: int, seed: int) -> tuple[Try, ...]:
    """The pairs and seeds that `presage eval` would use for the same task, number and seed."""
    from cli.demo.robot import Try
    from simulation.manifest import Manifest
    from training.evaluation.statistics import episode_seed

    return tuple(
        Try(
            number=number,
            pair=pair.index,
            start=tuple(pair.start_state.tolist()),
            goal=tuple(pair.goal_state.tolist()),
            plan_seed=episode_seed(seed, pair.index),
            random_seed=(seed, pair.index),
        )
        for number, pair in enumerate(Manifest.load(task).pairs(episodes, seed))
    )


def _drive(output: Output, job: Job, model: str) -> RobotReport:
    from cli.demo.progress_table import Board
    from cli.demo.robot_process import run_robot

    title = f"{model} drives {job.task} over {'gRPC' if job.transport == 'grpc' else 'REST'}"
    with Board(output.err, len(job.tries), title) as board:
        return run_robot(job, board.listen)


def _send_clip(transport: str, address: str, robot: RobotReport, report: Path) -> ClipRecord:
    """The longest successful episode (or the longest) as an MP4 file beside the report, embedded by the service."""
    from cli.demo.record import ClipRecord
    from cli.demo.transport import TransportError, open_transport
    from model.video.decode import write_clip

    assert robot.model.action is not None
    shown = max(robot.episodes, key=lambda episode: (episode.success, episode.steps))
    path = report / "episode.mp4"
    write_clip(path, shown.frames, robot.model.action.rate_hz)
    try:
        transport = open_transport(transport, address)
        try:
            goal = transport.goal(shown.goal)
            pooled, per_frame = transport.clip(path, "pooled", goal), transport.clip(path, "per_frame", goal)
        finally:
            transport.close()
    except TransportError as error:
        raise CommandError(f"the recorded clip could not be embedded: {error}") from error
    return ClipRecord(
        episode=shown.number,
        file=path.name,
        bytes=path.stat().st_size,
        frames=len(shown.frames),
        pooled_shape=tuple(pooled.clip.embedding.shape),
        embedding=per_frame.clip,
        upload_ms=pooled.upload_ms,
    )


def _summary(record: DemoRecord, report: Path) -> RenderableType:
    from rich.table import Table

    from cli.demo.report import milliseconds

    value, count = record.summary(), len(record.tried)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    if count:
        low, high = record.interval
        reached = f"[bold]{record.successes} of {count}[/bold] ({low:.0%} to {high:.0%} with 95 % confidence)"
        table.add_row("goals reached", reached)
        table.add_row("random policy", f"{record.random_successes} of {count} on the same pairs")
    if value["initially_solved"]:
        table.add_row("left out", f"{value['initially_solved']} solved at their start")
    plan, over = milliseconds(value["plan_ms_p50"]), milliseconds(value["overhead_ms_p50"])
    table.add_row("one plan", f"p50 {plan}, p95 {milliseconds(value['plan_ms_p95'])}")
    table.add_row("service adds", f"p50 {over}, p95 {milliseconds(value['overhead_ms_p95'])} over {record.transport}")
    shape = " x ".join(str(size) for size in record.clip.embedding.embedding.shape)
    table.add_row("clip", f"{record.clip.frames} frames uploaded, embedding {shape} per frame")
    table.add_row("report", str(report / "report.html"))
    return table
