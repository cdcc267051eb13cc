"""`presage train` with `family: masked`: an encoder from videos and images alone, as a package that embeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.data.recordings import tell_skipped
from cli.exit_codes import CommandError
from cli.train.config import EpisodesConfig, beside, check_image_size
from cli.train.run import Outcome, ProgressLine, Run
from cli.train.training_data import training_episodes
from training.masked.train import MaskedRecipe

if TYPE_CHECKING:
    from typing_extensions import Self

    from training.data.episodes import Episodes
    from training.data.frame_store import Skipped
    from training.data.video_dataset import FrameDataset
    from training.masked.train import MaskedProgress

PROBED = "probed"  # beside the checkpoint: frames of episodes that are for the probe alone


@dataclass(frozen=True)
class MaskedTraining(EpisodesConfig):
    """A pretraining from files, recorded episodes, or a task whose episodes are gathered.

    Beside `videos`, episodes of a dataset or a task are for the probe alone, which reads off the features what is known
    of them.
    """

    episodes: int = 400
    episode_steps: int = 20
    image_size: int = 64
    videos: tuple[str, ...] = ()  # folders or files of videos and images
    fps: float = 4.0  # frames a second that are kept of videos
    recipe: MaskedRecipe = field(default_factory=MaskedRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.videos or self.dataset or self.task):
            raise ValueError("must name videos, a dataset or a task")
        check_image_size(self.image_size, self.recipe.patch)

    def located(self, file: Path) -> Self:
        return replace(super().located(file), videos=tuple(str(beside(file, each)) for each in self.videos))

    def train(self, run: Run) -> Outcome:
        from model.package import read_package
        from training.masked.train import train

        videos, held_out, skipped = _footage(run, self)

        def fit(advance: Callable[[MaskedProgress], None]) -> Path:
            return train(
                self.recipe,
                videos,
                self.name,
                run.out,
                advance,
                provenance=run.provenance(),
                device=run.device,
                held_out=held_out,
            )

        last = run.follow(self.name, self.recipe.steps, _told, fit)
        made = read_package(run.out).config.training
        before, after = made.get("probe_r2_before", []), made.get("probe_r2", [])
        rank = f"rank {last.effective_rank:.0f} of {self.recipe.width}"
        told = f"loss {last.loss:.4f}, features std {last.feature_std:.2f}, {rank}"
        probe = f"\nprobe R2 {_numbers(before)} before, {_numbers(after)} after" if after else ""
        values: dict[str, Any] = {
            "videos": videos.source,
            "loss": last.loss,
            "feature_std": last.feature_std,
            "effective_rank": last.effective_rank,
            "probe_r2_before": before,
            "probe_r2": after,
        }
        return Outcome(
            last, told + probe, values, skipped, (PROBED,), f"embed with it: presage embed CLIP --model {run.out}"
        )


def _footage(run: Run, config: MaskedTraining) -> tuple[FrameDataset, Episodes | None, tuple[Skipped, ...]]:
    """What to train on, and episodes kept apart for the probe."""
    from training.data.video_dataset import from_episodes

    files, left_out = _files(run, config) if config.videos else (None, ())
    if files is not None and not (config.dataset or config.task or run.data):
        return files, None, left_out
    store = run.out if files is None else run.out / PROBED
    episodes, skipped = training_episodes(run.output, config, config.image_size, run.data, store)
    if files is not None:
        return files, episodes, (*left_out, *skipped)
    try:
        fitting, held_out = episodes.split(config.recipe.held_out)
    except ValueError as error:
        raise CommandError(f"recipe.{error}") from error
    return from_episodes(fitting), held_out, skipped


def _files(run: Run, config: MaskedTraining) -> tuple[FrameDataset, tuple[Skipped, ...]]:
    from training.data.video_folder import read_footage

    paths = [Path(path) for path in config.videos]
    with run.output.progress() as bars:
        bar = bars.add_task("reading videos", total=None)
        videos, skipped = read_footage(
            paths,
            run.out,
            config.image_size,
            config.fps,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    tell_skipped(run.output, skipped, "files")
    return videos, skipped


def _told(line: MaskedProgress) -> ProgressLine:
    losses = f"loss {line.loss:.4f} features std {line.feature_std:.2f} rank {line.effective_rank:.0f}"
    probe = f", probe R2 {_numbers(line.probe_r2)}" if line.probe_r2 else ""
    return ProgressLine(losses, probe, measured=bool(probe))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
