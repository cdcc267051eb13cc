"""A control loop at 10 Hz: the robot acts each tick while the service plans from its newest image in the background.

    scripts/serve --model arm                         # in another terminal
    .venv/bin/python examples/control_loop.py --goals 20

Stop the service and start it again while this runs: the arm holds, and goes on once the service is back. `SimulatedArm`
is what to replace for a robot of one's own, any `presage.Robot`: two methods, neither of which may wait for long.
"""

from __future__ import annotations

import argparse

import numpy as np
import presage

from simulation import tasks
from simulation.manifest import Manifest, Pair
from simulation.robots.arm import SUCCESS_TOLERANCE, wrap_angle

SETTLED = 20  # ticks at the end


class SimulatedArm:
    def __init__(self, pair: Pair) -> None:
        self.arm, self.goal = tasks.make("arm"), pair.goal_state  # joint angles in rad
        self.arm.set_state(pair.start_state)
        self.errors: list[float] = []  # of the worse joint, in rad, after each tick

    def observe(self) -> tuple[np.ndarray, None]:
        return self.arm.render(), None  # the camera's image; the model `arm` asks for no proprioception

    def act(self, action: np.ndarray) -> None:
        self.arm.act(action)  # joint velocities in rad/s
        self.errors.append(float(np.abs(wrap_angle(self.arm.state - self.goal)).max()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Drive the simulated arm to goal images, and keep it there.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--goals", type=int, default=1, help="how many of the arm's held-out starts and goals")
    parser.add_argument("--ticks", type=int, default=100, help="for each goal; 10 are a second")
    parser.add_argument("--budget-ms", type=float, default=80.0, help="time to think for each plan")
    parser.add_argument("--optimizer", default="real_time_iteration", help="how to search; this one is for loops")
    chosen = parser.parse_args()
    settings = presage.PlannerSettings(optimizer=chosen.optimizer, samples=48)
    reached = settled = 0
    with presage.Client(chosen.address) as client:
        client.wait_ready(timeout_s=60.0)
        for pair in Manifest.load("arm").pairs(chosen.goals, seed=1):
            robot = SimulatedArm(pair)
            goal = client.goal(robot.arm.render_state(pair.goal_state))
            session = client.session(goal=goal)
            with session, session.control(budget_ms=chosen.budget_ms, settings=settings) as loop:
                report = presage.run_control(loop, robot, rate_hz=10, hold=[0.0, 0.0], ticks=chosen.ticks)
            nearest, last = min(robot.errors), max(robot.errors[-SETTLED:])
            print(f"pair {pair.index}: nearest {nearest:.3f} rad, at most {last:.3f} rad off at the end; {report}")
            reached, settled = reached + (nearest <= SUCCESS_TOLERANCE), settled + (last <= SUCCESS_TOLERANCE)
    print(f"{reached} of {chosen.goals} goals reached, {settled} kept for the last {SETTLED} ticks")


if __name__ == "__main__":
    main()
