"""Training of an action-conditioned predictor on a frozen encoder (V-JEPA 2-AC).

Teacher forcing (the next frame from all true ones before it) plus a short rollout (predictions fed back), both as mean
absolute errors of layer-normed latents; arXiv 2506.09985, section 3. Actions are changes of pose, so recordings need
poses and no commands. Encodings come from `training.action_conditioned.encoding_cache`; the result is a package of the
V-JEPA 2 family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from presage.fields import from_fields
from presage.limits import ActionLimits
from torch import Tensor
from torch.nn import functional as F

from model.package import ActionSpec, ImageSpec, Package, PackageConfig, PlannerDefaults, write_package
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from model.vjepa2.model import VJepa2Model, describe
from model.vjepa2.poses import POSE_NAMES, check_poses, difference, pose_warnings
from model.vjepa2.rollout import normalize
from model.vjepa2.world_model import encode_frames
from training.action_conditioned.encoding_cache import EncodingCache
from training.data.episodes import Episodes, draw_begins
from training.loop import Moment, Training
from training.schedule import warmup_stable_decay

POSE_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")
LEAST_MOVE = 1e-6  # of an entry of the pose: what never changes by more is held


@dataclass(frozen=True)
class ActionConditionedRecipe:
    """Every knob of a training. The defaults suit small encoders; the published predictor is 24 layers, 1024 wide."""

    steps: int = 2000
    batch: int = 16  # windows
    frames: int = 8  # of a window
    fps: float = 4.0  # frames a second, and the rate of the model's actions; recordings are thinned to it
    rollout: int = 2  # steps that predictions are fed back for
    learning_rate: float = 4.25e-4
    weight_decay: float = 0.04
    warmup: float = 0.05  # fraction of the steps
    decay: float = 0.05  # fraction of the steps, at the end
    gradient_clip: float = 1.0
    width: int = 192
    depth: int = 4
    heads: int = 6
    bfloat16: bool = False  # matrix products only
    seed: int = 0
    held_out: int = 8  # episodes kept to measure the error on
    checkpoint_every: int = 200
    planner: PlannerDefaults = field(default_factory=lambda: PlannerDefaults(horizon=2, execute=1))
    limits: ActionLimits | None = None  # what plans keep to beside the recorded bounds

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("fps", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 1 <= self.rollout < self.frames:
            raise ValueError(f"rollout must lie in 1..frames - 1 = {self.frames - 1}, got {self.rollout}")


@dataclass(frozen=True)
class ActionConditionedProgress:
    """One line of the log."""

    step: int
    steps: int
    teacher_loss: float
    rollout_loss: float
    held_out_error: float | None  # of the next frame, beside `still_error`; None between measurements
    still_error: float | None  # of predicting that nothing changes
    seconds: float


@dataclass(frozen=True)
class EncodedEpisode:
    """One episode as the predictor sees it, at the model's rate."""

    latents: NDArray[np.float16]  # [frames, tokens, latent], layer-normed
    poses: Float[Tensor, "frames 7"]


