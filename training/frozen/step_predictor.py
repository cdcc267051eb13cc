"""Training of a compact package's step predictor: one action block at a time, fed with its own predictions.

Every window is rolled out from its first frame and priced at every step, with Huber's loss: contact makes tails that
squares would chase. Where episodes say more of a frame than its pixels, predictions can be made to keep it (`labels`):
a fixed straight line reads the labels off latents, in training alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from model.compact.network import CompactNetwork
from model.compact.step_predictor import StepPredictor
from model.compact.world_model import network_settings, read_config
from model.normalizer import ActionNormalizer
from model.package import Package, write_package
from model.proposer import PROPOSER
from training.frozen.windows import EncodedEpisodes, Windows, draw_windows, windows_at
from training.loop import Moment, Training
from training.schedule import warmup_cosine

HELD_OUT_WINDOWS = 2048
HIDDEN = 0.1  # of the windows hide what is measured at their start


@dataclass(frozen=True)
class StepPredictorRecipe:
    """Every knob of a training."""

    steps: int = 8000
    batch: int = 256  # windows
    horizon: int = 5  # model steps a window is rolled out for
    single: float = 0.25  # share of the batches that roll out one model step alone, five times as many windows
    products: bool = False  # read products of a latent's numbers, and of those and actions: for latents of few numbers
    width: int = 512
    reading: tuple[float, ...] = ()  # what counts as one unit of each label: latents become what a line reads of them
    depth: int = 3
    share: float = 0.5  # of a prediction: its own, beside the one-call predictor's
    labels: float = 0.0  # weight of what a straight line reads off predictions
    huber: float = 0.5  # where the loss turns from squares to absolutes, in spreads of what a block changes
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05
    gradient_clip: float = 1.0
    bfloat16: bool = False  # matrix products only; layers this small gain nothing by it on a CPU
    seed: int = 0
    held_out: int = 100
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "horizon", "width", "depth", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("learning_rate", "huber"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")
        if self.reading and (self.share < 1 or self.labels):
            raise ValueError("reading needs share 1 and labels 0: no other predictor knows the new latents")
        if not 0 <= self.single <= 1:
            raise ValueError(f"single must be 0 to 1, got {self.single}")


@dataclass(frozen=True)
class StepPredictorProgress:
    """One line of the log."""

    step: int
    steps: int
    loss: float
    held_out: HeldOut | None  # None between measurements
    seconds: float


@dataclass(frozen=True)
class HeldOut:
    """Mean squared errors of latents by model step on held-out windows: of each predictor (of the second one twice
    where there is no first), of both together, and of predicting that nothing changes."""

    at_once: tuple[float, ...]
    stepped: tuple[float, ...]
    together: tuple[float, ...]
    unchanged: tuple[float, ...]


def train(
    recipe: StepPredictorRecipe,
    episodes: EncodedEpisodes,
    package: Package,
    out: Path,
    progress: Callable[[StepPredictorProgress], None],
    *,
    source: str,
    provenance: dict[str, Any],
) -> Path:
    """Train beside the package's own predictor and write the package that has both into `out`; resumes what lies there.

    A proposer of the package goes with it: the latents stay as they are. Raises ValueError for a package of
    another family, episodes whose encoded frames are not a block apart, and another recipe's checkpoint.
    """
    if package.config.family != "compact" or package.config.action is None:
        raise ValueError(f"package must be of the family compact, got {package.config.family}")
    block = package.config.action.block
    if block % episodes.every:
        raise ValueError(f"every must divide the package's block of {block} actions, got {episodes.every}")
    fitting, held_out = episodes.split(recipe.held_out)
    whole = _network(recipe, package)
    network = whole.stepper
    assert network is not None
    torch.manual_seed(recipe.seed)
    _standardize(network, fitting, block)
    normalizer = ActionNormalizer(package.config.action)
    scale, reading = change_scale(fitting, block), _reading(fitting, block) if recipe.labels else None
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    unseen = draw_windows(held_out, HELD_OUT_WINDOWS, recipe.horizon, block, torch.Generator().manual_seed(recipe.seed))
    training = Training(
        recipe,
        out,
        optimizer,
        {"network": network},
        torch.Generator().manual_seed(recipe.seed),
        {"recipe": str(recipe), "episodes": source, "package": package.weights_digest},
        lambda step: warmup_cosine(step, recipe.steps, recipe.warmup),
    )

    def gradients() -> Tensor:
        alone = bool(torch.rand(1, generator=training.generator) < recipe.single)
        rows = recipe.batch * recipe.horizon if alone else recipe.batch
        drawn = draw_windows(fitting, rows, 1 if alone else recipe.horizon, block, training.generator)
        hidden = torch.rand(rows, generator=training.generator) < HIDDEN
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
            loss = rollout_loss(network, normalizer, drawn, hidden, scale, recipe, reading)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().unsqueeze(0)

    def line(moment: Moment, values: list[float]) -> StepPredictorProgress:
        measured = held_out_errors(whole, normalizer, unseen) if moment.measuring else None
        return StepPredictorProgress(moment.step, moment.steps, values[0], measured, moment.seconds)

    last = training.run(gradients, line, progress)
    assert last is not None, "a finished training leaves no checkpoint to resume"
    assert last.held_out is not None
    errors = asdict(last.held_out)
    record = {
        **provenance,
        "recipe": asdict(recipe),
        "episodes": source,
        "seconds": round(last.seconds, 1),
        "held_out_error": {name: [round(value, 5) for value in values] for name, values in errors.items()},
        "initialized_from": f"{package.config.name}, weights {package.weights_digest}",
    }
    # In float32: bfloat16 would part equal weights of two places, whose difference is what contact depends on.
    trained = {f"stepper.{name}": value for name, value in network.state_dict().items()}
    weights = kept_weights(package, whole.config.at_once) | trained
    history = {**package.config.training, "step_predictor": record}
    shapes = network_settings(whole.config)
    config = replace(package.config, network=shapes, training=history, scores={})
    if package.config.proposer is not None and out.resolve() != package.folder.resolve():
        shutil.copyfile(package.folder / PROPOSER, out / PROPOSER)
    write_package(out, config, weights, package.card())
    training.checkpoint.unlink(missing_ok=True)
    return out


def rollout_loss(
    network: StepPredictor,
    normalizer: ActionNormalizer,
    windows: Windows,
    hidden: Tensor,
    scale: Float[Tensor, " latent"],
    recipe: StepPredictorRecipe,
    reading: Float[Tensor, "latent labels"] | None,
) -> Float[Tensor, ""]:
    """Huber's loss of every predicted latent in spreads of what a block changes, and of labels read off it."""
    predicted = unrolled(network, normalizer, windows, hidden)
    wanted = windows.latents[:, 1:]
    loss = F.huber_loss(predicted / scale, wanted / scale, delta=recipe.huber)
    if reading is None or windows.labels is None:
        return loss
    # Read off the difference to the true latent: what the line itself does not tell is no fault of a prediction.
    missed = (predicted - wanted) @ reading
    return loss + recipe.labels * F.huber_loss(missed, torch.zeros_like(missed), delta=0.1)


