"""`presage train` with `family: proposer` or `step-predictor`: a part trained on a finished package's latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cli.exit_codes import CommandError
from cli.options import checked_task, workers_for
from cli.output import Output
from cli.train.command import provenance
from cli.train.config import TrainingConfig, build, mapping, read_yaml
from cli.train.progress import ProgressLine, follow
from cli.train.training_data import as_training_episodes, training_episodes
from training.frozen.proposer import ProposerRecipe
from training.frozen.step_predictor import StepPredictorRecipe

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from training.data.episodes import Episodes
    from training.frozen.proposer import ProposerProgress
    from training.frozen.reading import Reading
    from training.frozen.step_predictor import StepPredictorProgress
    from training.frozen.windows import EncodedEpisodes

FrozenFamily = Literal["proposer", "step-predictor"]
LATENTS = "latents"  # folder in OUT of what is encoded, until the training ends
Trained = TypeVar("Trained", ProposerRecipe, StepPredictorRecipe)


@dataclass(frozen=True)
class FrozenTraining:
    """A training on the latents of `package`. Episodes are simulated, or read from a dataset."""

    name: str
    package: str  # by name or folder
    task: str = ""  # gathered with its exploring policy; frames are drawn only where they are encoded
    episodes: int = 1600
    episode_steps: int = 50
    data_seed: int = 1
    every: int = 0  # steps from one encoded frame to the next; 0: the package's block of actions
    reading_episodes: int = 300  # encoded to fit a `recipe.reading`; the latents of all others are told by their labels
    dataset: str = ""  # path of recorded episodes, in the place of the task
    camera: str = ""
    proprioception: str = ""
    rate_hz: float = 0.0
    recipe: ProposerRecipe | StepPredictorRecipe = field(default_factory=ProposerRecipe)


def read_frozen(path: Path, family: FrozenFamily) -> FrozenTraining:
    """The config in a YAML file. Raises CommandError naming the file and the key."""
    content: dict[str, Any] = {"name": path.stem, **read_yaml(path)}
    content.pop("family", None)
    kind = ProposerRecipe if family == "proposer" else StepPredictorRecipe
    try:
        recipe = dict(mapping(content.get("recipe", {}), "recipe"))
        recipe["reading"] = _units(recipe.get("reading", ()))
        content["recipe"] = build(kind, recipe, "recipe.")
        config = build(FrozenTraining, content, "")
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    if config.task and config.dataset:
        raise CommandError(f"{path}: must name a task or a dataset, and not both")
    if config.task:
        checked_task(config.task)
    for name, least in (("episodes", 2), ("episode_steps", 1), ("every", 0)):
        if getattr(config, name) < least:
            raise CommandError(f"{path}: {name} must be >= {least}, got {getattr(config, name)}")
    return config


def _units(reading: Any) -> tuple[float, ...]:
    """`recipe.reading`; ValueError for what is no list of numbers above 0."""
    if not isinstance(reading, (list, tuple)) or not all(
        isinstance(unit, (int, float)) and not isinstance(unit, bool) and unit > 0 for unit in reading
    ):
        raise ValueError(f"recipe.reading must be a list of numbers above 0, got {reading!r}")
    return tuple(float(unit) for unit in reading)


def train_frozen(
    output: Output,
    family: FrozenFamily,
    config: str,
    out: Path,
    data: Path | None,
    steps: int | None,
    seed: int | None,
    device: torch.device,
) -> None:
    """Encode the episodes, train, write the package, and say what came of it."""
    chosen = read_frozen(Path(config), family)
    recipe = replace(
        chosen.recipe,
        steps=chosen.recipe.steps if steps is None else steps,
        seed=chosen.recipe.seed if seed is None else seed,
    )
    if not (data or chosen.dataset or chosen.task):
        raise CommandError(f"{config}: must name a task or a dataset, or be given one with --data")

    import shutil

    from model.package import PackageError, read_package, write_package
    from model.registry import load
    from training.data.frame_store import remove_frames
    from training.frozen.latent_store import latents_of
    from training.frozen.reading import episode_reading, reading_package, told_episodes
    from training.frozen.windows import encoded_episodes
    from training.model_card import card

    try:
        model = load(chosen.package, device)
    except PackageError as error:
        raise CommandError(f"{config}: package: {error}") from error
    action = model.package.config.action
    if action is None:
        raise CommandError(f"{config}: package {chosen.package} only embeds: it has no actions")
    episodes = _episodes(output, chosen, model.package.config.image.height, data, out)
    if episodes.action_names != action.names:
        raise CommandError(f"{config}: the episodes' actions {episodes.action_names} must be {action.names}")
    every = chosen.every or action.block

    def encode(seen: Episodes) -> NDArray[np.float32]:
        with output.progress() as bars:
            bar = bars.add_task(f"encoding with {chosen.package}", total=len(seen.actions))
            return latents_of(
                model,
                seen,
                out / LATENTS,
                every=every,
                bfloat16=device.type != "cpu",
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )

    package = read_package(model.package.folder)
    try:
        some = episodes.split(len(episodes.actions) - chosen.reading_episodes)[0] if recipe.reading else episodes
        line = None
        if isinstance(recipe, StepPredictorRecipe) and recipe.reading:
            package = reading_package(package, recipe.reading, some, encode(some), every, out / "reading")
        folded = package.config.training.get("reading")
        if folded is not None:
            encoded = told_episodes(episodes, folded["scale"], folded["off"], recipe.seed)
        elif recipe.reading:
            line = episode_reading(recipe.reading, some, encode(some), every)
            encoded = told_episodes(episodes, recipe.reading, line.off.tolist(), recipe.seed)
        else:
            encoded = encoded_episodes(episodes, encode(episodes), every)
    except ValueError as error:
        raise CommandError(f"{config}: {error}") from error
    where = provenance(device)
    if isinstance(recipe, ProposerRecipe):
        value, text = _proposer(output, recipe, encoded, package, out, episodes.source, where, line)
    else:
        value, text = _step_predictor(output, recipe, encoded, package, out, episodes.source, where)
    remove_frames(out)
    for made in (LATENTS, "reading"):
        shutil.rmtree(out / made, ignore_errors=True)
    done = read_package(out)
    write_package(out, done.config, done.weights(), card(done.config))
    value |= {"folder": str(out), "episodes": episodes.source, "weights_digest": done.weights_digest}
    output.result(value, f"{out}: {text}")


def _episodes(output: Output, config: FrozenTraining, image_size: int, data: Path | None, out: Path) -> Episodes:
    """Recordings, or simulated episodes whose frames are drawn when they are encoded."""
    if data is not None or config.dataset:
        reading = TrainingConfig(
            task=config.task,
            name=config.name,
            image_size=image_size,
            dataset=config.dataset,
            camera=config.camera,
            proprioception=config.proprioception,
            rate_hz=config.rate_hz,
        )
        return training_episodes(output, reading, data, out)[0]

    from simulation.drawn_frames import collect_unseen

    with output.progress() as bars:
        bar = bars.add_task(f"gathering {config.task}", total=config.episodes)
        batch = collect_unseen(
            config.task,
            config.episodes,
            config.episode_steps,
            config.data_seed,
            workers=workers_for(config.episodes),
            image_size=image_size,
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
    return as_training_episodes(batch)


def _proposer(
    output: Output,
    recipe: ProposerRecipe,
    episodes: EncodedEpisodes,
    package: Any,
    out: Path,
    source: str,
    where: dict[str, Any],
    reading: Reading | None,
) -> tuple[dict[str, Any], str]:
    """What the training is summed up as: values, and text."""
    from training.frozen.proposer import train

    def fit(advance: Callable[[ProposerProgress], None]) -> Path:
        return train(recipe, episodes, package, out, advance, source=source, provenance=where, reading=reading)

    def line(last: ProposerProgress) -> ProgressLine:
        held_out = "" if last.held_out_loss is None else f", held out {last.held_out_loss:.4f}"
        return ProgressLine(f"loss {last.loss:.4f}", held_out, last.held_out_loss is not None)

    _, last = follow(output, package.config.name, recipe.steps, line, fit)
    value = {"steps": last.steps, "seconds": round(last.seconds, 1), "held_out_loss": last.held_out_loss}
    share = f"held-out loss {last.held_out_loss:.4f} of the actions' variance"
    return value, f"{last.steps} steps in {last.seconds / 60:.1f} min, {share}"


def _step_predictor(
    output: Output,
    recipe: StepPredictorRecipe,
    episodes: EncodedEpisodes,
    package: Any,
    out: Path,
    source: str,
    where: dict[str, Any],
) -> tuple[dict[str, Any], str]:
    """The same of a step predictor."""
    from training.frozen.step_predictor import train

    def fit(advance: Callable[[StepPredictorProgress], None]) -> Path:
        return train(recipe, episodes, package, out, advance, source=source, provenance=where)

    def line(last: StepPredictorProgress) -> ProgressLine:
        if last.held_out is None:
            return ProgressLine(f"loss {last.loss:.4f}")
        ends = (last.held_out.stepped[-1], last.held_out.at_once[-1], last.held_out.together[-1])
        more = ", held out at the horizon: by steps {:.4f}, at once {:.4f}, both {:.4f}".format(*ends)
        return ProgressLine(f"loss {last.loss:.4f}", more, True)

    _, last = follow(output, package.config.name, recipe.steps, line, fit)
    assert last.held_out is not None
    value = {"steps": last.steps, "seconds": round(last.seconds, 1), "held_out_error": asdict(last.held_out)}
    return value, f"{last.steps} steps in {last.seconds / 60:.1f} min{line(last).more}"