def train(
    recipe: ActionConditionedRecipe,
    episodes: Episodes,
    encoder: Package,
    name: str,
    out: Path,
    cache: Path,
    progress: Callable[[ActionConditionedProgress], None],
    *,
    provenance: dict[str, Any],
    device: torch.device,
    cache_bytes: int = 64 * 2**30,
) -> Path:
    """Train on `encoder`'s latents and write the package `out`; resumes from `out/checkpoint.pt` where one lies.

    The same recipe, episodes, encoder and machine give the same weights, also across an interruption. Raises ValueError
    for episodes without poses or too short, an encoder that takes other images, another recipe's checkpoint, and
    encodings that pass `cache_bytes` in the folder `cache`.
    """
    frozen = VJepa2Model(encoder, device)
    if not 0 < recipe.held_out < len(episodes.frames):
        raise ValueError(f"held_out must lie in 1..{len(episodes.frames) - 1}, got {recipe.held_out}")
    encoded = encoded_episodes(episodes, frozen, cache, recipe.fps, cache_bytes)
    doubts = doubtful_poses(episodes)
    fitting, held_out = encoded[: -recipe.held_out], encoded[-recipe.held_out :]
    torch.manual_seed(recipe.seed)
    predictor = _new_predictor(recipe, frozen).to(device)
    optimizer = torch.optim.AdamW(
        predictor.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.999)
    )
    training = Training(
        recipe,
        out,
        optimizer,
        {"predictor": predictor},
        torch.Generator().manual_seed(recipe.seed),
        {"recipe": str(recipe), "encoder": encoder.weights_digest, **episodes.identity()},
        lambda step: warmup_stable_decay(step, recipe.steps, recipe.warmup, recipe.decay),
    )

    def gradients() -> Tensor:
        latents, poses = draw_windows(fitting, recipe, training.generator)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.bfloat16):
            teacher, rolled = losses(predictor, latents.to(device), poses.to(device), recipe.rollout)
        (teacher + rolled).backward()  # type: ignore[no-untyped-call]
        return torch.stack([teacher.detach(), rolled.detach()])

    def line(moment: Moment, values: list[float]) -> ActionConditionedProgress:
        error, still = one_step_errors(predictor, held_out, device) if moment.measuring else (None, None)
        return ActionConditionedProgress(moment.step, moment.steps, values[0], values[1], error, still, moment.seconds)

    last = training.run(gradients, line, progress)
    assert last is not None, "a finished training leaves no checkpoint to resume"
    assert last.held_out_error is not None
    assert last.still_error is not None
    record = {
        **provenance,
        "recipe": asdict(recipe),
        "episodes": episodes.source,
        **({"notes": [*episodes.notes, *doubts]} if episodes.notes or doubts else {}),
        "seconds": round(last.seconds, 1),
        "encoder": f"{encoder.config.name}, weights {encoder.weights_digest}",
        "held_out_error": round(last.held_out_error, 4),
        "still_error": round(last.still_error, 4),
    }
    rate_hz = episodes.rate_hz / thinning(episodes.rate_hz, recipe.fps)
    config = PackageConfig(
        name=name,
        family="vjepa2",
        image=ImageSpec(encoder.config.image.height, encoder.config.image.width, episodes.crop_policy),
        latent_shape=encoder.config.latent_shape,
        network=describe({"encoder": frozen.encoder, "action_predictor": predictor}),
        action=action_spec(fitting, rate_hz, recipe.limits),
        proprioception_names=POSE_NAMES,
        planner=recipe.planner,
        training=record,
    )
    write_package(out, config, saved_weights(encoder, predictor), f"# {name}\n")
    training.checkpoint.unlink(missing_ok=True)
    return out


def _new_predictor(recipe: ActionConditionedRecipe, frozen: VJepa2Model) -> ActionPredictor:
    """An untrained predictor of the recipe's size, for that encoder's latents."""
    rows = frozen.package.config.image.height // frozen.encoder.config.patch
    return ActionPredictor(
        from_fields(
            ActionPredictorConfig,
            recipe,
            latent_width=frozen.encoder.config.width,
            mlp_hidden=4 * recipe.width,
            grid=(rows, rows),
        )
    )


def encoded_episodes(
    episodes: Episodes, frozen: VJepa2Model, cache: Path, fps: float, cache_bytes: int
) -> list[EncodedEpisode]:
    """Episodes thinned to `fps` frames a second, encoded, with their poses. Raises ValueError, PoseError among them."""
    image = frozen.package.config.image
    size = (image.height, image.width)
    if episodes.frames.shape[2:4] != size:
        got = " x ".join(map(str, episodes.frames.shape[2:4]))
        raise ValueError(f"image_size must be the encoder's, {size[0]} x {size[1]}, got {got}")
    measured = episodes.proprioception
    if measured is None or measured.shape[-1] != len(POSE_NAMES):
        width = 0 if measured is None else measured.shape[-1]
        raise ValueError(f"proprioception must be poses of 7 numbers {POSE_NAMES}, got {width}")
    stride = thinning(episodes.rate_hz, fps)
    rows = range(len(episodes.frames))
    seen = [slice(0, episodes.steps_of(row) + 1, stride) for row in rows]
    poses = [torch.from_numpy(measured[row, seen[row]].copy()) for row in rows]
    for row in rows:
        check_poses(poses[row], f"episode {row}: pose")
    digest = f"{frozen.package.weights_digest} {next(frozen.encoder.parameters()).dtype}"
    encode = partial(encode_frames, frozen.encoder, size=size, crop_policy="exact")  # they were cropped when read
    store = EncodingCache(cache, encode, digest, cache_bytes)
    latents = store.encodings(episodes.frames[row, seen[row]] for row in rows)
    return [EncodedEpisode(each, pose) for each, pose in zip(latents, poses, strict=True)]


def doubtful_poses(episodes: Episodes) -> tuple[str, ...]:
    """What is odd about recorded poses, as planning with the model says of an observation's."""
    return pose_warnings(torch.from_numpy(episodes.recorded_proprioception()), "recorded poses:")


def thinning(rate_hz: float, fps: float) -> int:
    """Recorded frames from one of the model's to the next."""
    return max(1, round(rate_hz / fps))


