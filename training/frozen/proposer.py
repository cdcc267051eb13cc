"""Training of a package's proposer: inverse dynamics by hindsight, on a frozen encoder's latents.

Whatever a robot did for k actions is a way to get in k actions to where it then was: every two frames of an episode are
an answered question (hindsight; Ghosh et al. 2019, GCSL). Mean squared error of the actions up to the goal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from presage.fields import from_fields
from torch import Tensor

from model.normalizer import ActionNormalizer
from model.package import Package, latent_digest, write_package
from model.proposer import ProposerConfig, ProposerNetwork, save_proposer
from training.frozen.reading import Reading
from training.frozen.windows import EncodedEpisodes, Hindsight, draw_hindsight
from training.loop import Moment, Training
from training.schedule import warmup_cosine

HELD_OUT_PAIRS = 4096
HIDDEN = 0.4  # of the pairs hide what is measured: past its first block a proposal starts from a prediction


@dataclass(frozen=True)
class ProposerRecipe:
    """Every knob of a training."""

    steps: int = 6000
    batch: int = 1024  # pairs of frames
    longest: int = 25  # robot actions from a frame to its goal, at most
    blocks: int = 5  # action blocks told in one pass
    reading: tuple[float, ...] = ()  # what counts as one unit of each label: a line reads them off latents first
    products: bool = False  # read products of every two numbers of latent and goal: for latents of few numbers
    width: int = 512
    depth: int = 3
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    warmup: float = 0.05  # fraction of the steps
    gradient_clip: float = 1.0
    bfloat16: bool = False  # matrix products only; layers this small gain nothing by it on a CPU (54 ms against 83)
    seed: int = 0
    held_out: int = 100  # episodes
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "longest", "blocks", "width", "depth", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True)
class ProposerProgress:
    """One line of the log; losses are shares of the actions' variance that the network does not tell."""

    step: int
    steps: int
    loss: float
    held_out_loss: float | None  # None between measurements
    seconds: float


def train(
    recipe: ProposerRecipe,
    episodes: EncodedEpisodes,
    package: Package,
    out: Path,
    progress: Callable[[ProposerProgress], None],
    *,
    source: str,
    provenance: dict[str, Any],
    reading: Reading | None = None,
) -> Path:
    """Train on the package's latents and write the package with its proposer into `out`; resumes what lies there.

    With a `reading`, the episodes' latents are what it says of them, and the network reads the package's own with it.
    The same recipe, episodes and machine give the same weights, also across an interruption. Raises ValueError for
    episodes that are too short, and for another recipe's checkpoint.
    """
    action = package.config.action
    if action is None:
        raise ValueError(f"package must have actions to propose, got {package.config.name}, which only embeds")
    fitting, held_out = episodes.split(recipe.held_out)
    torch.manual_seed(recipe.seed)
    network = ProposerNetwork(_config(recipe, episodes, package, reading))
    if reading is not None:
        network.reading_weight.copy_(reading.weight)
        network.reading_bias.copy_(reading.bias)
    _standardize(network, fitting)
    normalizer = ActionNormalizer(action)
    span = recipe.blocks * action.block
    unseen = draw_hindsight(held_out, HELD_OUT_PAIRS, recipe.longest, span, torch.Generator().manual_seed(recipe.seed))
    training = Training(
        recipe,
        out,
        torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay),
        {"network": network},
        torch.Generator().manual_seed(recipe.seed),
        {"recipe": str(recipe), "episodes": source, "package": package.weights_digest},
        lambda step: warmup_cosine(step, recipe.steps, recipe.warmup),
    )

    def gradients() -> Tensor:
        pairs = draw_hindsight(fitting, recipe.batch, recipe.longest, span, training.generator)
        hidden = torch.rand(recipe.batch, generator=training.generator) < HIDDEN
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
            loss = hindsight_loss(network, normalizer, pairs, hidden)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().unsqueeze(0)

    def line(moment: Moment, values: list[float]) -> ProposerProgress:
        unlearned = held_out_loss(network, normalizer, unseen) if moment.measuring else None
        return ProposerProgress(moment.step, moment.steps, values[0], unlearned, moment.seconds)

    last = training.run(gradients, line, progress)
    assert last is not None, "a finished training leaves no checkpoint to resume"
    assert last.held_out_loss is not None
    record = {
        **provenance,
        "recipe": asdict(recipe),
        "episodes": source,
        "seconds": round(last.seconds, 1),
        "held_out_loss": round(last.held_out_loss, 4),
    }
    _write(out, package, network, record)
    training.checkpoint.unlink(missing_ok=True)
    return out