def unrolled(
    network: StepPredictor, normalizer: ActionNormalizer, windows: Windows, hidden: Tensor | None = None
) -> Float[Tensor, "batch steps latent"]:
    """Predictions from each window's first frame."""
    measured = windows.proprioception if network.start is not None else None
    if measured is not None and hidden is not None:
        measured = measured.masked_fill(hidden.unsqueeze(-1), torch.nan)
    return network(windows.latents[:, 0], _blocks(normalizer, windows), measured).float()  # type: ignore[no-any-return]


@torch.no_grad()
def held_out_errors(whole: CompactNetwork, normalizer: ActionNormalizer, windows: Windows) -> HeldOut:
    """Errors of the package's predictors on these windows, all measured at their start."""
    assert whole.stepper is not None
    whole.eval()
    first, wanted = windows.latents[:, 0], windows.latents[:, 1:]
    measured = windows.proprioception if whole.stepper.start is not None else None
    blocks = _blocks(normalizer, windows)
    stepped = whole.stepper(first, blocks, measured)
    at_once = stepped
    if whole.predictor is not None:
        at_once = torch.cat([whole.predict_at_once(*part) for part in _parts(first, blocks, measured)])
    together = whole.between(at_once, stepped)
    whole.train()
    still = first.unsqueeze(1).expand_as(wanted)
    return HeldOut(*(_by_step(each, wanted) for each in (at_once, stepped, together, still)))


def _by_step(found: Tensor, wanted: Tensor) -> tuple[float, ...]:
    return tuple((found - wanted).square().mean(dim=(0, 2)).tolist())