def draw_windows(
    episodes: Sequence[EncodedEpisode], recipe: ActionConditionedRecipe, generator: torch.Generator
) -> tuple[Float[Tensor, "batch frames tokens latent"], Float[Tensor, "batch frames 7"]]:
    """Random windows, every one as likely as another. Raises ValueError where no episode is long enough."""
    begins = np.array([max(len(episode.latents) - recipe.frames + 1, 0) for episode in episodes])
    if not begins.any():
        longest = max(len(episode.latents) for episode in episodes)
        raise ValueError(f"frames must be at most {longest}, the longest episode's at {recipe.fps:g} a second")
    rows, places = draw_begins(begins, recipe.batch, generator)
    spans = [slice(first, first + recipe.frames) for first in places.tolist()]
    chosen = [(episodes[row], span) for row, span in zip(rows.tolist(), spans, strict=True)]
    latents = np.stack([episode.latents[span] for episode, span in chosen])
    return torch.from_numpy(latents).float(), torch.stack([episode.poses[span] for episode, span in chosen])


def losses(
    predictor: ActionPredictor,
    latents: Float[Tensor, "batch frames tokens latent"],
    poses: Float[Tensor, "batch frames 7"],
    rollout: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean absolute errors of teacher forcing over all frames, and of `rollout` steps from the first frame on."""
    actions = difference(poses[:, :-1], poses[:, 1:])
    predicted = predict(predictor, latents[:, :-1], actions, poses[:, :-1])
    teacher = F.l1_loss(predicted, latents[:, 1:])
    fed = torch.cat([latents[:, :1], predicted[:, :1]], dim=1)
    for steps in range(2, rollout + 1):
        following = predict(predictor, fed, actions[:, :steps], poses[:, :steps])
        fed = torch.cat([fed, following[:, -1:]], dim=1)
    return teacher, F.l1_loss(fed[:, 1:], latents[:, 1 : rollout + 1])


def predict(
    predictor: ActionPredictor,
    latents: Float[Tensor, "batch frames tokens latent"],
    actions: Float[Tensor, "batch frames 7"],
    poses: Float[Tensor, "batch frames 7"],
) -> Float[Tensor, "batch frames tokens latent"]:
    """Layer-normed latents of the frame after each."""
    predicted = predictor(latents.flatten(1, 2), actions, poses)
    return normalize(predicted.float()).view(latents.shape)


@torch.no_grad()
def one_step_errors(
    predictor: ActionPredictor, episodes: Sequence[EncodedEpisode], device: torch.device
) -> tuple[float, float]:
    """Mean absolute error of the next frame over whole episodes, and that of predicting that nothing changes."""
    errors, stills, steps = 0.0, 0.0, 0
    for episode in episodes:
        latents, poses = torch.from_numpy(episode.latents.astype(np.float32)).to(device), episode.poses.to(device)
        if len(latents) < 2:
            continue
        actions = difference(poses[:-1], poses[1:])
        predicted = predict(predictor, latents[:-1, None], actions[:, None], poses[:-1, None])[:, 0]
        errors += float((predicted - latents[1:]).abs().mean(dim=(1, 2)).sum())
        stills += float((latents[:-1] - latents[1:]).abs().mean(dim=(1, 2)).sum())
        steps += len(actions)
    return errors / max(steps, 1), stills / max(steps, 1)


def action_spec(episodes: Sequence[EncodedEpisode], rate_hz: float, limits: ActionLimits | None = None) -> ActionSpec:
    """Changes of pose, bounded by the largest that was recorded, either way; an entry that never changes is held."""
    moves = torch.cat([difference(each.poses[:-1], each.poses[1:]) for each in episodes])
    largest = tuple(value if value > LEAST_MOVE else 0.0 for value in moves.abs().amax(dim=0).tolist())
    return ActionSpec(
        names=POSE_NAMES,
        units=POSE_UNITS,
        low=tuple(-value for value in largest),
        high=largest,
        rate_hz=rate_hz,
        block=1,
        mean=(0.0,) * 7,
        std=(1.0,) * 7,
        rest=(0.0,) * 7,
        limits=limits,
    )


def saved_weights(encoder: Package, predictor: ActionPredictor) -> dict[str, Tensor]:
    """The encoder's weights as its package has them, and the predictor's in the same type."""
    kept = {name: weight for name, weight in encoder.weights().items() if name.startswith("encoder.")}
    dtype = next(weight.dtype for weight in kept.values() if weight.is_floating_point())
    return kept | {f"action_predictor.{name}": weight.to(dtype) for name, weight in predictor.state_dict().items()}
