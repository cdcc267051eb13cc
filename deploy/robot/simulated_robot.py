"""A robot stack in one process: a simulated arm that a remote service drives to goal images at 10 Hz, over gRPC.

What runs in the second container of compose.yaml. It knows the client and the simulation, neither models nor torch.
Exit code 0 when every goal was reached, 1 otherwise, 2 for files that cannot be read.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import presage

from simulation import tasks
from simulation.manifest import Manifest


class SimulatedArm:
    """What `presage.run_control` drives. `act` takes effect at once: the loop's rate is the arm's own."""

    def __init__(self, start: np.ndarray) -> None:
        self.task = tasks.make("arm")
        self.task.set_state(start)

    def observe(self) -> tuple[np.ndarray, None]:
        return self.task.render(), None

    def act(self, action: np.ndarray) -> None:
        self.task.act(action)


def reach(
    client: presage.Client, start: np.ndarray, goal: np.ndarray, ticks: int, budget_ms: float
) -> tuple[bool, str]:
    """One episode: whether the goal was reached, and how the loop went."""
    robot = SimulatedArm(start)
    image = client.goal(robot.task.render_state(goal))
    with client.session(goal=image) as session, session.control(budget_ms=budget_ms) as loop:
        report = presage.run_control(
            loop, robot, rate_hz=10, hold=[0.0, 0.0], until=lambda tick: robot.task.is_success(goal), ticks=ticks
        )
    told = f"{report.ticks} ticks, {report.plans} plans, {report.held} held, {report.late} late"
    return robot.task.is_success(goal), told


def main() -> int:
    parser = argparse.ArgumentParser(description="Drive a simulated arm to held-out goals through a service.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--api-key-file", type=Path, help="file whose first line is the key")
    parser.add_argument("--tls-roots", type=Path, help="PEM authorities to trust; encrypts")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7, help="chooses the start and goal pairs")
    parser.add_argument("--ticks", type=int, default=150, help="give up an episode after so many; 10 are a second")
    parser.add_argument("--budget-ms", type=float, default=80.0, help="time to think for each plan")
    parser.add_argument("--wait-s", type=float, default=120.0, help="for the service to be ready")
    chosen = parser.parse_args()
    try:
        reached = drive(chosen)
    except OSError as error:
        print(f"robot: {error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    except presage.PresageError as error:
        print(f"robot: {error}", file=sys.stderr)
        return 1
    print(f"{reached} of {chosen.episodes} goals reached")
    return 0 if reached == chosen.episodes else 1


def drive(chosen: argparse.Namespace) -> int:
    """The number of goals reached. Raises OSError for files that cannot be read, PresageError for calls that failed."""
    key = chosen.api_key_file.read_text().strip().partition("\n")[0] if chosen.api_key_file else None
    tls = presage.TLS.from_files(roots=chosen.tls_roots) if chosen.tls_roots else None
    reached, began = 0, time.monotonic()
    with presage.Client(chosen.address, api_key=key, tls=tls) as client:
        client.wait_ready(timeout_s=chosen.wait_s)
        print(f"ready after {time.monotonic() - began:.1f} s", flush=True)
        for number, pair in enumerate(Manifest.load("arm").pairs(chosen.episodes, chosen.seed)):
            success, told = reach(client, pair.start_state, pair.goal_state, chosen.ticks, chosen.budget_ms)
            reached += success
            print(f"episode {number}: {'reached' if success else 'not reached'}, {told}", flush=True)
    return reached


if __name__ == "__main__":
    sys.exit(main())
