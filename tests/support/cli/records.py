"""A demo that never happened, made from the arm and its oracle in an instant: something for reports to show."""

from __future__ import annotations

import numpy as np
from presage import ActionSpec, ClipEmbedding, ImageSpec, Model, Plan, PlannerSettings, Provenance, Timings

from cli.demo.record import ClipRecord, DemoRecord, EpisodeRecord, PlanRecord
from simulation.manifest import Manifest, Pair
from simulation.policies import arm_oracle
from simulation.robots.arm import Arm

BLOCK = 5


def made_up_plan(step: int, distance: float, number: int) -> PlanRecord:
    costs = tuple(distance * 0.5 ** (k + 1) for k in range(4))
    plan = Plan(
        actions=np.full((4 * BLOCK, 2), 0.1, np.float32),
        cost=sum(costs),
        step_costs=costs,
        goal_distance=distance,
        iteration_costs=tuple(sum(costs) * (1 + 0.5**k) for k in range(8)),
        elite_spread=(),
        iterations_done=8,
        stop_reason="iterations",
        seed=number,
        warm_started=step > 0,
        timings=Timings(0.2, 0.1, 4.0, 298.0 + 2 * number, 303.0 + 2 * number),
        provenance=Provenance("arm", device="cpu", dtype="float32", planner=PlannerSettings(200, 8, 20, 4)),
    )
    return PlanRecord(step, plan, round_trip_ms=305.0 + 3 * number)


def made_up_episode(number: int, pair: Pair, success: bool = True, initially_solved: bool = False) -> EpisodeRecord:
    """The oracle's way, stopped half way where it is not to succeed."""
    arm = Arm(64)
    arm.set_state(pair.start_state)
    frames, distances = [arm.render()], [float(np.abs(pair.start_state - pair.goal_state).sum())]
    while not (arm.is_success(pair.goal_state) or initially_solved or (not success and len(frames) > 6)):
        arm.act(arm_oracle(arm.state, pair.goal_state))
        frames.append(arm.render())
        distances.append(float(np.abs(arm.state - pair.goal_state).sum()))
    steps = len(frames) - 1
    return EpisodeRecord(
        number=number,
        pair=pair.index,
        success=success and not initially_solved,
        initially_solved=initially_solved,
        steps=steps,
        plans=tuple(made_up_plan(step, distances[step], number) for step in range(0, steps, BLOCK)),
        goal_distances=tuple(distances),
        frames=np.stack(frames),
        goal=arm.render_state(pair.goal_state),
        random_success=number % 7 == 3,
        random_steps=50,
        random_end=arm.render_state(pair.start_state + 0.3),
    )


def made_up_demo(episodes: int = 4) -> DemoRecord:
    """Every fourth episode fails; the last was solved at its start."""
    pairs = Manifest.load("arm").pairs(episodes, 7)
    made = [
        made_up_episode(number, pair, success=number % 4 != 1, initially_solved=number == episodes - 1)
        for number, pair in enumerate(pairs)
    ]
    shown = made[0]
    return DemoRecord(
        task="arm",
        model="arm",
        transport="grpc",
        seed=7,
        budget_steps=50,
        episodes=tuple(made),
        served=Model(
            "arm",
            "compact",
            "0123456789abcdef" * 4,
            ImageSpec(64, 64, "exact", 1),
            ActionSpec(("a", "b"), ("rad/s", "rad/s"), (-1.0, -1.0), (1.0, 1.0), 10.0, BLOCK),
            (128,),
            server_version="0.1.0",
        ),
        clip=ClipRecord(
            episode=0,
            file="episode.mp4",
            bytes=7168,
            frames=len(shown.frames),
            pooled_shape=(128,),
            embedding=ClipEmbedding(
                np.zeros((len(shown.frames), 128), np.float32),
                "per_frame",
                "arm",
                frame_times_s=tuple(index / 10 for index in range(len(shown.frames))),
                goal_distances=shown.goal_distances,
            ),
            upload_ms=61.5,
        ),
        machine={"processor": "a processor, 2 CPUs", "system": "Linux", "Python": "3.11.2", "torch": "2.13.0"},
        seconds=61.0,
    )
