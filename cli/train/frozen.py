"""`presage train` with `family: proposer` or `step-predictor`: a part trained on a finished package's latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cli.exit_codes import CommandError
from cli.train.config import EpisodesConfig, package_beside
from cli.train.run import Outcome, ProgressLine, Run
from cli.train.training_data import training_episodes
from training.frozen.proposer import ProposerRecipe
from training.frozen.step_predictor import StepPredictorRecipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from model.interface import LoadedModel
    from model.package import Package
    from training.data.episodes import Episodes
    from training.frozen.proposer import ProposerProgress
    from training.frozen.reading import Reading
    from training.frozen.step_predictor import StepPredictorProgress
    from training.frozen.windows import EncodedEpisodes

LATENTS, READING = "latents", "reading"  # folders in OUT of what is encoded, until the training ends


@dataclass(frozen=True)
class Material:
    """What a part is trained on: the package, its latents of the episodes, and how they are read where they are."""

    package: Package
    episodes: EncodedEpisodes
    source: str
    reading: Reading | None


@dataclass(frozen=True)
class FrozenTraining(EpisodesConfig):
    """A training on the latents of `package`. Frames of gathered episodes are drawn only where they are encoded."""

    folds_reading: ClassVar[bool] = False  # whether a `recipe.reading` becomes part of the package it is trained for

    package: str = ""  # by name or folder
    every: int = 0  # steps from one encoded frame to the next; 0: the package's block of actions
    reading_episodes: int = 300  # encoded to fit a `recipe.reading`; the latents of all others are told by their labels
    recipe: Any = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.package:
            raise ValueError("must name a package")
        if self.every < 0:
            raise ValueError(f"every must be >= 0, got {self.every}")

    def located(self, file: Path) -> Self:
        return replace(super().located(file), package=package_beside(file, self.package))

    def train(self, run: Run) -> Outcome:
        if not (run.data or self.dataset or self.task):
            raise CommandError(f"{self.name}: must name a task or a dataset, or be given one with --data")
        model = _loaded(self.package, run)
        episodes, skipped = self._gathered(run, model)
        try:
            material = self._material(run, model, episodes)
        except ValueError as error:
            raise CommandError(f"{self.name}: {error}") from error
        outcome = self.fit(run, material)
        values = {"episodes": episodes.source, **outcome.values}
        return replace(outcome, values=values, skipped=skipped, scratch=(LATENTS, READING))

    @abstractmethod
    def fit(self, run: Run, material: Material) -> Outcome:
        """Train the part. Raises CommandError."""

    def _followed(
        self,
        run: Run,
        material: Material,
        trainer: Callable[..., Path],
        line: Callable[[Any], ProgressLine],
        **more: object,
    ) -> Any:
        """The last progress of `trainer`, which is told of the material and `more`; each is shown as its `line`."""

        def fit(advance: Callable[[Any], None]) -> Path:
            told = {"source": material.source, "provenance": run.provenance(), **more}
            return trainer(self.recipe, material.episodes, material.package, run.out, advance, **told)

        return run.follow(material.package.config.name, self.recipe.steps, line, fit)

    def _gathered(self, run: Run, model: LoadedModel) -> tuple[Episodes, tuple[Any, ...]]:
        from simulation.drawn_frames import collect_unseen

        config, action = model.package.config, model.package.config.action
        if action is None:
            raise CommandError(f"{self.name}: package {self.package} only embeds: it has no actions")
        image_size = config.image.height
        episodes, skipped = training_episodes(run.output, self, image_size, run.data, run.out, collect=collect_unseen)
        if episodes.action_names != action.names:
            raise CommandError(f"{self.name}: the episodes' actions {episodes.action_names} must be {action.names}")
        return episodes, skipped

    def _material(self, run: Run, model: LoadedModel, episodes: Episodes) -> Material:
        """Raises ValueError for episodes that do not suit the recipe."""
        from model.package import read_package
        from training.frozen.reading import episode_reading, reading_package, told_episodes
        from training.frozen.windows import encoded_episodes

        recipe, package = self.recipe, read_package(model.package.folder)
        assert package.config.action is not None
        every = self.every or package.config.action.block
        encode = partial(_latents, run, self.package, model, every)
        some = episodes.split(len(episodes.actions) - self.reading_episodes)[0] if recipe.reading else episodes
        if self.folds_reading and recipe.reading:
            package = reading_package(package, recipe.reading, some, encode(some), every, run.out / READING)
        line, folded = None, package.config.training.get("reading")
        if folded is not None:
            encoded = told_episodes(episodes, folded["scale"], folded["off"], recipe.seed)
        elif recipe.reading:
            line = episode_reading(recipe.reading, some, encode(some), every)
            encoded = told_episodes(episodes, recipe.reading, line.off.tolist(), recipe.seed)
        else:
            encoded = encoded_episodes(episodes, encode(episodes), every)
        return Material(package, encoded, episodes.source, line)


@dataclass(frozen=True)
class ProposerTraining(FrozenTraining):
    """A training of what suggests actions to searches."""

    recipe: ProposerRecipe = field(default_factory=ProposerRecipe)

    def fit(self, run: Run, material: Material) -> Outcome:
        from training.frozen.proposer import train

        def line(last: ProposerProgress) -> ProgressLine:
            held_out = "" if last.held_out_loss is None else f", held out {last.held_out_loss:.4f}"
            return ProgressLine(f"loss {last.loss:.4f}", held_out, last.held_out_loss is not None)

        last: ProposerProgress = self._followed(run, material, train, line, reading=material.reading)
        told = f"held-out loss {last.held_out_loss:.4f} of the actions' variance"
        return Outcome(last, told, {"held_out_loss": last.held_out_loss})


@dataclass(frozen=True)
class StepPredictorTraining(FrozenTraining):
    """A training of a predictor that takes one block of actions at a time."""

    folds_reading: ClassVar[bool] = True

    recipe: StepPredictorRecipe = field(default_factory=StepPredictorRecipe)

    def fit(self, run: Run, material: Material) -> Outcome:
        from training.frozen.step_predictor import train

        def line(last: StepPredictorProgress) -> ProgressLine:
            if last.held_out is None:
                return ProgressLine(f"loss {last.loss:.4f}")
            ends = (last.held_out.stepped[-1], last.held_out.at_once[-1], last.held_out.together[-1])
            more = ", held out at the horizon: by steps {:.4f}, at once {:.4f}, both {:.4f}".format(*ends)
            return ProgressLine(f"loss {last.loss:.4f}", more, True)

        last: StepPredictorProgress = self._followed(run, material, train, line)
        assert last.held_out is not None
        return Outcome(last, line(last).more.removeprefix(", "), {"held_out_error": asdict(last.held_out)})


def _loaded(package: str, run: Run) -> LoadedModel:
    from model.package import PackageError
    from model.registry import load

    try:
        return load(package, run.device)
    except PackageError as error:
        raise CommandError(f"package: {error}") from error


def _latents(run: Run, package: str, model: LoadedModel, every: int, seen: Episodes) -> NDArray[np.float32]:
    from training.frozen.latent_store import latents_of

    with run.output.progress() as bars:
        bar = bars.add_task(f"encoding with {package}", total=len(seen.actions))
        return latents_of(
            model,
            seen,
            run.out / LATENTS,
            every=every,
            bfloat16=run.device.type != "cpu",
            progress=lambda done, total: bars.update(bar, completed=done, total=total),
        )
