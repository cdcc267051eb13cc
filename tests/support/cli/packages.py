"""A model package for tests: the arm's shapes, tiny untrained networks, and a planner that hardly searches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from model.compact.network import CompactConfig
from model.compact.world_model import CompactWorldModel
from model.package import ActionSpec, ImageSpec, PackageConfig, PlannerDefaults
from simulation.robots.arm import ACTION_NAMES, ACTION_UNITS, MAX_JOINT_SPEED, RATE_HZ

BLOCK = 5


def write_untrained_arm(folder: Path) -> Path:
    """The package's folder; the same weights every time."""
    network = CompactConfig(
        action_width=BLOCK * len(ACTION_NAMES),
        latent=16,
        encoder_width=32,
        encoder_depth=1,
        predictor_width=36,
        predictor_depth=1,
        horizon=2,
    )
    config = PackageConfig(
        name="untrained",
        family="compact",
        image=ImageSpec(height=64, width=64),
        latent_shape=(network.latent,),
        network=asdict(network),
        action=ActionSpec(
            names=ACTION_NAMES,
            units=ACTION_UNITS,
            low=(-MAX_JOINT_SPEED,) * 2,
            high=(MAX_JOINT_SPEED,) * 2,
            rate_hz=RATE_HZ,
            block=BLOCK,
            mean=(0.0, 0.0),
            std=(1.0, 1.0),
        ),
        planner=PlannerDefaults(samples=16, iterations=2, elites=4, horizon=2, execute=BLOCK),
    )
    CompactWorldModel.random(folder, config, seed=0)
    return folder
