"""`presage train` with `family: masked`: an encoder from videos and images alone, as a package that embeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.data.recordings import tell_skipped
from cli.exit_codes import CommandError
from cli.options import checked_task
from cli.output import Output
from cli.train.command import provenance
from cli.train.config import TrainingConfig, beside, build, check_image_size, mapping, read_yaml
from cli.train.progress import ProgressLine, follow
from cli.train.training_data import training_episodes
from training.masked.train import MaskedRecipe

if TYPE_CHECKING:
    import torch

    from training.data.episodes import Episodes
    from training.data.frame_store import Skipped
    from training.data.video_dataset import FrameDataset
    from training.masked.train import MaskedProgress

PROBED = "probed"  # beside the checkpoint: frames of episodes that are for the probe alone


@dataclass(frozen=True)
class MaskedTraining:
    """A pretraining from files, recorded episodes, or a task whose episodes are gathered.

    Beside `videos`, episodes of a dataset or a task are for the probe alone.
    """

    name: str  # of the package
    videos: tuple[str, ...] = ()  # folders or files of videos and images
    fps: float = 4.0  # frames a second that are kept of videos
    image_size: int = 64
    dataset: str = ""  # path of recorded episodes; a probe reads what is known of them off the features
    camera: str = ""
    action_key: str = ""
    state_key: str = ""
    rate_hz: float = 0.0
    task: str = ""
    episodes: int = 400
    episode_steps: int = 20
    data_seed: int = 1
    recipe: MaskedRecipe = field(default_factory=MaskedRecipe)

    def of_episodes(self) -> TrainingConfig:
        """The same episodes, as a compact training would name them."""
        return TrainingConfig(
            task=self.task,
            name=self.name,
            episodes=self.episodes,
            episode_steps=self.episode_steps,
            data_seed=self.data_seed,
            image_size=self.image_size,
            dataset=self.dataset,
            camera=self.camera,
            action_key=self.action_key,
            state_key=self.state_key,
            rate_hz=self.rate_hz,
        )


def read_masked(path: Path) -> MaskedTraining:
    """The config in a YAML file. Raises CommandError naming the file and the key."""
    content: dict[str, Any] = {"name": path.stem, **read_yaml(path)}
    content.pop("family", None)
    try:
        content["videos"] = _paths(content.get("videos", []))
        content["recipe"] = build(MaskedRecipe, mapping(content.get("recipe", {}), "recipe"), "recipe.")
        config = build(MaskedTraining, content, "")
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    if config.dataset and config.task:
        raise CommandError(f"{path}: must name a task or a dataset, and not both")
    if not (config.videos or config.dataset or config.task):
        raise CommandError(f"{path}: must name videos, a dataset or a task")
    if config.task:
        checked_task(config.task)
    try:
        check_image_size(config.image_size, config.recipe.patch)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    dataset = str(beside(path, config.dataset)) if config.dataset else ""
    return replace(config, dataset=dataset, videos=tuple(str(beside(path, each)) for each in config.videos))


def _paths(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise ValueError(f"videos must be a list of paths, got {value!r}")
    return tuple(value)


def train_masked(
    output: Output, config: str, out: Path, data: Path | None, steps: int | None, seed: int | None, device: torch.device
) -> None:
    """Train, write the package, and say what came of it."""
    chosen = read_masked(Path(config))
    recipe = chosen.recipe
    recipe = replace(recipe, steps=recipe.steps if steps is None else steps, seed=recipe.seed if seed is None else seed)

    import shutil

    from model.package import read_package, write_package
    from training.data.frame_store import remove_frames
    from training.model_card import card

    videos, held_out, skipped = _footage(output, chosen, recipe, data, out)
    folder, last = _fit(output, replace(chosen, recipe=recipe), videos, held_out, out, device)
    remove_frames(folder)
    shutil.rmtree(folder / PROBED, ignore_errors=True)
    package = read_package(folder)
    write_package(folder, package.config, package.weights(), card(package.config))
    training = package.config.training
    value: dict[str, Any] = {
        "folder": str(folder),
        "videos": videos.source,
        "skipped": [asdict(entry) for entry in skipped],
        "steps": last.steps,
        "seconds": round(last.seconds, 1),
        "loss": last.loss,
        "feature_std": last.feature_std,
        "effective_rank": last.effective_rank,
        "probe_r2_before": training.get("probe_r2_before", []),
        "probe_r2": training.get("probe_r2", []),
        "weights_digest": package.weights_digest,
    }
    told = f"{folder}: {last.steps} steps in {last.seconds / 60:.1f} min, loss {last.loss:.4f}"
    told += f", features std {last.feature_std:.2f}, rank {last.effective_rank:.0f} of {recipe.width}"
    if value["probe_r2"]:
        told += f"\nprobe R2 {_numbers(value['probe_r2_before'])} before, {_numbers(value['probe_r2'])} after"
    output.result(value, f"{told}\nembed with it: presage embed CLIP --model {folder}")


def _footage(
    output: Output, config: MaskedTraining, recipe: MaskedRecipe, data: Path | None, out: Path
) -> tuple[FrameDataset, Episodes | None, tuple[Skipped, ...]]:
    """What to train on, and episodes kept apart for the probe."""
    from training.data.video_dataset import from_episodes

    files, left_out = _files(output, config, out) if config.videos else (None, ())
    if files is not None and not (config.dataset or config.task or data):
        return files, None, left_out
    store = out if files is None else out / PROBED
    episodes, skipped = training_episodes(output, config.of_episodes(), data, store)
    if files is not None:
        return files, episodes, (*left_out, *skipped)
    try:
        fitting, held_out = episodes.split(recipe.held_out)
    except ValueError as error:
        raise CommandError(f"recipe.{error}") from error
    return from_episodes(fitting), held_out, skipped


def _files(output: Output, config: MaskedTraining, out: Path) -> tuple[FrameDataset, tuple[Skipped, ...]]:
    from training.data.video_folder import read_footage

    paths = [Path(path) for path in config.videos]
    with output.progress() as bars:
        bar = bars.add_task("reading videos", total=None)
        videos, skipped = read_footage(
            paths,
            out,
            config.image_size,
            config.fps,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    tell_skipped(output, skipped, "files")
    return videos, skipped


def _fit(
    output: Output,
    config: MaskedTraining,
    videos: FrameDataset,
    held_out: Episodes | None,
    out: Path,
    device: torch.device,
) -> tuple[Path, MaskedProgress]:
    """The finished package's folder and the last line of its log."""
    from training.masked.train import train

    def fit(advance: Callable[[MaskedProgress], None]) -> Path:
        return train(
            config.recipe,
            videos,
            config.name,
            out,
            advance,
            provenance=provenance(device),
            device=device,
            held_out=held_out,
        )

    return follow(output, config.name, config.recipe.steps, _told, fit)


def _told(line: MaskedProgress) -> ProgressLine:
    losses = f"loss {line.loss:.4f} features std {line.feature_std:.2f} rank {line.effective_rank:.0f}"
    probe = f", probe R2 {_numbers(line.probe_r2)}" if line.probe_r2 else ""
    return ProgressLine(losses, probe, measured=bool(probe))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
