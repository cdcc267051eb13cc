"""LeWM at the published size, with random weights: a plan as published, and the same plan here."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from presage.fields import from_fields
from torch import Tensor

from benchmarks.baselines.lewm import LeWMLoop
from benchmarks.planning.timing import Table, interleaved
from model.lewm.config import LeWMConfig
from model.lewm.network import LeWM
from model.lewm.world_model import LeWMWorldModel
from model.package import ActionSpec, ImageSpec, PackageConfig, read_package, write_package
from planner.noise import Stream
from planner.optimizers.cem import CEM
from planner.types import ActionSpace, Problem

ACTION = ActionSpec(
    names=("a", "b"), units=("1", "1"), low=(-9.0, -9.0), high=(9.0, 9.0), rate_hz=10.0, block=5,
    mean=(0.0, 0.0), std=(0.2, 0.2),
)  # fmt: skip
SPACE = from_fields(ActionSpace, ACTION)
PUBLISHED = LeWMConfig()
WHOLE = CEM.lewm_paper()
QUICK = replace(WHOLE, iterations=2)


def plans(config: LeWMConfig, search: CEM, repeats: int) -> tuple[Table, dict[str, float]]:
    """Whole plans from two images: the published loop, and Presage in both precisions."""
    with TemporaryDirectory() as folder:
        exact = random_model(config, Path(folder))
        lowered = exact.to_precision(torch.bfloat16)
        network = LeWM(config)
        network.load_state_dict(exact.package.weights())
    network.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    image, goal_image = torch.randint(
        0, 256, (2, config.image, config.image, 3), dtype=torch.uint8, generator=generator
    )
    published = LeWMLoop(search.samples, search.iterations, search.elites, search.horizon)

    def draw(iteration: int) -> Tensor:
        shape = (search.samples, search.horizon * ACTION.block, len(ACTION.names))
        return torch.randn(shape, generator=Stream(0, iteration).generator(torch.device("cpu")))

    def ours(model: LeWMWorldModel) -> Tensor:
        goal, context = model.encode(goal_image[None])[0], model.context([model.encode(image[None])[0]], None)
        return search.plan(model, Problem(context, goal, SPACE, seed=0)).actions

    works = {
        "as published, float32": lambda: published.plan(network, ACTION, image, goal_image, draw),
        "Presage, float32": lambda: ours(exact),
        "Presage, bfloat16": lambda: ours(lowered),
    }
    ms = interleaved(works, repeats)
    first, *others = works
    rows: list[tuple[object, ...]] = [(name, ms[name], ms[first] / ms[name]) for name in works]
    size = f"{search.samples} samples x {search.iterations} iterations, horizon {search.horizon}"
    ratios = {name.rpartition(" ")[2]: ms[first] / ms[name] for name in others}
    return Table(
        f"One plan with LeWM, {size}", "Random weights, no compiler.", ("", "ms", "times as fast"), rows
    ), ratios


def random_model(config: LeWMConfig, folder: Path) -> LeWMWorldModel:
    """A package of that shape with random weights, loaded in float32."""
    torch.manual_seed(0)
    package = PackageConfig(
        name="lewm",
        family="lewm",
        image=ImageSpec(config.image, config.image, "short_side"),
        latent_shape=(config.latent,),
        network=asdict(config),
        action=ACTION,
        history=config.window,
        past_actions=True,
    )
    write_package(folder, package, LeWM(config).state_dict(), "# lewm\n\nRandom weights.\n")
    return LeWMWorldModel(read_package(folder), torch.device("cpu"))
