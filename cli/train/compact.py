"""`presage train` of the compact family: a world model end to end from pixels. Several processes may train as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cli.train.config import EpisodesConfig, check_image_size, package_beside
from cli.train.run import Outcome, ProgressLine, Run
from cli.train.training_data import training_episodes
from model.compact.network import CompactConfig
from training.compact.recipe import CompactRecipe

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from typing_extensions import Self

    from training.compact.train import TrainProgress

SHARED = "episodes"  # folder in OUT of what is gathered for several processes, until the training ends


@dataclass(frozen=True)
class CompactTraining(EpisodesConfig):
    """A training of a compact world model."""

    together: ClassVar[bool] = True

    image_size: int = 64
    init_from: str = ""  # a package, by name or folder, of the same shapes, whose weights to start from
    recipe: CompactRecipe = field(default_factory=CompactRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.task or self.dataset):
            raise ValueError("must name a task or a dataset")
        check_image_size(self.image_size, CompactConfig(action_width=1).patch)

    def located(self, file: Path) -> Self:
        return replace(super().located(file), init_from=package_beside(file, self.init_from))

    def train(self, run: Run) -> Outcome:
        from model.registry import find
        from training.compact.train import train

        initial = find(self.init_from) if self.init_from else None
        shared = run.out / SHARED if run.group.world > 1 else None
        # One process decodes or gathers; the others map the files that it made.
        gather = partial(training_episodes, run.output, self, self.image_size, run.data, run.out, shared)
        gathered, skipped = run.group.in_turn(gather)

        def fit(advance: Callable[[TrainProgress], None]) -> Path:
            def progress(line: TrainProgress) -> None:
                if run.group.first:
                    log(line)
                advance(line)

            return train(
                self.recipe,
                gathered,
                self.name,
                run.out,
                progress,
                provenance=run.provenance(),
                initial=initial,
                device=run.device,
                group=run.group,
            )

        with _log(run) as log:
            last = run.follow(self.name, self.recipe.steps, _told, fit)
        probe = f", probe R2 {min(last.probe_r2):.3f} to {max(last.probe_r2):.3f}" if last.probe_r2 else ""
        held_out = "" if last.held_out_loss is None else f" (held out {last.held_out_loss:.4f})"
        measure = f"measure it with: presage eval --model {run.out} --task {self.task}"
        values: dict[str, Any] = {
            "task": self.task or None,
            "episodes": gathered.source,
            "prediction_loss": last.prediction_loss,
            "held_out_loss": last.held_out_loss,
            "probe_r2": list(last.probe_r2),
        }
        return Outcome(
            last,
            f"loss {last.prediction_loss:.4f}{held_out}{probe}",
            values,
            skipped,
            (SHARED,),
            measure if self.task else f"serve it with: presage serve --model {run.out}",
        )


def _told(line: TrainProgress) -> ProgressLine:
    losses = f"loss {line.prediction_loss:.4f} inverse {line.inverse_loss:.3f} sigreg {line.regularizer:.2f}"
    labels = f" labels {line.label_loss:.3f}" if line.label_loss else ""
    probe = ", probe R2 " + " ".join(f"{value:.3f}" for value in line.probe_r2) if line.probe_r2 else ""
    unlearned = "" if line.held_out_loss is None else f", held-out loss {line.held_out_loss:.4f}"
    more = f", latent std {line.latent_std:.2f}{unlearned}{probe}, {line.compute_share:.1%} of the time computing"
    return ProgressLine(f"{losses}{labels}, {line.frames_per_s:.0f} frames/s", more, bool(probe))


@contextmanager
def _log(run: Run) -> Iterator[Callable[[TrainProgress], None]]:
    """Where lines of the log go beside the output: TensorBoard's files, or nowhere where it is not installed."""
    wanted, there = run.tensorboard and run.group.first, find_spec("tensorboard") is not None
    if wanted and not there:
        run.output.remark("no TensorBoard logs: install the extra 'train' (pip install -e '.[train]')")
    if not (wanted and there):
        yield lambda line: None
        return

    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.out / "logs"))
    try:
        yield lambda line: _write(writer, line)
    finally:
        writer.close()


def _write(writer: SummaryWriter, line: TrainProgress) -> None:
    values = {
        "loss/prediction": line.prediction_loss,
        "loss/inverse": line.inverse_loss,
        "loss/sigreg": line.regularizer,
        "latents/std": line.latent_std,
        "speed/frames_per_s": line.frames_per_s,
        "speed/compute_share": line.compute_share,
    }
    if line.held_out_loss is not None:
        values["loss/held_out"] = line.held_out_loss
    if line.label_loss:
        values["loss/labels"] = line.label_loss
    values |= {f"probe_r2/{number}": value for number, value in enumerate(line.probe_r2)}
    for name, value in values.items():
        writer.add_scalar(name, value, line.step)
