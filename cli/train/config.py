"""Training config: strict YAML (unknown keys are errors), or a task's name and the defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cli.exit_codes import CommandError
from cli.options import checked_task
from model.compact.network import CompactConfig
from model.package import PlannerDefaults
from training.compact.recipe import CompactRecipe

Built = TypeVar("Built")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: `1e-3` is one, where YAML 1.1 wants `1.0e-3` and takes the rest for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
FAMILIES = ("compact", "masked", "action-conditioned", "proposer", "step-predictor")


@dataclass(frozen=True)
class TrainingConfig:
    """A training. Episodes are gathered with the task's exploring policy, or read from a dataset."""

    task: str
    name: str  # of the package
    episodes: int = 1600
    episode_steps: int = 50
    data_seed: int = 1
    image_size: int = 64
    dataset: str = ""  # path of recorded episodes; takes the place of the task and of what gathering needs
    camera: str = ""  # of the dataset, where it has several
    action_key: str = ""  # the dataset's name for the actions, where it is not the usual one
    state_key: str = ""  # the dataset's name for what the robot measured, where it is not the usual one
    rate_hz: float = 0.0  # of the dataset, where it does not say
    init_from: str = ""  # a package, by name or folder, of the same shapes, whose weights to start from
    recipe: CompactRecipe = field(default_factory=CompactRecipe)


def read_config(config: str) -> TrainingConfig:
    """The config in a YAML file, or the defaults for a task. Raises CommandError naming the file and the key."""
    if not is_file(config):
        return TrainingConfig(checked_task(config), config)
    path = Path(config)
    content = {"name": path.stem, **read_yaml(path)}
    content.pop("family", None)  # which is why this file is read here
    if "dataset" in content:
        content = {"task": "", **content}
    try:
        recipe = dict(mapping(content.get("recipe", {}), "recipe"))
        planner = {**asdict(CompactRecipe().planner), **mapping(recipe.get("planner", {}), "recipe.planner")}
        recipe["planner"] = build(PlannerDefaults, planner, "recipe.planner.")
        content["recipe"] = build(CompactRecipe, recipe, "recipe.")
        built = build(TrainingConfig, content, "")
        check_image_size(built.image_size, CompactConfig(action_width=1).patch)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    if bool(built.task) == bool(built.dataset):
        raise CommandError(f"{path}: must name a task or a dataset, and not both")
    if built.init_from and (path.parent / built.init_from).is_dir():
        built = replace(built, init_from=str(path.parent / built.init_from))
    if built.task:
        checked_task(built.task)
        return built
    return replace(built, dataset=str(beside(path, built.dataset)))


def family_of(config: str) -> str:
    """Which kind of training a config is for, `compact` where it does not say."""
    if not is_file(config):
        return "compact"
    family = read_yaml(Path(config)).get("family", "compact")
    if family not in FAMILIES:
        raise CommandError(f"{config}: family must be one of {', '.join(FAMILIES)}, got {family!r}")
    return str(family)


def is_file(config: str) -> bool:
    """Whether this is the path of a YAML file, and not a task's name."""
    return Path(config).suffix in (".yaml", ".yml")


def read_yaml(path: Path) -> dict[str, Any]:
    """The names and values in a YAML file. Raises CommandError."""
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise CommandError(f"{path} must hold names and values, got {type(content).__name__}")
    return content


def beside(config: Path | str, named: str) -> Path:
    """A path as a config names it: relative to the config's folder, or to the working directory where it is there."""
    own = Path(config).parent / named  # which is `named` itself, if that is absolute
    return Path(named) if not own.exists() and Path(named).exists() else own


def check_image_size(size: int, patch: int) -> None:
    """Raises ValueError for a size that is not made of whole patches."""
    if size < patch or size % patch:
        raise ValueError(f"image_size must be a multiple of the patch, {patch} pixels, got {size}")


def mapping(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} must hold names and values, got {value!r}")
    return value


def build(kind: type[Built], values: Mapping[str, Any], prefix: str) -> Built:
    """A dataclass from plain values; ValueError names a key that is unknown, missing or of the wrong type."""
    known = {entry.name: str(entry.type) for entry in fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{prefix}{name} is not a setting; known: {', '.join(known)}")
        if known[name] in _PLAIN and not _fits(value, known[name]):
            raise ValueError(f"{prefix}{name} must be {_PLAIN[known[name]]}, got {value!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{prefix or 'config'}: {str(error).partition('__init__() ')[2] or error}") from error


_PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def _fits(value: Any, kind: str) -> bool:
    match kind:
        case "bool":
            return isinstance(value, bool)
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case _:
            return isinstance(value, str)
