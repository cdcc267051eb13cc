"""Training of the compact family, end to end from pixels: predict the next latents, keep them Gaussian (SIGReg).

The loop and its recipe. Networks live in `model.compact`, episodes come in as values, and the result is a package.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from model.compact.network import CompactConfig, CompactNetwork, to_network_input
from model.compact.world_model import network_settings, read_config, saved_weights
from model.normalizer import ActionNormalizer
from model.package import ActionSpec, ImageSpec, Package, PackageConfig, PlannerDefaults, write_package
from training.checkpoint import CHECKPOINT, Stateful, resume_checkpoint, save_checkpoint
from training.episodes import Episodes
from training.objective import Learner, held_out_loss, losses, losses_of_latents, make_learner
from training.probe import linear_probe
from training.ranks import ALONE, Ranks
from training.slow_metric import change_basis, slow_basis
from training.windows import Batch, Windows, batches, sample_batch

CPU = torch.device("cpu")
UNMEASURED = 0.1  # of the frames hide their proprioception: past its horizon a predictor must do without
SLOW_EPISODES = 512  # that tell how fast latents change
PROBED_FRAMES = 12  # of each held-out episode: neighbours tell a probe little, and encoding them takes time


@dataclass(frozen=True)
class CompactRecipe:
    """Every knob of a training. The defaults suit pictures of 64 px on two CPU cores (`examples/tiny.yaml`)."""

    steps: int = 1400
    batch: int = 112  # windows
    accumulate: int = 1  # batches whose gradients make one step; SIGReg and the batch norm see one batch at a time
    horizon: int = 5  # model steps predicted from a window's first frame
    block: int = 5  # robot actions per model step
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.05  # fraction of the steps
    gradient_clip: float = 1.0
    regulariser: float = 0.3  # weight of SIGReg
    frozen_encoder: bool = False  # train the predictor alone, on latents encoded once; starts from a package
    inverse: float = 0.2  # weight of inverse dynamics: which actions led from one latent to the next
    labels: float = 0.0  # weight of telling what the probe looks for (`Episodes.probe_targets`) from each latent
    directions: int = 1024
    latent: int = 128
    encoder_width: int = 128
    encoder_depth: int = 2
    predictor_width: int = 192
    predictor_depth: int = 3
    residual: bool = False  # the predictor tells what changes
    proprioception: bool = False  # a prediction starts from the robot's own measurements too; the goal has none
    normed_stem: bool = True  # a batch norm after each of the encoder's convolutions
    placed: bool = True  # the encoder's head reads a frame's tokens each in its place, not their mean
    slow_floor: float = (
        0.0  # above 0: in the end, latents' distances are made to count slow changes as much as fast ones
    )
    bfloat16: bool = True  # matrix products only; losses and norms stay in float32
    seed: int = 0
    held_out: int = 128  # episodes kept for the probe
    checkpoint_every: int = 200
    planner: PlannerDefaults = field(default_factory=PlannerDefaults)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "horizon", "block", "directions", "checkpoint_every"):
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
    frames_per_s: float = 0.0  # since this process began
    compute_share: float = 1.0  # of the time since then, in which no step waited for its windows
    held_out_loss: float | None = None  # of predictions on held-out episodes, with each probe: far above the loss says
    # that episodes are known by heart
    label_loss: float = 0.0  # the share of the labels' variance that latents do not tell; 0 where there are none


class DivergedError(ArithmeticError):
    """The loss is no longer a number; `checkpoint` is the last good one, if there is any."""

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        self.step, self.checkpoint = step, checkpoint
        kept = f"{checkpoint} is from before" if checkpoint else "there is no checkpoint yet"
        super().__init__(f"the loss of step {step} is not finite: lower learning_rate or raise regulariser; {kept}")


def train(
    recipe: CompactRecipe,
    episodes: Episodes,
    name: str,
    out: Path,
    progress: Callable[[TrainProgress], None],
    *,
    provenance: dict[str, Any],
    initial: Package | None = None,
    device: torch.device = CPU,
    ranks: Ranks = ALONE,
) -> Path:
    """Train and write the package `out`; resumes from `out/checkpoint.pt` where one lies.

    The same recipe, episodes and machine give the same weights, also across an interruption. `initial` is a package of
    the same shapes whose weights the training starts from. Several processes (`ranks`) share each batch and train as
    one; the first writes. Raises ValueError for a recipe that does not suit the episodes, the checkpoint or `initial`,
    DivergedError for a loss that is no number, OSError for a checkpoint that cannot be written.
    """
    fitting, held_out = episodes.split(recipe.held_out)
    config = package_config(recipe, fitting, name)
    assert config.action is not None
    torch.manual_seed(recipe.seed)
    fitting = labelled(fitting) if recipe.labels and not recipe.frozen_encoder else fitting
    learner = make_learner(
        CompactConfig(**config.network), ActionNormalizer(config.action), device, ranks, fitting.label_count()
    )
    network = learner.network
    fitting = _begun(network, fitting, recipe, initial)
    parameters = list((network.predictor if recipe.frozen_encoder else learner).parameters())
    optimiser = _optimiser(parameters, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    parts: dict[str, Stateful] = {"learner": learner, "optimiser": optimiser}
    made_with = (recipe, fitting.source, initial and initial.weights_digest)
    first, spent = resume_checkpoint(checkpoint, parts, generator, made_with)
    began, waited = time.monotonic() - spent, 0.0
    drawn = batches(fitting, _windows(recipe), generator, ranks)
    unseen = _unseen(held_out, recipe)
    for step in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe.steps, recipe.warmup)
        optimiser.zero_grad(set_to_none=True)
        told, batch, waited_now = _accumulated(learner, drawn, recipe, ranks)
        waited += waited_now
        ranks.average_gradients(parameters)
        prediction, regulariser, inverse, labels, spread = ranks.mean(told).tolist()
        if not math.isfinite(prediction + regulariser + inverse + labels):
            raise DivergedError(step + 1, checkpoint if checkpoint.exists() else None)
        torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clip)
        optimiser.step()
        last = step + 1 == recipe.steps
        probing = last or (step + 1) % recipe.checkpoint_every == 0
        found, unlearnt = _measured(learner, held_out, unseen, recipe) if probing and ranks.first else ((), None)
        seconds = time.monotonic() - began
        rate = (step + 1 - first) / (seconds - spent)
        line = TrainProgress(
            step + 1,
            recipe.steps,
            prediction,
            regulariser,
            inverse,
            spread,
            found,
            seconds,
            frames_per_s=rate * recipe.accumulate * recipe.batch * (recipe.horizon + 1),
            compute_share=1 - waited / (seconds - spent),
            held_out_loss=unlearnt,
            label_loss=labels,
        )
        progress(line)
        if probing and not last and ranks.first:
            generator_then = torch.Generator()
            generator_then.set_state(batch.state)  # the generator itself is a batch ahead
            save_checkpoint(checkpoint, parts, generator_then, made_with, step + 1, seconds)
    drawn.close()
    if ranks.first:
        if recipe.slow_floor:
            change_basis(network, slow_basis(_model_steps(network, fitting, recipe), recipe.slow_floor))
        record = {**provenance, "recipe": asdict(recipe), "episodes": fitting.source}
        _write_trained(out, replace(config, training=record), network, initial, line)
        checkpoint.unlink(missing_ok=True)
    return out


def _begun(network: CompactNetwork, fitting: Episodes, recipe: CompactRecipe, initial: Package | None) -> Episodes:
    """Give the network its first weights; the episodes as it is trained on them, latents where it encodes no more."""
    if initial is not None:
        start_from(network, initial)
    elif recipe.frozen_encoder:
        raise ValueError("frozen_encoder must have a package to start from (init_from), got none")
    elif network.predictor.felt is not None:
        _standardise(network, fitting)
    if not recipe.frozen_encoder:
        return fitting
    return replace(fitting, frames=encoded(network, fitting.frames, recipe))


def _write_trained(
    out: Path, config: PackageConfig, network: CompactNetwork, initial: Package | None, last: TrainProgress
) -> None:
    """The finished package, with what it began from and how its last step did."""
    record = {**config.training, "seconds": round(last.seconds, 1)}
    if last.held_out_loss is not None:
        record |= {"loss": round(last.prediction_loss, 4), "held_out_loss": round(last.held_out_loss, 4)}
    if initial is not None:
        record["initialised_from"] = f"{initial.config.name}, weights {initial.weights_digest}"
    record["probe_r2"] = [round(value, 4) for value in last.probe_r2]
    card = f"# {config.name}\n\nTrained; not evaluated yet.\n"
    write_package(out, replace(config, training=record), saved_weights(network), card)


def _optimiser(parameters: list[torch.nn.Parameter], recipe: CompactRecipe) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))


def _accumulated(
    learner: Learner, drawn: Iterator[Batch], recipe: CompactRecipe, ranks: Ranks
) -> tuple[Float[Tensor, "5"], Batch, float]:
    """Add one step's gradients; its batches' mean losses, the last batch, and the seconds waited for batches."""
    told, waited = torch.zeros(5, device=next(learner.parameters()).device), 0.0
    for _ in range(recipe.accumulate):
        asked = time.monotonic()
        batch = next(drawn)
        waited += time.monotonic() - asked
        told += _backward(learner, batch, recipe, ranks) / recipe.accumulate
    return told, batch, waited


def _backward(learner: Learner, batch: Batch, recipe: CompactRecipe, ranks: Ranks) -> Float[Tensor, "5"]:
    """Add one batch's gradients; its four losses and the latents' spread."""
    device = next(learner.parameters()).device
    given = [part.to(device, non_blocking=True) for part in (batch.frames, batch.actions, batch.directions)]
    felt = None if batch.felt is None else batch.felt.to(device, non_blocking=True)
    if recipe.frozen_encoder:
        loss = losses_of_latents(learner, *given[:2], felt=felt, bfloat16=recipe.bfloat16)
    else:
        labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
        loss = losses(learner, *given, felt=felt, labels=labels, bfloat16=recipe.bfloat16, ranks=ranks)
    total = loss.prediction + recipe.regulariser * loss.regulariser + recipe.inverse * loss.inverse
    total = total + recipe.labels * loss.labels
    (total / recipe.accumulate).backward()  # type: ignore[no-untyped-call]
    spread = loss.latents.detach().std(dim=(0, 1)).mean()
    parts = (loss.prediction, loss.regulariser, loss.inverse, loss.labels, spread)
    return torch.stack([part.detach() for part in parts])


def _measured(
    learner: Learner, held_out: Episodes, unseen: Batch | None, recipe: CompactRecipe
) -> tuple[tuple[float, ...], float | None]:
    """How well held-out latents tell the probe's targets, and the loss of held-out windows."""
    loss = None if unseen is None else held_out_loss(learner, unseen, bfloat16=recipe.bfloat16)
    return probe(learner.network, held_out), loss


