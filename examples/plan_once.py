"""One plan: what the robot sees and what it should see go to the service, actions come back.

    scripts/serve --model arm                                           # in another terminal
    .venv/bin/python examples/plan_once.py                              # two images of the simulated arm
    .venv/bin/python examples/plan_once.py --image now.png --goal then.png

Files are JPEG, PNG or WebP and go as they are; `arm` takes images of 64 x 64 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import presage

from simulation import tasks

START, GOAL = np.array([0.2, 0.9]), np.array([1.4, -0.6])  # joint angles in rad


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a service for one plan and print it.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--image", type=Path, help="what the robot sees; needs --goal")
    parser.add_argument("--goal", type=Path, help="what it should see; needs --image")
    parser.add_argument("--budget-ms", type=float, default=1000.0, help="time to think; the best plan by then is taken")
    chosen = parser.parse_args()
    if (chosen.image is None) != (chosen.goal is None):
        parser.error("--image and --goal go together")

    if chosen.image is not None:
        image, goal_image = chosen.image.read_bytes(), chosen.goal.read_bytes()
    else:
        arm = tasks.make("arm")
        image, goal_image = arm.render_state(START), arm.render_state(GOAL)  # uint8 [64, 64, 3], RGB

    with presage.Client(chosen.address) as client:
        client.wait_ready(timeout_s=60.0)
        model = client.model()
        goal = client.goal(goal_image)  # embedded once, kept by the service
        plan = client.plan(image, goal, budget_ms=chosen.budget_ms)

    print(f"model {model.name}: {len(plan.actions)} actions at {model.action.rate_hz:g} Hz")
    units = zip(model.action.names, model.action.units, strict=True)
    print("time (s)  " + "  ".join(f"{name} ({unit})" for name, unit in units))
    for number, action in enumerate(plan.actions):
        print(f"{number / model.action.rate_hz:8.1f}  " + "  ".join(f"{entry:+.3f}" for entry in action))
    print(f"goal distance: now {plan.goal_distance:.4f}, predicted at the end {plan.step_costs[-1]:.4f}")
    print(f"stopped: {plan.stop_reason} after {plan.iterations_done} iterations, {plan.timings.total_ms:.0f} ms")


if __name__ == "__main__":
    main()
