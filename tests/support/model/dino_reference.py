"""World models of the reference numbers' tiny networks, and the published search over them, replayed draw by draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.dino_wm import DinoEncoder, DinoWorldModel, PatchPredictor, Standards
from model.dino_wm.world_model import describe
from model.package import ActionSpec, ImageSpec, Package, PackageConfig
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from planner.cost import ChannelDistance, GoalDistance
from planner.optimizers.cem import CEM
from planner.types import ActionSpace
from tests.support.model.reference_files import fixture
from tests.support.planner.recordings import RecordedNoise

PIXELS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": ((0.5,) * 3, (0.5,) * 3)}


def world_model(
    predictor: PatchPredictor,
    encoder: DinoEncoder,
    pixels: str = "imagenet",
    dimensions: int = 2,
    action: tuple[list[float], list[float]] | None = None,
    proprioception: tuple[list[float], list[float]] = ([], []),
) -> DinoWorldModel:
    """The two networks behind the service's protocol; actions and proprioception as they are, unless told otherwise."""
    shape = predictor.config
    mean, std = action or ([0.0] * dimensions, [1.0] * dimensions)
    numbers = tuple(f"p{index}" for index in range(shape.proprioception))
    plain = ([0.0] * len(numbers), [1.0] * len(numbers))
    center, spread = proprioception if proprioception[0] else plain
    standards = Standards(*PIXELS[pixels], tuple(center), tuple(spread), alpha=0.1)
    side = shape.grid * encoder.config.patch
    config = PackageConfig(
        name="tiny",
        family="dino_wm",
        image=ImageSpec(side, side, "planning"),
        latent_shape=(shape.patches, shape.latent),
        network=dict(describe(encoder.config, shape, standards)),
        action=ActionSpec(
            names=tuple(f"a{index}" for index in range(dimensions)),
            units=("1",) * dimensions,
            low=(-100.0,) * dimensions,  # what a published search draws is not bounded, and its plan far from this
            high=(100.0,) * dimensions,
            rate_hz=5.0,
            block=shape.action // dimensions,
            mean=tuple(mean),
            std=tuple(std),
        ),
        proprioception_names=numbers,
    )
    return DinoWorldModel(Package(config, Path("nowhere"), ""), encoder, predictor, standards, torch.device("cpu"))


def reference_encoder(name: str = "dinov2_encoder") -> DinoEncoder:
    reference = fixture(name)
    return DinoEncoder.from_reference(reference["config"], reference["checkpoint_layout"]["hf"])


def reference_predictor(name: str) -> PatchPredictor:
    reference = fixture(name)
    return PatchPredictor.from_reference(reference["config"], reference["checkpoint_layout"])


class Watched:
    """A world model that remembers which candidates it was asked about, and what it predicted for them."""

    def __init__(self, world: Any) -> None:
        self.world, self.block = world, world.block
        self.asked: list[tuple[Tensor, Tensor]] = []

    def rollout(self, context: tuple[Tensor, ...], actions: Tensor) -> Tensor:
        predicted: Tensor = self.world.rollout(context, actions)
        self.asked.append((actions, predicted))
        return predicted


def space(model: DinoWorldModel, bounds: list[float] | None = None) -> ActionSpace:
    """The model's actions, with the statistics that published searches draw by; `bounds` are those of a clipped one."""
    spec = model.package.config.action
    assert spec is not None
    low, high = (spec.low, spec.high) if bounds is None else (tuple(-size for size in bounds), tuple(bounds))
    return ActionSpace(spec.names, spec.units, low, high, spec.rate_hz, mean=spec.mean, std=spec.std)


def published_search(model: DinoWorldModel, settings: dict[str, Any], noise: Tensor) -> CEM:
    """The published loop with recorded draws `[iteration, horizon, sample, block width]`."""
    spec = model.package.config.action
    assert spec is not None
    block, dimensions = model.block, len(spec.names)
    iterations, horizon, samples = noise.shape[:3]
    draws = noise.view(*noise.shape[:3], block, dimensions).permute(0, 1, 3, 2, 4)
    beside = model.predictor.config.proprioception_width
    groups = ((model.predictor.config.latent, 1.0), *(((beside, settings["alpha"]),) if beside else ()))
    clipped = settings["max_norms"] is not None
    assert settings["var_scale"] == (0.1 if clipped else 1.0)
    return replace(
        CEM.jepa_wms_droid_paper() if clipped else CEM.jepa_wms_paper(),
        samples=samples,
        iterations=iterations,
        elites=settings["elites"],
        horizon=horizon,
        noise=RecordedNoise(draws.reshape(iterations, horizon * block, samples, dimensions)),
        cost=ChannelDistance(groups, GoalDistance("l2", over="last")),
    )