def _unseen(held_out: Episodes, recipe: CompactRecipe) -> Batch | None:
    """The same windows of held-out episodes every time; None where no episode is long enough for one."""
    try:
        return sample_batch(held_out, _windows(recipe), torch.Generator().manual_seed(recipe.seed))
    except ValueError:
        return None


def _windows(recipe: CompactRecipe) -> Windows:
    unmeasured = UNMEASURED if recipe.proprioception else None
    return Windows(recipe.batch, recipe.horizon, recipe.block, recipe.latent, recipe.directions, unmeasured)


def _model_steps(network: CompactNetwork, episodes: Episodes, recipe: CompactRecipe) -> Iterator[Tensor]:
    """The latents `[steps, latent]` of some episodes, a model step apart."""
    some = episodes.frames[:SLOW_EPISODES]
    latents = some if recipe.frozen_encoder else encoded(network, some, recipe)
    for row in range(len(latents)):
        yield torch.from_numpy(latents[row, : episodes.steps_of(row) + 1 : recipe.block])


def labelled(episodes: Episodes) -> Episodes:
    """Episodes whose probe targets, of mean 0 and variance 1, are labels; ValueError where there are none."""
    targets = episodes.probe_targets
    if targets is None:
        raise ValueError(f"labels: episodes must say what latents are to tell, got none in {episodes.source}")
    recorded = np.concatenate([targets[row, : episodes.steps_of(row) + 1] for row in range(len(targets))])
    spread = recorded.std(axis=0)
    labels = (targets - recorded.mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)
    return replace(episodes, labels=labels.astype(np.float32))


