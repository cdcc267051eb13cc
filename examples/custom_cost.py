"""The planner as a library, with a cost of one's own: reach the goal, but spare the shoulder's motor.

    .venv/bin/python examples/custom_cost.py          # no service needed

A cost is a function of predicted latents, goal and actions that says what each model step of each candidate costs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch

from model import registry
from planner.cost import ActionCost, GoalDistance, WeightedSum
from planner.optimizers.cem import CEM
from planner.types import Problem
from simulation import tasks
from training.evaluation.closed_loop import action_space, encode_image

START, GOAL = np.array([0.2, 0.9]), np.array([1.4, -0.6])  # joint angles in rad


def shoulder_speed(predicted: torch.Tensor, goal: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Mean |shoulder velocity| in each step: [batch, samples, time, action] -> [batch, samples, horizon]."""
    horizon = predicted.shape[2]
    return actions[..., 0].abs().unflatten(2, (horizon, -1)).mean(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plan with and without a cost of one's own.")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--weight", type=float, default=1.0, help="of the shoulder's speed beside the goal distance")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()

    model = registry.load("arm", torch.device("cpu"))
    arm = tasks.make("arm")
    seen, goal = encode_image(model, arm.render_state(START)), encode_image(model, arm.render_state(GOAL))
    problem = Problem(model.context([seen], None), goal, action_space(model), seed=chosen.seed)

    plain = CEM(samples=chosen.samples, iterations=chosen.iterations, elites=20)  # cost: GoalDistance()
    sparing = WeightedSum(((1.0, GoalDistance()), (0.01, ActionCost(scale=1.5)), (chosen.weight, shoulder_speed)))
    for name, optimizer in (("goal distance alone", plain), ("sparing the shoulder", replace(plain, cost=sparing))):
        plan = optimizer.plan(model, problem)
        arm.set_state(START)
        for action in plan.actions.numpy():
            arm.act(action)
        distances = [(latent - goal).square().mean().item() for latent in (seen, encode_image(model, arm.render()))]
        shoulder, elbow = plan.actions.abs().mean(0).tolist()
        print(f"{name}: shoulder {shoulder:.3f} rad/s, elbow {elbow:.3f} rad/s on average")
        print(f"  cost {plan.cost:.4f}, goal distance {distances[0]:.4f} -> {distances[1]:.4f}")


if __name__ == "__main__":
    main()
