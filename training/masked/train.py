"""Masked-latent pretraining: predict what an averaged encoder sees at the places hidden from the trained one.

I-JEPA on images and V-JEPA on clips (arXiv 2301.08243, 2404.08471, 2506.09985). No actions and no labels: the result
is a package of the V-JEPA 2 family that embeds, and that action-conditioned training builds upon. Which tokens are
hidden is `training.masked.masks`, what is watched meanwhile `training.masked.collapse_metrics`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from presage.fields import from_fields
from torch import Tensor, nn
from torch.nn import functional as F

from model.package import ImageSpec, PackageConfig, write_package
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from model.vjepa2.encoder import Encoder, EncoderConfig
from model.vjepa2.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from model.vjepa2.model import describe
from model.vjepa2.rollout import normalize
from training.data.episodes import Episodes
from training.data.video_dataset import FrameDataset, random_crop
from training.linear_probe import linear_probe
from training.loop import Moment, Training
from training.masked.collapse_metrics import content, effective_rank, feature_std
from training.masked.masks import PUBLISHED, draw_masks
from training.schedule import warmup_stable_decay


@dataclass(frozen=True)
class MaskedRecipe:
    """Every knob of a pretraining. The defaults suit small images on a CPU; published sizes need many accelerators."""

    steps: int = 3000
    batch: int = 16  # clips
    frames: int = 8  # of a clip
    images: float = 0.25  # share of the steps that see single frames, as many as the clips' frames make tokens of
    crop: float = 0.5  # smallest part of a frame that is shown, by area; 1 shows all of it
    learning_rate: float = 5e-4
    weight_decay: float = 0.04  # of matrices
    warmup: float = 0.1  # fraction of the steps
    decay: float = 0.2  # fraction of the steps, at the end
    gradient_clip: float = 1.0
    average: float = 0.996  # of the target encoder: how much of it stays at each step
    patch: int = 8
    tubelet: int = 2
    width: int = 128
    depth: int = 6
    heads: int = 4
    predictor_width: int = 96
    predictor_depth: int = 3
    predictor_heads: int = 4
    bfloat16: bool = False  # matrix products only; on CPUs at these widths it takes twice the time
    seed: int = 0
    held_out: int = 32  # episodes kept for the probe, where there are episodes
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "frames", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.frames % self.tubelet:
            raise ValueError(f"frames must be a multiple of the tubelet {self.tubelet}, got {self.frames}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("images", "warmup", "decay", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, got {self.crop}")


@dataclass(frozen=True)
class MaskedProgress:
    """One line of the log."""

    step: int
    steps: int
    loss: float
    feature_std: float  # of what in the targets depends on the input; near 0 says that they have collapsed
    effective_rank: float  # dimensions that it uses, of the encoder's width
    probe_r2: tuple[float, ...]  # held-out linear probe of pooled features, one per target; empty between probes
    seconds: float


class MaskedLearner(nn.Module):
    """The encoder that learns, the average of it that sets the targets and is kept, and the predictor between them."""

    def __init__(self, recipe: MaskedRecipe, image_size: int) -> None:
        super().__init__()
        if image_size % recipe.patch:
            raise ValueError(f"image_size must be a multiple of the patch {recipe.patch}, got {image_size}")
        side = image_size // recipe.patch
        self.encoder = Encoder(from_fields(EncoderConfig, recipe, mlp_hidden=4 * recipe.width, positions="interleaved"))
        self.predictor = MaskedPredictor(
            MaskedPredictorConfig(
                latent_width=recipe.width,
                width=recipe.predictor_width,
                depth=recipe.predictor_depth,
                heads=recipe.predictor_heads,
                mlp_hidden=4 * recipe.predictor_width,
                grid=(side, side),
                mask_tokens=len(PUBLISHED),
                positions="interleaved",
            )
        )
        initialize_linear(self.encoder)
        initialize_linear(self.predictor)
        for token in self.predictor.mask_tokens:
            nn.init.trunc_normal_(token, std=0.02)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)

    @torch.no_grad()
    def average(self, kept: float) -> None:
        """Move the target encoder towards the trained one."""
        for mean, weight in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            mean.lerp_(weight, 1 - kept)


def train(
    recipe: MaskedRecipe,
    videos: FrameDataset,
    name: str,
    out: Path,
    progress: Callable[[MaskedProgress], None],
    *,
    provenance: dict[str, Any],
    device: torch.device,
    held_out: Episodes | None = None,
) -> Path:
    """Train and write the package `out`; resumes from `out/checkpoint.pt` where one lies.

    `held_out` are episodes whose `probe_targets` a linear probe reads off the frozen features, before and after. The
    same recipe, videos and machine give the same weights, also across an interruption. Raises ValueError for a recipe
    that suits neither the videos nor the checkpoint.
    """
    torch.manual_seed(recipe.seed)
    learner = MaskedLearner(recipe, videos.image_size).to(device)
    optimizer = _optimizer(learner, recipe)
    before = probe(learner.target, held_out)
    training = Training(
        recipe,
        out,
        optimizer,
        {"learner": learner},
        torch.Generator().manual_seed(recipe.seed),
        {"recipe": str(recipe), **videos.identity()},
        lambda step: warmup_stable_decay(step, recipe.steps, recipe.warmup, recipe.decay),
    )
    targets: list[Tensor] = []

    def gradients() -> Tensor:
        clips = draw_batch(videos, recipe, training.generator).to(device)
        loss, seen = masked_loss(learner, clips, recipe, training.generator)
        targets[:] = [seen]
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().unsqueeze(0)

    def line(moment: Moment, values: list[float]) -> MaskedProgress:
        seen = content(targets[0])
        found = probe(learner.target, held_out) if moment.measuring else ()
        return MaskedProgress(
            moment.step, moment.steps, values[0], feature_std(seen), effective_rank(seen), found, moment.seconds
        )

    last = training.run(gradients, line, progress, after_step=lambda: learner.average(recipe.average))
    assert last is not None, "a finished training leaves no checkpoint to resume"
    record = {**provenance, "recipe": asdict(recipe), "videos": videos.source, "seconds": round(last.seconds, 1)}
    record |= {"loss": round(last.loss, 4), "feature_std": round(last.feature_std, 4)}
    record |= {"effective_rank": round(last.effective_rank, 1)}
    if before:
        record["probe_r2_before"] = [round(value, 4) for value in before]
        record["probe_r2"] = [round(value, 4) for value in last.probe_r2]
    write_package(out, package_config(learner, videos, name, record), saved_weights(learner), f"# {name}\n")
    training.checkpoint.unlink(missing_ok=True)
    return out


def initialize_linear(network: nn.Module) -> None:
    """Starting weights that pass on the size of what comes in, whatever the width.

    The published deviation of 0.02 does so about at width 1024. At 64 it leaves every block next to the identity, and
    some hundred steps pass before attention mixes anything.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)


