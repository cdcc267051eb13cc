"""Many robots, one service: a session for each, all in one asyncio program, their searches batched by the service.

    scripts/serve --model arm                         # in another terminal
    .venv/bin/python examples/many_robots.py --robots 8

Each start is 0.8 rad from its goal in both joints; a goal is reached within 0.1 rad.
"""

from __future__ import annotations

import argparse
import asyncio

import numpy as np
import presage

from simulation import tasks
from simulation.robots.arm import wrap_angle


async def drive(client: presage.AsyncClient, number: int, plans: int, budget_ms: float, execute: int) -> bool:
    """One arm from a start to a goal of its own: look, plan, execute a few actions, look again."""
    arm, rng = tasks.make("arm"), np.random.default_rng(number)
    goal_state = arm.random_state(rng)
    arm.set_state(goal_state + np.array([0.8, -0.8 * np.sign(goal_state[1])]))
    goal = await client.goal(arm.render_state(goal_state))
    executed = asked = 0
    async with await client.session(goal=goal, seed=number) as session:  # history and warm start live in the session
        while asked < plans and not arm.is_success(goal_state):
            plan = await session.plan(arm.render(), budget_ms=budget_ms, executed=executed, timeout_s=60.0)
            asked, executed = asked + 1, 0
            while executed < execute and not arm.is_success(goal_state):
                arm.act(plan.actions[executed])
                executed += 1
    error = np.abs(wrap_angle(arm.state - goal_state)).max()
    print(f"robot {number}: {error:.3f} rad from its goal after {asked} plans")
    return arm.is_success(goal_state)


async def run(address: str, robots: int, plans: int, budget_ms: float) -> None:
    async with presage.AsyncClient(address) as client:
        await client.wait_ready(timeout_s=60.0)
        execute = (await client.model()).action.block  # actions of one model step
        reached = await asyncio.gather(*(drive(client, n, plans, budget_ms, execute) for n in range(robots)))
    print(f"{sum(reached)} of {robots} robots reached their goals")


def main() -> None:
    parser = argparse.ArgumentParser(description="Drive several simulated arms through one service.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the service")
    parser.add_argument("--robots", type=int, default=4)
    parser.add_argument("--plans", type=int, default=10, help="each robot gives up after so many")
    parser.add_argument("--budget-ms", type=float, default=500.0, help="time to think for each plan")
    chosen = parser.parse_args()
    asyncio.run(run(chosen.address, chosen.robots, chosen.plans, chosen.budget_ms))


if __name__ == "__main__":
    main()
