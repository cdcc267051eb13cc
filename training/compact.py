"""Training of the compact family, end to end from pixels: predict the next latents, keep them Gaussian (SIGReg).

The loop and its recipe. Networks live in `model.compact`, episodes come in as values, and the result is a package.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.compact.network import CompactConfig, CompactNetwork, to_network_input
from model.compact.world_model import network_settings, saved_weights
from model.normalizer import ActionNormalizer
from model.package import ActionSpec, ImageSpec, PackageConfig, PlannerDefaults, write_package
from training.checkpoint import CHECKPOINT, resume_checkpoint, save_checkpoint
from training.episodes import Episodes
from training.probe import linear_probe
from training.sigreg import sigreg


@dataclass(frozen=True)
class CompactRecipe:
    """Every knob of a training. The defaults make the built-in `arm` on two CPU cores."""

    steps: int = 1400
    batch: int = 112  # windows
    horizon: int = 5  # model steps predicted from a window's first frame
    block: int = 5  # robot actions per model step
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.05  # fraction of the steps
    gradient_clip: float = 1.0
    regulariser: float = 0.3  # weight of SIGReg
    inverse: float = 0.2  # weight of inverse dynamics: which actions led from one latent to the next
    directions: int = 1024
    latent: int = 128
    encoder_width: int = 128
    encoder_depth: int = 6
    predictor_width: int = 192
    predictor_depth: int = 3
    bfloat16: bool = True  # matrix products only; losses and norms stay in float32
    seed: int = 0
    held_out: int = 128  # episodes kept for the probe
    checkpoint_every: int = 200
    planner: PlannerDefaults = field(default_factory=PlannerDefaults)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "horizon", "block", "directions", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True)
class TrainProgress:
    """One line of the log."""

    step: int
    steps: int
    prediction_loss: float
    regulariser: float
    inverse_loss: float
    latent_std: float  # mean over dimensions; near 0 says the latents have collapsed
    probe_r2: tuple[float, ...]  # held-out linear probe, one per target; empty between probes
    seconds: float


def train(
    recipe: CompactRecipe,
    episodes: Episodes,
    name: str,
    out: Path,
    progress: Callable[[TrainProgress], None],
    *,
    provenance: dict[str, Any],
) -> Path:
    """Train and write the package `out`; resumes from `out/checkpoint.pt` where one lies.

    The same recipe, episodes and machine give the same weights, also across an interruption.
    """
    fitting, held_out = episodes.split(recipe.held_out)
    config = package_config(recipe, fitting, name)
    assert config.action is not None
    torch.manual_seed(recipe.seed)
    learner = Learner(CompactConfig(**config.network), ActionNormalizer(config.action))
    network = learner.network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        learner.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, parts = out / CHECKPOINT, {"learner": learner, "optimiser": optimiser}
    first, spent = resume_checkpoint(checkpoint, parts, generator, recipe)
    started = time.monotonic() - spent
    for step in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe.steps, recipe.warmup)
        frames, actions = sample_windows(fitting, recipe, generator)
        loss = losses(learner, frames, actions, recipe, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.total(recipe).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), recipe.gradient_clip)
        optimiser.step()
        last = step + 1 == recipe.steps
        probing = last or (step + 1) % recipe.checkpoint_every == 0
        seconds = time.monotonic() - started
        progress(
            TrainProgress(
                step + 1,
                recipe.steps,
                loss.prediction.item(),
                loss.regulariser.item(),
                loss.inverse.item(),
                loss.latents.detach().std(dim=(0, 1)).mean().item(),
                probe(network, held_out) if probing else (),
                seconds,
            )
        )
        if probing and not last:
            save_checkpoint(checkpoint, parts, generator, recipe, step + 1, seconds)
    record = {**provenance, "recipe": asdict(recipe), "episodes": fitting.source, "seconds": round(seconds, 1)}
    record["probe_r2"] = [round(value, 4) for value in probe(network, held_out)]
    finished = PackageConfig(**{**vars(config), "training": record})
    write_package(out, finished, saved_weights(network), f"# {name}\n\nTrained; not evaluated yet.\n")
    checkpoint.unlink(missing_ok=True)
    return out


def package_config(recipe: CompactRecipe, episodes: Episodes, name: str) -> PackageConfig:
    """The config of the package that this recipe makes from these episodes."""
    height, width = episodes.frames.shape[2:4]
    action = ActionSpec(
        names=episodes.action_names,
        units=episodes.action_units,
        low=episodes.action_low,
        high=episodes.action_high,
        rate_hz=episodes.rate_hz,
        block=recipe.block,
        mean=episodes.action_mean(),
        std=episodes.action_spread(),
    )
    network = CompactConfig(
        action_width=recipe.block * len(action.names),
        latent=recipe.latent,
        encoder_width=recipe.encoder_width,
        encoder_depth=recipe.encoder_depth,
        predictor_width=recipe.predictor_width,
        predictor_depth=recipe.predictor_depth,
        horizon=recipe.horizon,
    )
    return PackageConfig(
        name=name,
        family="compact",
        image=ImageSpec(height, width, episodes.crop_policy),
        latent_shape=(recipe.latent,),
        network=dict(network_settings(network)),
        action=action,
        planner=recipe.planner,
    )


def sample_windows(episodes: Episodes, recipe: CompactRecipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows: uint8 frames `[batch, horizon + 1, h, w, 3]`, a block apart, and the actions between them."""
    span = recipe.horizon * recipe.block
    rows, starts = episodes.draw_windows(recipe.batch, span, generator)
    shown = starts[:, None] + np.arange(0, span + 1, recipe.block)
    between = starts[:, None] + np.arange(span)
    return (
        torch.from_numpy(episodes.frames[rows[:, None], shown]),
        torch.from_numpy(episodes.actions[rows[:, None], between]),
    )


