"""Training configs: strict YAML (unknown keys are errors), or a task's name and the defaults.

A family's config is a dataclass, whose fields are what a file may say and whose `train` makes the package.
"""

from __future__ import annotations

import re
import types
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from cli.exit_codes import CommandError
from cli.options import checked_task

if TYPE_CHECKING:
    from typing_extensions import Self

    from cli.train.run import Outcome, Run
    from training.data.dataset import ReadOptions

Built = TypeVar("Built")

FAMILIES: Mapping[str, tuple[str, str]] = {
    "compact": ("cli.train.compact", "CompactTraining"),
    "masked": ("cli.train.masked", "MaskedTraining"),
    "action-conditioned": ("cli.train.action_conditioned", "ActionConditionedTraining"),
    "proposer": ("cli.train.frozen", "ProposerTraining"),
    "step-predictor": ("cli.train.frozen", "StepPredictorTraining"),
}
"""Each family's config: module and class, imported when a file asks for it. A file that names none is `compact`'s."""


@dataclass(frozen=True)
class TrainingConfig(ABC):
    """What the config of every family says: the package's name, and which recorded episodes to read."""

    together: ClassVar[bool] = False  # whether several processes can train it as one

    name: str = ""  # of the package
    dataset: str = ""  # path of recorded episodes; --data says it too
    camera: str = ""  # of the dataset, where it has several
    action_key: str = ""  # the dataset's name for the actions, where it is not the usual one
    state_key: str = ""  # the dataset's name for what the robot measured, where it is not the usual one
    rate_hz: float = 0.0  # of the dataset, where it does not say
    recipe: Any = field(default=None)

    def located(self, file: Path) -> Self:
        """The config with paths as they are meant in this file."""
        return replace(self, dataset=str(beside(file, self.dataset))) if self.dataset else self

    @property
    def reading(self) -> ReadOptions:
        """How the dataset is read."""
        from training.data.dataset import ReadOptions

        return ReadOptions(self.camera, self.state_key, self.rate_hz, self.action_key)

    @abstractmethod
    def train(self, run: Run) -> Outcome:
        """Train, and write the package into `run.out`. Raises CommandError."""


@dataclass(frozen=True)
class EpisodesConfig(TrainingConfig):
    """A training whose episodes are gathered with a task's exploring policy, or read from a dataset in its place."""

    task: str = ""
    episodes: int = 1600
    episode_steps: int = 50
    data_seed: int = 1

    def __post_init__(self) -> None:
        if self.task and self.dataset:
            raise ValueError("must name a task or a dataset, and not both")
        for name, least in (("episodes", 2), ("episode_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")


def read_config(config: str) -> TrainingConfig:
    """The config in a YAML file, or the defaults for a task. Raises CommandError naming the file and the key."""
    if not is_file(config):
        return _config_of("compact")(task=checked_task(config), name=config)
    path = Path(config)
    content = {"name": path.stem, **read_yaml(path)}
    family = content.pop("family", "compact")
    if family not in FAMILIES:
        raise CommandError(f"{config}: family must be one of {', '.join(FAMILIES)}, got {family!r}")
    try:
        built: TrainingConfig = build(_config_of(family), content)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    if isinstance(built, EpisodesConfig) and built.task:
        checked_task(built.task)
    return built.located(path)


def _config_of(family: str) -> Any:
    module, name = FAMILIES[family]
    return getattr(import_module(module), name)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: `1e-3` is one, where YAML 1.1 wants `1.0e-3` and takes the rest for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


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


def beside(config: Path, named: str) -> Path:
    """A path as a config names it: relative to the config's folder, or to the working directory where it is there."""
    own = config.parent / named  # which is `named` itself, if that is absolute
    return Path(named) if not own.exists() and Path(named).exists() else own


def package_beside(config: Path, named: str) -> str:
    """A package as a config names it: a folder beside the config, or what else is called so."""
    return str(config.parent / named) if named and (config.parent / named).is_dir() else named


def check_image_size(size: int, patch: int) -> None:
    """Raises ValueError for a size that is not made of whole patches."""
    if size < patch or size % patch:
        raise ValueError(f"image_size must be a multiple of the patch, {patch} pixels, got {size}")


def build(kind: type[Built], values: Mapping[str, Any], prefix: str = "", default: Built | None = None) -> Built:
    """A dataclass from plain values, nested ones too; what is left out is as in `default`, or as the class has it.

    ValueError names a key that is unknown, missing or of the wrong type.
    """
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    hints, read = get_type_hints(kind), {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{prefix}{name} is not a setting; known: {', '.join(known)}")
        made = known[name].default_factory
        own = getattr(default, name, None if made is MISSING else made())
        read[name] = _value(hints[name], value, f"{prefix}{name}", own)
    try:
        return kind(**read) if default is None else replace(default, **read)  # type: ignore[type-var]
    except TypeError as error:
        raise ValueError(f"{prefix or 'config'}: {str(error).partition('__init__() ')[2] or error}") from error


_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "texts"}


def _value(hint: Any, value: Any, place: str, default: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{place} must hold names and values, got {value!r}")
        return build(hint, value, f"{place}.", default)  # type: ignore[arg-type]  # a class
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        if not isinstance(value, list) or not all(_fits(each, kind) for each in value):
            raise ValueError(f"{place} must be a list of {_SEVERAL[kind]}, got {value!r}")
        return tuple(kind(each) for each in value)
    if hint in _PLAIN and not _fits(value, hint):
        raise ValueError(f"{place} must be {_PLAIN[hint]}, got {value!r}")
    return value


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