def _standardise(network: CompactNetwork, episodes: Episodes) -> None:
    """Have the network measure proprioception in spreads of the training episodes; what never varies stays as it is."""
    assert network.predictor.felt is not None
    recorded = episodes.recorded_proprioception().astype(np.float64)
    spread = recorded.std(axis=0)
    network.predictor.felt.mean.copy_(torch.from_numpy(recorded.mean(axis=0)))
    network.predictor.felt.std.copy_(torch.from_numpy(np.where(spread > 1e-6, spread, 1.0)))


def start_from(network: CompactNetwork, package: Package) -> None:
    """Load a package's weights into a network of the same shapes; ValueError names the first shape that differs.

    Where only one of the two predictors is residual, the network's begins with predicting that nothing changes. A head
    that reads tokens in their places may start from one that reads their mean, and begins with doing the same.
    """
    wanted, found = network_settings(network.config), network_settings(read_config(package.config))
    tokens = wanted["placed_tokens"] if not found["placed_tokens"] else 0
    for name in sorted(wanted.keys() - {"residual"} - ({"placed_tokens"} if tokens else set())):
        if wanted[name] != found[name]:
            raise ValueError(f"init_from: {package.config.name} has {name} {found[name]}, this recipe {wanted[name]}")
    weights = {n: w.float() if w.is_floating_point() else w for n, w in package.weights().items()}
    if tokens:
        weights["head.0.weight"] = weights["head.0.weight"].repeat(1, tokens) / tokens
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"init_from: the weights of {package.config.name} do not fit its config: {error}") from error
    if wanted["residual"] != found["residual"]:
        network.predictor.change_nothing()


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
        residual=recipe.residual,
        proprioception=episodes.recorded_proprioception().shape[-1] if recipe.proprioception else 0,
        horizon=recipe.horizon,
        normed_stem=recipe.normed_stem,
    )
    if recipe.placed:
        network = replace(network, placed_tokens=(height // network.patch) * (width // network.patch))
    return PackageConfig(
        name=name,
        family="compact",
        image=ImageSpec(height, width, episodes.crop_policy),
        latent_shape=(recipe.latent,),
        network=dict(network_settings(network)),
        action=action,
        proprioception_names=episodes.proprioception_names if recipe.proprioception else (),
        planner=recipe.planner,
    )


def schedule(step: int, steps: int, warmup: float) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@torch.no_grad()
def encoded(network: CompactNetwork, episodes: NDArray[np.uint8], recipe: CompactRecipe) -> Any:
    """Latents `[episodes, steps + 1, latent]` of every frame, as the finished model will give them."""
    device = next(network.parameters()).device
    network.eval()
    latents = np.empty((*episodes.shape[:2], recipe.latent), np.float32)
    for row in range(len(latents)):
        frames = to_network_input(torch.from_numpy(np.array(episodes[row])).to(device))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.bfloat16):
            latents[row] = network.encode(frames).float().cpu().numpy()
    network.train()
    return latents


@torch.no_grad()
def probe(network: CompactNetwork, held_out: Episodes) -> tuple[float, ...]:
    """R2 of a linear probe from latents to `probe_targets`, fitted on half of the held-out episodes."""
    targets = held_out.probe_targets
    if targets is None or len(targets) < 2:
        return ()
    device = next(network.parameters()).device
    latents, wanted = [], []
    network.eval()
    for row in range(len(targets)):
        last = held_out.steps_of(row)
        shown = np.unique(np.linspace(0, last, min(PROBED_FRAMES, last + 1)).round().astype(np.int64))
        frames = torch.from_numpy(np.asarray(held_out.frames[row, shown])).to(device)
        latents.append(network.encode(to_network_input(frames)).cpu())
        wanted.append(torch.from_numpy(targets[row, shown]))
    network.train()
    half = len(targets) // 2
    fit, test = slice(half), slice(half, None)
    return linear_probe(*(torch.cat(part) for part in (latents[fit], wanted[fit], latents[test], wanted[test])))