class Learner(nn.Module):
    """What is trained: the network that will be kept, and the inverse-dynamics head that will not."""

    def __init__(self, config: CompactConfig, normalizer: ActionNormalizer) -> None:
        super().__init__()
        self.network = CompactNetwork(config)
        self.normalizer = normalizer
        self.inverse = nn.Sequential(nn.Linear(2 * config.latent, 256), nn.GELU(), nn.Linear(256, config.action_width))


@dataclass(frozen=True)
class Losses:
    """The parts of one batch's loss, and the latents `[batch, horizon + 1, latent]` they were computed from."""

    prediction: Tensor
    regulariser: Tensor
    inverse: Tensor
    latents: Tensor

    def total(self, recipe: CompactRecipe) -> Tensor:
        return self.prediction + recipe.regulariser * self.regulariser + recipe.inverse * self.inverse


def losses(
    learner: Learner, frames: Tensor, actions: Tensor, recipe: CompactRecipe, generator: torch.Generator
) -> Losses:
    """Prediction, SIGReg and inverse-dynamics losses of one batch of windows.

    Targets are not detached: the encoder is pulled towards what can be predicted, SIGReg keeps it from giving up, and
    inverse dynamics makes it keep what the actions move (without it the sign of the arm's elbow comes last).
    """
    batch, times = frames.shape[:2]
    images = to_network_input(frames.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
    blocks = learner.normalizer(actions).reshape(batch, recipe.horizon, -1)
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=recipe.bfloat16):
        latents = learner.network.encode(images).float().unflatten(0, (batch, times))
        predicted = learner.network.predict(latents[:, 0], blocks).float()
        guessed = learner.inverse(torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1)).float()
    return Losses(
        prediction=F.mse_loss(predicted, latents[:, 1:]),
        regulariser=sigreg(latents.transpose(0, 1), recipe.directions, generator),
        inverse=F.mse_loss(guessed, blocks),
        latents=latents,
    )


def schedule(step: int, steps: int, warmup: float) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@torch.no_grad()
def probe(network: CompactNetwork, held_out: Episodes) -> tuple[float, ...]:
    """R2 of a linear probe from latents to `probe_targets`, fitted on half of the held-out episodes."""
    targets = held_out.probe_targets
    if targets is None or len(targets) < 2:
        return ()
    latents, wanted = [], []
    network.eval()
    for row in range(len(targets)):
        frames = slice(held_out.steps_of(row) + 1)
        latents.append(network.encode(to_network_input(torch.from_numpy(np.asarray(held_out.frames[row, frames])))))
        wanted.append(torch.from_numpy(targets[row, frames]))
    network.train()
    half = len(targets) // 2
    fit, test = slice(half), slice(half, None)
    return linear_probe(*(torch.cat(part) for part in (latents[fit], wanted[fit], latents[test], wanted[test])))