def hindsight_loss(
    network: ProposerNetwork, normalizer: ActionNormalizer, pairs: Hindsight, hidden: Tensor | None = None
) -> Float[Tensor, ""]:
    """Mean squared error in network units over the actions before the goal; `hidden` pairs are not measured.

    Latents are as the network reads them.
    """
    measured = pairs.proprioception if network.config.proprioception else None
    if measured is not None and hidden is not None:
        measured = measured.masked_fill(hidden.unsqueeze(-1), torch.nan)
    wanted = normalizer(pairs.actions)
    found = network.of_read(pairs.latent, pairs.goal, pairs.steps_to_go, measured).float().view_as(wanted)
    counted = torch.arange(wanted.shape[1]) < pairs.steps_to_go.unsqueeze(-1)
    errors = (found - wanted).square().mean(dim=-1)
    mean: Tensor = (errors * counted).sum() / counted.sum()
    return mean


@torch.no_grad()
def held_out_loss(network: ProposerNetwork, normalizer: ActionNormalizer, unseen: Hindsight) -> float:
    """The loss of pairs of held-out episodes, all of them measured."""
    network.eval()
    loss = hindsight_loss(network, normalizer, unseen).item()
    network.train()
    return loss


def _config(
    recipe: ProposerRecipe, episodes: EncodedEpisodes, package: Package, reading: Reading | None
) -> ProposerConfig:
    action = package.config.action
    assert action is not None
    measured = 0
    if package.config.family == "compact" and package.config.proprioception_names:
        measured = len(package.config.proprioception_names)
    return from_fields(
        ProposerConfig,
        recipe,
        latent=episodes.latents.shape[-1] if reading is None else len(reading.weight),
        reading=0 if reading is None else len(reading.bias),
        action_width=action.block * len(action.names),
        trained_on=latent_digest(package.weights()),
        proprioception=measured,
    )


@torch.no_grad()
def _standardize(network: ProposerNetwork, episodes: EncodedEpisodes) -> None:
    """Have the network read latents and measurements in spreads of the training episodes."""
    seen = _rows(episodes.latents, episodes.encoded_steps)
    network.latent_mean.copy_(seen.mean(dim=0))
    network.latent_std.copy_(seen.std(dim=0).clamp(min=1e-6))
    if network.config.proprioception:
        assert episodes.proprioception is not None
        measured = _rows(episodes.proprioception, episodes.lengths)
        network.measured_mean.copy_(measured.mean(dim=0))
        network.measured_std.copy_(measured.std(dim=0).clamp(min=1e-6))


def _rows(of_frames: NDArray[np.float32], lengths: NDArray[np.int64]) -> Tensor:
    """[frames, numbers] of what was recorded in at most 512 episodes."""
    rows = [torch.from_numpy(of_frames[row, : int(lengths[row]) + 1]) for row in range(min(512, len(of_frames)))]
    return torch.cat(rows).float()


def _write(out: Path, package: Package, network: ProposerNetwork, record: dict[str, Any]) -> None:
    """The package's own files in `out`, its proposer beside them."""
    settings = save_proposer(out, network)
    training = {**package.config.training, "proposer": record}
    config = replace(package.config, proposer=settings, training=training)
    write_package(out, config, package.weights(), package.card())
