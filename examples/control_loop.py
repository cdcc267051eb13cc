"""A control loop at 10 Hz: the robot acts each tick while the service plans from its newest image in the background.

    scripts/serve --model arm                         # in another terminal
    .venv/bin/python examples/control_loop.py

`SimulatedArm` is what to replace for a robot of one's own, any `presage.Robot`: two methods, neither of which may wait
longer than a tick lasts.
"""

from __future__ import annotations

import argparse

import numpy as np
import presage

from simulation import tasks
from simulation.robots.arm import wrap_angle

START, GOAL = np.array([0.2, 0.9]), np.array([1.4, -0.6])  # joint angles in rad


class SimulatedArm:
    def __init__(self) -> None:
        self.arm = tasks.make("arm")
        self.arm.set_state(START)

    def observe(self) -> tuple[np.ndarray, None]:
        return self.arm.render(), None  # the camera's image; the model `arm` asks for no proprioception

    def act(self, action: np.ndarray) -> None:
        self.arm.act(action)  # joint velocities in rad/s


def main() -> None:
    parser = argparse.ArgumentParser(description="Drive the simulated arm to a goal image.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--ticks", type=int, default=100, help="give up after so many; 10 are a second")
    parser.add_argument("--budget-ms", type=float, default=80.0, help="time to think for each plan")
    chosen = parser.parse_args()
    robot = SimulatedArm()

    def reached(tick: presage.ControlTick) -> bool:
        if tick.tick % 5 == 0:
            error = np.abs(wrap_angle(robot.arm.state - GOAL)).max()
            print(f"tick {tick.tick:3d}: {error:.3f} rad from the goal{', holding' if tick.held else ''}")
        return robot.arm.is_success(GOAL)

    with presage.Client(chosen.address) as client:
        client.wait_ready(timeout_s=60.0)
        goal = client.goal(robot.arm.render_state(GOAL))
        with client.session(goal=goal) as session, session.control(budget_ms=chosen.budget_ms) as loop:
            report = presage.run_control(loop, robot, rate_hz=10, hold=[0.0, 0.0], until=reached, ticks=chosen.ticks)
    print(f"{report.ticks} ticks, {report.plans} plans, {report.held} ticks held, {report.late} late")
    print(f"success: {'yes' if robot.arm.is_success(GOAL) else 'no'}")


if __name__ == "__main__":
    main()
