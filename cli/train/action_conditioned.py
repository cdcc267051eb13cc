"""`presage train` with `family: action-conditioned`: a model that plans, from a frozen encoder and recorded poses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.data.recordings import load_recordings, tell_notes
from cli.exit_codes import CommandError
from cli.train.config import TrainingConfig, beside
from cli.train.run import Outcome, ProgressLine, Run
from model.preprocessing import CROP_POLICIES, CropPolicy
from training.action_conditioned.train import ActionConditionedRecipe

if TYPE_CHECKING:
    from typing_extensions import Self

    from model.package import Package
    from training.action_conditioned.train import ActionConditionedProgress

ENCODINGS = "encodings"  # folder in OUT of what is encoded, until the training ends


@dataclass(frozen=True)
class ActionConditionedTraining(TrainingConfig):
    """A training on a dataset whose proprioception is the robot's pose, seven numbers."""

    encoder: str = ""  # a package of the V-JEPA 2 family: pretrained here, or imported
    crop_policy: str = ""  # how camera images become the encoder's; empty: as its package says
    cache: str = ""  # folder of encodings; empty: one beside the package, removed at the end
    cache_gb: float = 64.0  # at most
    recipe: ActionConditionedRecipe = field(default_factory=ActionConditionedRecipe)

    def __post_init__(self) -> None:
        if not self.encoder:
            raise ValueError("must name an encoder")
        if self.crop_policy not in ("", *CROP_POLICIES):
            raise ValueError(f"crop_policy must be one of {', '.join(CROP_POLICIES)}, got {self.crop_policy!r}")
        if not self.cache_gb > 0:
            raise ValueError(f"cache_gb must be positive, got {self.cache_gb}")

    def located(self, file: Path) -> Self:
        return replace(super().located(file), encoder=str(beside(file, self.encoder)))

    def train(self, run: Run) -> Outcome:
        from training.action_conditioned.train import doubtful_poses, train

        source = run.data or (Path(self.dataset) if self.dataset else None)
        if source is None:
            raise CommandError(f"{self.name}: must name a dataset, or be given one with --data")
        encoder = _encoder(Path(self.encoder))
        image = encoder.config.image
        policy: CropPolicy = self.crop_policy or image.crop_policy  # type: ignore[assignment]  # both were checked
        episodes, skipped = load_recordings(run.output, source, self.reading, image.height, run.out, policy)
        tell_notes(run.output, doubtful_poses(episodes))

        def fit(advance: Callable[[ActionConditionedProgress], None]) -> Path:
            return train(
                self.recipe,
                episodes,
                encoder,
                self.name,
                run.out,
                Path(self.cache) if self.cache else run.out / ENCODINGS,
                advance,
                provenance=run.provenance(),
                device=run.device,
                cache_bytes=int(self.cache_gb * 1e9),
            )

        last = run.follow(self.name, self.recipe.steps, _told, fit, beginning="encoding")
        values: dict[str, Any] = {
            "episodes": episodes.source,
            "teacher_loss": last.teacher_loss,
            "rollout_loss": last.rollout_loss,
            "held_out_error": last.held_out_error,
            "still_error": last.still_error,
        }
        still = f"of predicting no change {last.still_error:.4f}"
        return Outcome(
            last,
            f"loss {last.teacher_loss:.4f}\nheld-out error {last.held_out_error:.4f}, {still}",
            values,
            skipped,
            () if self.cache else (ENCODINGS,),
            f"serve it with: presage serve --model {run.out}",
        )


def _encoder(folder: Path) -> Package:
    from model.package import read_package

    package = read_package(folder)
    image = package.config.image
    if package.config.family != "vjepa2":
        raise CommandError(f"encoder: {folder} must be of the family vjepa2, got {package.config.family}")
    if image.height != image.width:
        raise CommandError(f"encoder: {folder} must take square images, got {image.height} x {image.width}")
    return package


def _told(line: ActionConditionedProgress) -> ProgressLine:
    losses = f"loss {line.teacher_loss:.4f} rollout {line.rollout_loss:.4f}"
    measured = line.held_out_error is not None
    held_out = f", held out {line.held_out_error:.4f} (still {line.still_error:.4f})" if measured else ""
    return ProgressLine(losses, held_out, measured)
