"""Training of the compact family, end to end from pixels: predict the next latents, keep them Gaussian (SIGReg).

The training loop. Settings are a `recipe`, first weights come from `initialization`, losses from `objective`. Networks
live in `model.compact`, episodes come in as values, and the result is a package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.compact.network import CompactConfig, CompactNetwork
from model.compact.world_model import saved_weights
from model.normalizer import ActionNormalizer
from model.package import Package, PackageConfig, write_package
from training.compact.initialization import begin, labeled
from training.compact.latent_whitening import change_basis, slow_basis
from training.compact.latents import encoded, probe
from training.compact.objective import Learner, held_out_loss, losses, losses_of_latents, make_learner
from training.compact.recipe import CompactRecipe, package_config
from training.compact.windows import Batch, Windows, batches, sample_batch
from training.data.episodes import Episodes, held_notes
from training.distributed import ALONE, ProcessGroup
from training.loop import Moment, Training
from training.schedule import warmup_cosine

CPU = torch.device("cpu")
UNMEASURED = 0.1  # of the frames hide their proprioception: past its horizon a predictor must do without
UNSEEN = "it changes in held-out episodes alone"
SLOW_EPISODES = 512  # that tell how fast latents change


@dataclass(frozen=True)
class TrainProgress:
    """One line of the log."""

    step: int
    steps: int
    prediction_loss: float
    regularizer: float
    inverse_loss: float
    latent_std: float  # mean over dimensions; near 0 says the latents have collapsed
    probe_r2: tuple[float, ...]  # held-out linear probe, one per target; empty between probes
    seconds: float
    frames_per_s: float = 0.0  # since this process began
    compute_share: float = 1.0  # of the time since then, in which no step waited for its windows
    held_out_loss: float | None = None  # of predictions on held-out episodes, with each probe: far above the loss
    # says that the model overfits its training episodes
    label_loss: float = 0.0  # the share of the labels' variance that latents do not tell; 0 where there are none


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
    group: ProcessGroup = ALONE,
) -> Path:
    """Train and write the package `out`; resumes from `out/checkpoint.pt` where one lies.

    The same recipe, episodes and machine give the same weights, also across an interruption. `initial` is a package of
    the same shapes whose weights the training starts from. Several processes (`group`) share each batch and train as
    one; the first writes. Raises ValueError for a recipe that does not suit the episodes, the checkpoint or `initial`,
    DivergedError for a NaN or infinite loss, OSError for a checkpoint that cannot be written.
    """
    fitting, held_out = episodes.split(recipe.held_out)
    config = package_config(recipe, fitting, name, initial.config if initial is not None else None)
    assert config.action is not None
    torch.manual_seed(recipe.seed)
    fitting = labeled(fitting) if recipe.labels and not recipe.frozen_encoder else fitting
    learner = make_learner(
        CompactConfig(**config.network), ActionNormalizer(config.action), device, group, fitting.label_count()
    )
    network = learner.network
    fitting = begin(network, fitting, recipe, initial)
    optimizer = _optimizer(list((network.predictor if recipe.frozen_encoder else learner).parameters()), recipe)
    training = Training(
        recipe,
        out,
        optimizer,
        {"learner": learner},
        torch.Generator().manual_seed(recipe.seed),
        {"recipe": str(recipe), "initial package": str(initial and initial.weights_digest), **episodes.identity()},
        lambda step: warmup_cosine(step, recipe.steps, recipe.warmup),
    )
    drawn = _Drawn(batches(fitting, _windows(recipe), training.generator, group))
    unseen = _unseen(held_out, recipe)

    def line(moment: Moment, values: list[float]) -> TrainProgress:
        prediction, regularizer, inverse, labels, spread = values
        measured = _measured(learner, held_out, unseen, recipe) if moment.measuring and group.first else ((), None)
        return TrainProgress(
            moment.step,
            moment.steps,
            prediction,
            regularizer,
            inverse,
            spread,
            measured[0],
            moment.seconds,
            frames_per_s=moment.here / moment.seconds_here * recipe.accumulate * recipe.batch * (recipe.horizon + 1),
            compute_share=1 - drawn.waited_s / moment.seconds_here,
            held_out_loss=measured[1],
            label_loss=labels,
        )

    last = training.run(
        lambda: _gradients(learner, drawn, recipe, group),
        line,
        progress,
        generator_state=lambda: drawn.state,
        group=group,
    )
    drawn.close()
    assert last is not None, "a finished training leaves no checkpoint to resume"
    if group.first:
        if recipe.slow_floor:
            change_basis(network, slow_basis(_model_steps(network, fitting, recipe), recipe.slow_floor))
        record = {**provenance, "recipe": asdict(recipe), "episodes": fitting.source}
        unseen_moves = {name: at for name, at in fitting.held().items() if name not in episodes.held()}
        notes = [*fitting.notes, *(f"{note}, for {UNSEEN}" for note in held_notes(unseen_moves))]
        record |= {"notes": notes} if notes else {}
        _write_trained(out, replace(config, training=record), network, initial, last)
        training.checkpoint.unlink(missing_ok=True)
    return out


class _Drawn:
    """Batches drawn in the background: what they cost in waiting, and where the generator was before the next."""

    def __init__(self, batches: Generator[Batch, None, None]) -> None:
        self._batches = batches
        self.waited_s = 0.0
        self.state = torch.empty(0)  # of the generator that drew the last batch; it is itself a batch ahead

    def next(self) -> Batch:
        asked = time.monotonic()
        batch = next(self._batches)
        self.waited_s += time.monotonic() - asked
        self.state = batch.state
        return batch

    def close(self) -> None:
        self._batches.close()


def _write_trained(
    out: Path, config: PackageConfig, network: CompactNetwork, initial: Package | None, last: TrainProgress
) -> None:
    """The finished package, with what it began from and how its last step did."""
    record = {**config.training, "seconds": round(last.seconds, 1)}
    if last.held_out_loss is not None:
        record |= {"loss": round(last.prediction_loss, 4), "held_out_loss": round(last.held_out_loss, 4)}
    if initial is not None:
        record["initialized_from"] = f"{initial.config.name}, weights {initial.weights_digest}"
    record["probe_r2"] = [round(value, 4) for value in last.probe_r2]
    card = f"# {config.name}\n\nTrained; not evaluated yet.\n"
    write_package(out, replace(config, training=record), saved_weights(network), card)


def _optimizer(parameters: list[torch.nn.Parameter], recipe: CompactRecipe) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))


def _gradients(learner: Learner, drawn: _Drawn, recipe: CompactRecipe, group: ProcessGroup) -> Float[Tensor, "5"]:
    """Add one step's gradients; the mean losses of its batches, and the latents' spread."""
    values = torch.zeros(5, device=next(learner.parameters()).device)
    for _ in range(recipe.accumulate):
        values += _backward(learner, drawn.next(), recipe, group) / recipe.accumulate
    return values


def _backward(learner: Learner, batch: Batch, recipe: CompactRecipe, group: ProcessGroup) -> Float[Tensor, "5"]:
    """Add one batch's gradients; its four losses and the latents' spread."""
    device = next(learner.parameters()).device
    given = [part.to(device, non_blocking=True) for part in (batch.frames, batch.actions, batch.directions)]
    proprioception = None if batch.proprioception is None else batch.proprioception.to(device, non_blocking=True)
    if recipe.frozen_encoder:
        loss = losses_of_latents(learner, *given[:2], proprioception=proprioception, bfloat16=recipe.bfloat16)
    else:
        labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
        loss = losses(
            learner, *given, proprioception=proprioception, labels=labels, bfloat16=recipe.bfloat16, group=group
        )
    total = loss.prediction + recipe.regularizer * loss.regularizer + recipe.inverse * loss.inverse
    total = total + recipe.labels * loss.labels
    (total / recipe.accumulate).backward()  # type: ignore[no-untyped-call]
    spread = loss.latents.detach().std(dim=(0, 1)).mean()
    parts = (loss.prediction, loss.regularizer, loss.inverse, loss.labels, spread)
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
    latents = some if recipe.frozen_encoder else encoded(network, some, recipe.bfloat16)
    for row in range(len(latents)):
        yield torch.from_numpy(latents[row, : episodes.steps_of(row) + 1 : recipe.block])