def _parts(first: Tensor, blocks: Tensor, measured: Tensor | None, rows: int = 256) -> list[tuple[Any, ...]]:
    """A few rows at a time: a transformer's temporaries of all would be large."""
    known = [None] * (-(-len(first) // rows)) if measured is None else list(torch.split(measured, rows))
    return list(zip(torch.split(first, rows), torch.split(blocks, rows), known, strict=True))


def _blocks(normalizer: ActionNormalizer, windows: Windows) -> Float[Tensor, "batch steps block"]:
    steps = windows.latents.shape[1] - 1
    return normalizer(windows.actions).reshape(len(windows.actions), steps, -1)  # type: ignore[no-any-return]


def _network(recipe: StepPredictorRecipe, package: Package) -> CompactNetwork:
    """The package's network with a new step predictor, whatever it had before."""
    config = replace(
        read_config(package.config),
        step_width=recipe.width,
        step_depth=recipe.depth,
        step_share=recipe.share,
        step_products=recipe.products,
    )
    network = CompactNetwork(config)
    own = kept_weights(package, config.at_once)
    told = {name: weight.float() if weight.is_floating_point() else weight for name, weight in own.items()}
    missing, unexpected = network.load_state_dict(told, strict=False)
    if unexpected or any(not name.startswith("stepper.") for name in missing):
        raise ValueError(f"package {package.config.name}: the weights do not fit its config: {[*missing, *unexpected]}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network.stepper = StepPredictor(
            config.latent,
            config.action_width,
            width=config.step_width,
            depth=config.step_depth,
            proprioception=config.proprioception,
            products=config.step_products,
        )
    return network


def kept_weights(package: Package, at_once: bool) -> dict[str, Tensor]:
    """The package's weights but a step predictor's, and without the one-call predictor's where it is not asked."""
    left_out = ("stepper.",) if at_once else ("stepper.", "predictor.")
    return {name: weight for name, weight in package.weights().items() if not name.startswith(left_out)}


@torch.no_grad()
def _standardize(network: StepPredictor, episodes: EncodedEpisodes, block: int) -> None:
    """Have the network read latents and proprioception in spreads of the training episodes, and tell usual changes."""
    seen = torch.from_numpy(np.asarray(episodes.latents[:512])).flatten(0, 1)
    network.latent_mean.copy_(seen.mean(dim=0))
    network.latent_std.copy_(seen.std(dim=0).clamp(min=1e-6))
    network.change.copy_(change_scale(episodes, block))
    if network.start is None or episodes.proprioception is None:
        return
    recorded = torch.from_numpy(np.asarray(episodes.proprioception[:512])).flatten(0, 1)
    network.start.mean.copy_(recorded.mean(dim=0))
    network.start.std.copy_(recorded.std(dim=0).clamp(min=1e-6))


def change_scale(episodes: EncodedEpisodes, block: int) -> Float[Tensor, " latent"]:
    """How much each number of a latent changes in a block: root mean square over some episodes."""
    jump = block // episodes.every
    changes = [
        torch.from_numpy(episodes.latents[row, : int(episodes.encoded_steps[row]) + 1 : jump]).diff(dim=0)
        for row in range(min(512, len(episodes.latents)))
    ]
    squares = torch.cat(changes).square().mean(dim=0)
    return squares.clamp(min=float(squares.mean()) * 1e-3).sqrt()


def _reading(episodes: EncodedEpisodes, block: int) -> Float[Tensor, "latent labels"]:
    """The straight line from latents to labels, by ridge regression on some episodes; ValueError without labels."""
    if episodes.labels is None:
        raise ValueError("labels: episodes must say what latents are to tell, got none")
    rows = np.arange(min(1024, len(episodes.latents)))
    ends = int(episodes.lengths[rows].min()) // block
    seen = windows_at(episodes, rows, np.zeros(len(rows), np.int64), ends, block)
    assert seen.labels is not None
    latents, labels = seen.latents.flatten(0, 1).double(), seen.labels.flatten(0, 1).double()
    latents, labels = latents - latents.mean(dim=0), labels - labels.mean(dim=0)
    ridge = 1e-6 * len(latents) * torch.eye(latents.shape[1], dtype=torch.float64)
    line: Tensor = torch.linalg.solve(latents.T @ latents + ridge, latents.T @ labels)
    return line.float()
