"""Training throughput against a plain PyTorch loop of the same model, and how much of a step is computing.

`python -m benchmarks.training` alternates the two in one run, so that whatever else the machine does hits both alike.
The plain loop is what one writes first: single precision, the default memory layout, SIGReg as its paper has it under
autograd, windows drawn when they are needed. Both train the same network on the same windows with the same losses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.source import commit
from cli.demo.machine import describe_machine
from cli.train.training_data import as_training_episodes
from model.compact.network import CompactConfig, to_network_input
from model.normalizer import ActionNormalizer
from simulation.episodes import collect
from training.compact.objective import Learner, losses, make_learner, prediction_loss
from training.compact.recipe import CompactRecipe, package_config
from training.compact.sigreg import epps_pulley_reference
from training.compact.windows import Batch, Windows, batches, sample_batch
from training.data.episodes import Episodes
from training.distributed import ALONE


@dataclass(frozen=True)
class Timed:
    """Seconds of one step, and those of them that went by until its windows were there."""

    step_s: float
    wait_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="of each loop, after two that are not counted")
    parser.add_argument("--batch", type=int, default=112, help="windows")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments.steps, arguments.batch, torch.device(arguments.device))
    figures |= {"threads": arguments.threads, "machine": describe_machine(), "commit": commit()}
    text = json.dumps(figures, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)


def measure(steps: int, batch: int, device: torch.device) -> dict[str, object]:
    """Median frames a second of both loops, their ratio, and the share of the time that ours computes."""
    episodes = as_training_episodes(collect("arm", 64, 50, seed=1))
    recipe = CompactRecipe(batch=batch, encoder_depth=6, normed_stem=False)  # those of the built-in `arm`
    windows = Windows(batch, recipe.horizon, recipe.block, recipe.latent, recipe.directions)
    ours = our_loop(episodes, recipe, windows, device)
    plain = plain_loop(episodes, recipe, windows, device)
    timed: dict[str, list[Timed]] = {"ours": [], "plain": []}
    for step in range(steps + 2):
        for name, loop in (("ours", ours), ("plain", plain)):
            taken = loop()
            if step >= 2:
                timed[name].append(taken)
    frames = batch * (recipe.horizon + 1)
    rates = {name: frames / statistics.median(one.step_s for one in all_) for name, all_ in timed.items()}
    waited, spent = (sum(getattr(one, name) for one in timed["ours"]) for name in ("wait_s", "step_s"))
    return {
        "ours_frames_per_s": round(rates["ours"], 1),
        "plain_frames_per_s": round(rates["plain"], 1),
        "ratio": round(rates["ours"] / rates["plain"], 2),
        "compute_share": round(1 - waited / spent, 4),
        "steps": steps,
        "batch": batch,
        "device": str(device),
    }


def our_loop(episodes: Episodes, recipe: CompactRecipe, windows: Windows, device: torch.device) -> Callable[[], Timed]:
    """One step of `training.compact.train`: bfloat16 products, channels last, windows drawn ahead, the fast SIGReg."""
    learner, optimizer = _fresh(episodes, recipe, device, plain=False)
    drawn = batches(episodes, windows, torch.Generator().manual_seed(0))

    def step() -> Timed:
        begun = time.perf_counter()
        batch = next(drawn)
        waited = time.perf_counter() - begun
        found = losses(learner, *_moved(batch, device), bfloat16=recipe.bfloat16)
        total = found.prediction + recipe.regularizer * found.regularizer + recipe.inverse * found.inverse
        _descend(total, learner, optimizer)
        return Timed(_elapsed(begun, device), waited)

    return step


def plain_loop(
    episodes: Episodes, recipe: CompactRecipe, windows: Windows, device: torch.device
) -> Callable[[], Timed]:
    """The same step without any of that."""
    learner, optimizer = _fresh(episodes, recipe, device, plain=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> Timed:
        begun = time.perf_counter()
        batch = sample_batch(episodes, windows, generator)
        waited = time.perf_counter() - begun
        frames, actions, directions = _moved(batch, device)
        count, times = frames.shape[:2]
        blocks = learner.normalizer(actions).reshape(count, times - 1, -1)
        latents = learner.network.encode(to_network_input(frames.flatten(0, 1))).unflatten(0, (count, times))
        guessed = learner.inverse(torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1))
        gaussian = epps_pulley_reference(latents.transpose(0, 1) @ directions)
        total = prediction_loss(learner.network, latents, blocks) + recipe.regularizer * gaussian
        _descend(total + recipe.inverse * F.mse_loss(guessed, blocks), learner, optimizer)
        return Timed(_elapsed(begun, device), waited)

    return step


def _fresh(
    episodes: Episodes, recipe: CompactRecipe, device: torch.device, *, plain: bool
) -> tuple[Learner, torch.optim.Optimizer]:
    config = package_config(recipe, episodes, "benchmark")
    assert config.action is not None
    torch.manual_seed(0)
    shapes, normalizer = CompactConfig(**config.network), ActionNormalizer(config.action)
    learner = Learner(shapes, normalizer).to(device) if plain else make_learner(shapes, normalizer, device, ALONE)
    return learner, torch.optim.AdamW(learner.parameters(), lr=recipe.learning_rate)


def _moved(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.frames.to(device), batch.actions.to(device), batch.directions.to(device)


def _descend(total: torch.Tensor, learner: Learner, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    optimizer.step()


def _elapsed(begun: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