def draw_batch(
    videos: FrameDataset, recipe: MaskedRecipe, generator: torch.Generator
) -> Float[Tensor, "batch 3 frames size size"]:
    """A batch of clips, or of images (clips of one frame), as the encoder takes them."""
    clips = bool(torch.rand((), generator=generator) >= recipe.images)
    if clips:
        return random_crop(
            to_network_input(videos.draw(recipe.batch, recipe.frames, generator)), recipe.crop, generator
        )
    images = recipe.batch * recipe.frames // recipe.tubelet
    return random_crop(to_network_input(videos.draw(images, 1, generator)), recipe.crop, generator)


def to_network_input(clips: UInt8[Tensor, "batch frames size size 3"]) -> Float[Tensor, "batch 3 frames size size"]:
    """Colors scaled as `model.preprocessing.prepare` scales them."""
    mean, std = (torch.tensor(values).mul(255).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (clips.movedim(-1, 1).float() - mean) / std


def masked_loss(
    learner: MaskedLearner,
    clips: Float[Tensor, "batch 3 frames size size"],
    recipe: MaskedRecipe,
    generator: torch.Generator,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch tokens width"]]:
    """Mean absolute error of the hidden tokens' predictions, over both mask sets; and the targets of all tokens."""
    side = clips.shape[-1] // recipe.patch
    grid = (max(clips.shape[2] // recipe.tubelet, 1), side, side)
    losses = []
    with torch.autocast(clips.device.type, dtype=torch.bfloat16, enabled=recipe.bfloat16):
        with torch.no_grad():
            targets = normalize(learner.target(clips).float())
        for index, chosen in enumerate(PUBLISHED):
            masks = draw_masks(grid, chosen, len(clips), generator).to(clips.device)
            seen = learner.encoder(clips, masks.context)
            predicted = learner.predictor(seen, masks.context, masks.target, index)
            hidden = targets.take_along_dim(masks.target.unsqueeze(-1), dim=1)
            losses.append(F.l1_loss(predicted.float(), hidden))
    return torch.stack(losses).mean(), targets


@torch.no_grad()
def probe(encoder: Encoder, held_out: Episodes | None) -> tuple[float, ...]:
    """R2 of a linear probe from pooled features of single frames, fitted on half of the held-out episodes.

    Features are standardized as they are on the fitting half, so that the probe's ridge weighs all encoders alike:
    pooled features differ by little where most of a picture stays as it is.
    """
    if held_out is None or held_out.probe_targets is None or len(held_out.frames) < 2:
        return ()
    features, targets, device = [], [], next(encoder.parameters()).device
    for row in range(len(held_out.frames)):
        seen = slice(held_out.steps_of(row) + 1)
        frames = torch.from_numpy(held_out.frames[row, seen]).unsqueeze(1)
        features.append(encoder(to_network_input(frames).to(device)).mean(dim=1).cpu())
        targets.append(torch.from_numpy(held_out.probe_targets[row, seen]))
    half = len(features) // 2
    fit, test = torch.cat(features[:half]), torch.cat(features[half:])
    mean, std = fit.mean(dim=0), fit.std(dim=0).clamp_min(1e-6)
    standard = ((fit - mean) / std, (test - mean) / std)
    return linear_probe(standard[0], torch.cat(targets[:half]), standard[1], torch.cat(targets[half:]))


def package_config(learner: MaskedLearner, videos: FrameDataset, name: str, record: dict[str, Any]) -> PackageConfig:
    """The config of the package: the averaged encoder, and the predictor it was trained with."""
    config = learner.encoder.config
    side = videos.image_size // config.patch
    return PackageConfig(
        name=name,
        family="vjepa2",
        image=ImageSpec(videos.image_size, videos.image_size, videos.crop_policy),
        latent_shape=(side * side, config.width),
        network=describe({"encoder": learner.target, "masked_predictor": learner.predictor}),
        training=record,
    )


def saved_weights(learner: MaskedLearner) -> dict[str, Tensor]:
    """What the package keeps, in float32: these networks are small, and training may go on from them."""
    kept = {"encoder": learner.target, "masked_predictor": learner.predictor}
    return {f"{part}.{name}": weight for part, each in kept.items() for name, weight in each.state_dict().items()}


def _optimizer(learner: MaskedLearner, recipe: MaskedRecipe) -> torch.optim.AdamW:
    """Weight decay for matrices alone: norms, biases and mask tokens are free."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.squeeze().ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.squeeze().ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.999))
