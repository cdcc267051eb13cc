"""Starts the robot's process with a job, reads its output line by line, and ends it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from presage import Model

from cli.demo.json_values import from_json
from cli.demo.record import EpisodeRecord, PlanRecord
from cli.demo.robot import Job
from cli.exit_codes import CommandError


@dataclass(frozen=True)
class RobotReport:
    """What the robot told: its episodes, and the model as it was described to it."""

    episodes: tuple[EpisodeRecord, ...]
    model: Model


def run_robot(job: Job, listen: Callable[[Mapping[str, Any]], None]) -> RobotReport:
    """Run a robot to the end of its job; `listen` is told each of its lines. Raises CommandError where it failed."""
    plans: dict[int, list[PlanRecord]] = {one.number: [] for one in job.tries}
    ended: list[EpisodeRecord] = []
    model: Model | None = None
    with closing(_lines(job)) as lines:
        for line in lines:
            match line["event"]:
                case "connected":
                    model = from_json(Model, line["model"])
                case "planned":
                    plans[line["number"]].append(from_json(PlanRecord, line))
                case "ended":
                    ended.append(_episode(line, job, tuple(plans[line["number"]])))
                case "failed":
                    raise CommandError(f"the robot gave up: {line['message']}")
            listen(line)
    if model is None:
        raise CommandError("the robot ended before it was connected")
    return RobotReport(tuple(ended), model)


def _lines(job: Job) -> Generator[Mapping[str, Any], None, None]:
    """Each line of a robot's; ends with its process, or ends its process."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "cli.demo.robot"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(job.to_json())
            process.stdin.close()
            for text in process.stdout:
                yield json.loads(text)
            if process.wait() != 0:
                errors.seek(0)
                said = [line.strip() for line in errors if line.strip()] or ["it said nothing"]
                raise CommandError(f"the robot's process ended with code {process.returncode}: {said[-1]}")
        finally:
            if process.poll() is None:
                process.kill()  # it holds nothing that would need a farewell
            process.wait()
            process.stdout.close()


def _episode(line: Mapping[str, Any], job: Job, plans: tuple[PlanRecord, ...]) -> EpisodeRecord:
    file = Path(line["file"])
    with np.load(file, allow_pickle=False) as arrays:
        frames, goal, random_end = arrays["frames"], arrays["goal"], arrays["random_end"]
    one = next(one for one in job.tries if one.number == line["number"])
    told = {name: line[name] for name in ("success", "initially_solved", "steps", "random_success", "random_steps")}
    distances = tuple(line["goal_distances"])
    return EpisodeRecord(
        one.number,
        one.pair,
        plans=plans,
        goal_distances=distances,
        frames=frames,
        goal=goal,
        random_end=random_end,
        **told,
    )  # fmt: skip
