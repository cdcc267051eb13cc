"""The demo's robot: a process of its own, `python -m cli.demo.robot`, with a simulator and a client of the service.

It reads its job as one JSON object from stdin, tells what happens as one JSON object per line on stdout, and leaves
each episode's frames as an .npz file in the job's folder. It loads no model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from presage import Model

from cli.demo.json_values import as_json
from cli.demo.record import PlanRecord
from cli.demo.transport import Transport, TransportError, open_transport
from simulation.attempts import attempt
from simulation.policies import random_policy
from simulation.tasks import RobotTask, make

Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Try:
    """One start and goal. `plan_seed` counts up with the plans; `random_seed` is the random policy's."""

    number: int
    pair: int
    start: tuple[float, ...]
    goal: tuple[float, ...]
    plan_seed: int
    random_seed: tuple[int, ...]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Try:
        """A try out of JSON, whose lists become tuples."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})


@dataclass(frozen=True)
class Job:
    """What a robot is told to do."""

    transport: str
    address: str
    task: str
    budget_steps: int
    folder: str
    tries: tuple[Try, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        values = json.loads(text)
        return cls(**{**values, "tries": tuple(Try.from_values(one) for one in values["tries"])})


def work(job: Job, tell: Tell) -> None:
    """Try every pair in order. Raises TransportError where the service cannot serve this robot."""
    transport = open_transport(job.transport, job.address)
    try:
        model = transport.model()
        robot = make(job.task, model.image.height)
        check_suits(model, robot)
        tell({"event": "connected", "model": as_json(model)})
        for one in job.tries:
            tell({"event": "started", "number": one.number, "pair": one.pair})
            run_try(transport, model, robot, one, job, tell)
    finally:
        transport.close()


def run_try(transport: Transport, model: Model, robot: RobotTask, one: Try, job: Job, tell: Tell) -> None:
    """Look, ask for a plan, execute one model step of it, and again, until the goal or the budget's end."""
    assert model.action is not None
    goal_state = np.array(one.goal)
    goal_image = robot.render_state(goal_state)
    goal_id = transport.goal(goal_image)
    transport.begin(goal_id)
    robot.set_state(np.array(one.start))
    frames = [robot.render()]
    initially_solved = success = robot.is_success(goal_state)
    plans = planned_at = 0
    while not success and (steps := len(frames) - 1) < job.budget_steps:
        proprioception = robot.proprioception.tolist() if model.proprioception_names else None
        answer = transport.plan(frames[-1], proprioception, steps - planned_at, one.plan_seed + plans)
        tell(
            {"event": "planned", "number": one.number, **as_json(PlanRecord(steps, answer.plan, answer.round_trip_ms))}
        )
        plans, planned_at = plans + 1, steps
        for action in answer.plan.actions[: min(model.action.block, job.budget_steps - steps)]:
            robot.act(action)
            frames.append(robot.render())
            success = robot.is_success(goal_state)
            if success:
                break
    seen = np.stack(frames)
    distances = _distances(transport, seen, goal_id)
    baseline = attempt(
        robot,
        random_policy(robot, np.random.default_rng(one.random_seed)),
        np.array(one.start),
        goal_state,
        job.budget_steps,
    )
    file = Path(job.folder) / f"episode-{one.number:03d}.npz"
    np.savez(file, frames=seen, goal=goal_image, random_end=robot.render())
    tell(
        {
            "event": "ended",
            "number": one.number,
            "success": success and not initially_solved,
            "initially_solved": initially_solved,
            "steps": len(frames) - 1,
            "goal_distances": distances,
            "random_success": baseline.success,
            "random_steps": baseline.steps,
            "file": str(file),
        }
    )


def check_suits(model: Model, robot: RobotTask) -> None:
    """Raises TransportError where a model's actions or images are not this robot's."""
    names, width = () if model.action is None else model.action.names, len(model.proprioception_names)
    if names != robot.action_names:
        acts, wanted = ", ".join(names) or "no actions", ", ".join(robot.action_names)
        raise TransportError(
            f"model {model.name} acts in {acts}, but robot {robot.name} in {wanted}: choose another task"
        )
    if model.image.height != model.image.width:
        size = f"{model.image.height} x {model.image.width}"
        raise TransportError(f"model {model.name} takes {size} images, but robots render squares")
    if width not in (0, len(robot.proprioception_names)):
        raise TransportError(f"model {model.name} wants {width} proprioception numbers of {robot.name}")


def _distances(transport: Transport, frames: NDArray[np.uint8], goal_id: str, at_once: int = 64) -> list[float]:
    """How far each frame was from the goal, in the planner's cost."""
    parts = [transport.distances(frames[first : first + at_once], goal_id) for first in range(0, len(frames), at_once)]
    return [distance for part in parts for distance in part]


def main() -> int:
    """Exit code 0 when every try was made, 1 when the service failed the robot; the last line says why."""

    def tell(line: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    try:
        work(Job.from_json(sys.stdin.read()), tell)
    except (TransportError, ImportError) as error:
        tell({"event": "failed", "message": str(error)})
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
