"""`presage train` with `family: action-conditioned`: a model that plans, from a frozen encoder and recorded poses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.data.recordings import load_recordings, tell_notes
from cli.exit_codes import CommandError
from cli.output import Output
from cli.train.command import provenance
from cli.train.config import beside, build, mapping, read_yaml
from cli.train.progress import ProgressLine, follow
from model.package import PlannerDefaults
from model.preprocessing import CROP_POLICIES, CropPolicy
from training.action_conditioned.train import ActionConditionedRecipe
from training.data.dataset import ReadOptions

if TYPE_CHECKING:
    import torch

    from model.package import Package
    from training.action_conditioned.train import ActionConditionedProgress
    from training.data.episodes import Episodes


@dataclass(frozen=True)
class ActionConditionedTraining:
    """A training on a dataset whose proprioception is the robot's pose, seven numbers."""

    name: str  # of the package
    encoder: str  # a package of the V-JEPA 2 family: pretrained here, or imported
    dataset: str = ""  # path of recorded episodes; --data says it too
    camera: str = ""
    state_key: str = ""  # what the dataset calls the poses, where it is not the usual one
    action_key: str = ""  # what the dataset calls the actions, where it is not the usual one
    rate_hz: float = 0.0
    crop_policy: str = ""  # how camera images become the encoder's; empty: as its package says
    cache: str = ""  # folder of encodings; empty: `encodings` beside the package, removed at the end
    cache_gb: float = 64.0  # at most
    recipe: ActionConditionedRecipe = field(default_factory=ActionConditionedRecipe)


def read_action_conditioned(path: Path) -> ActionConditionedTraining:
    """The config in a YAML file. Raises CommandError naming the file and the key."""
    content: dict[str, Any] = {"name": path.stem, **read_yaml(path)}
    content.pop("family", None)
    try:
        recipe = dict(mapping(content.get("recipe", {}), "recipe"))
        planner = {**asdict(ActionConditionedRecipe().planner), **mapping(recipe.get("planner", {}), "recipe.planner")}
        recipe["planner"] = build(PlannerDefaults, planner, "recipe.planner.")
        content["recipe"] = build(ActionConditionedRecipe, recipe, "recipe.")
        config = build(ActionConditionedTraining, content, "")
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    if config.crop_policy not in ("", *CROP_POLICIES):
        raise CommandError(f"{path}: crop_policy must be one of {', '.join(CROP_POLICIES)}, got {config.crop_policy!r}")
    if not config.cache_gb > 0:
        raise CommandError(f"{path}: cache_gb must be positive, got {config.cache_gb}")
    return config


def train_action_conditioned(
    output: Output, config: str, out: Path, data: Path | None, steps: int | None, seed: int | None, device: torch.device
) -> None:
    """Train, write the package, and say what came of it."""
    chosen = read_action_conditioned(Path(config))
    recipe = chosen.recipe
    recipe = replace(recipe, steps=recipe.steps if steps is None else steps, seed=recipe.seed if seed is None else seed)
    source = data or (beside(config, chosen.dataset) if chosen.dataset else None)
    if source is None:
        raise CommandError(f"{config}: must name a dataset, or be given one with --data")

    import shutil

    from model.package import read_package, write_package
    from training.action_conditioned.train import doubtful_poses
    from training.data.frame_store import remove_frames
    from training.model_card import card

    encoder = _encoder(beside(config, chosen.encoder))
    image = encoder.config.image
    policy: CropPolicy = chosen.crop_policy or image.crop_policy  # type: ignore[assignment]  # both were checked
    options = ReadOptions(chosen.camera, chosen.state_key, chosen.rate_hz, chosen.action_key)
    episodes, skipped = load_recordings(output, source, options, image.height, out, policy)
    tell_notes(output, doubtful_poses(episodes))
    folder, last = _fit(output, replace(chosen, recipe=recipe), encoder, episodes, out, device)
    remove_frames(folder)
    if not chosen.cache:
        shutil.rmtree(out / "encodings", ignore_errors=True)
    package = read_package(folder)
    write_package(folder, package.config, package.weights(), card(package.config))
    value: dict[str, Any] = {
        "folder": str(folder),
        "episodes": episodes.source,
        "skipped": [asdict(entry) for entry in skipped],
        "steps": last.steps,
        "seconds": round(last.seconds, 1),
        "teacher_loss": last.teacher_loss,
        "rollout_loss": last.rollout_loss,
        "held_out_error": last.held_out_error,
        "still_error": last.still_error,
        "weights_digest": package.weights_digest,
    }
    told = f"{folder}: {last.steps} steps in {last.seconds / 60:.1f} min, loss {last.teacher_loss:.4f}"
    told += f"\nheld-out error {last.held_out_error:.4f}, of predicting no change {last.still_error:.4f}"
    output.result(value, f"{told}\nserve it with: presage serve --model {folder}")


def _encoder(folder: Path) -> Package:
    from model.package import read_package

    package = read_package(folder)
    image = package.config.image
    if package.config.family != "vjepa2":
        raise CommandError(f"encoder: {folder} must be of the family vjepa2, got {package.config.family}")
    if image.height != image.width:
        raise CommandError(f"encoder: {folder} must take square images, got {image.height} x {image.width}")
    return package


def _fit(
    output: Output,
    config: ActionConditionedTraining,
    encoder: Package,
    episodes: Episodes,
    out: Path,
    device: torch.device,
) -> tuple[Path, ActionConditionedProgress]:
    """The finished package's folder and the last line of its log."""
    from training.action_conditioned.train import train

    def fit(advance: Callable[[ActionConditionedProgress], None]) -> Path:
        return train(
            config.recipe,
            episodes,
            encoder,
            config.name,
            out,
            Path(config.cache) if config.cache else out / "encodings",
            advance,
            provenance=provenance(device),
            device=device,
            cache_bytes=int(config.cache_gb * 1e9),
        )

    return follow(output, config.name, config.recipe.steps, _told, fit, beginning="encoding")


def _told(line: ActionConditionedProgress) -> ProgressLine:
    losses = f"loss {line.teacher_loss:.4f} rollout {line.rollout_loss:.4f}"
    measured = line.held_out_error is not None
    held_out = f", held out {line.held_out_error:.4f} (still {line.still_error:.4f})" if measured else ""
    return ProgressLine(losses, held_out, measured)
