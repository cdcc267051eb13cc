"""A model package: a folder of `config.json`, `weights.safetensors` and a card. Reads and writes it; builds nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from presage.limits import ActionLimits, narrowed
from presage.user_error import UserError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

CONFIG, WEIGHTS, CARD = "config.json", "weights.safetensors", "README.md"
T = TypeVar("T")


class PackageError(UserError, ValueError):
    """A model package that cannot be used; the message names the file and the key at fault."""


@dataclass(frozen=True)
class ImageSpec:
    """The images a model takes. `crop_policy` names how other sizes become this one; "exact" refuses them."""

    height: int
    width: int
    crop_policy: str = "exact"


@dataclass(frozen=True)
class ActionSpec:
    """The actions a model predicts from, in robot units; `mean` and `std` take them to network units."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]  # equal to low where an action was never recorded otherwise: it is held there
    rate_hz: float
    block: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rest: tuple[float, ...] | None = None  # what leaves the robot at rest; None: zero, or the bound nearest to it
    rest_holds: bool = False  # at rest the scene stays as it is: predictions are corrected to say so (`offset_free`)
    limits: ActionLimits | None = None  # what plans keep to beside the bounds; None: nothing

    def __post_init__(self) -> None:
        for name in ("units", "low", "high", "mean", "std", "rest"):
            if getattr(self, name) is not None and len(getattr(self, name)) != len(self.names):
                raise PackageError(f"action.{name} must have {len(self.names)} entries, one per name")
        for name, low, high, rest in zip(self.names, self.low, self.high, self.rest or (), strict=False):
            if not low <= rest <= high:
                raise PackageError(f"action.rest of {name} must lie in {low:g}..{high:g}, got {rest:g}")
        if self.block < 1:
            raise PackageError(f"action.block must be >= 1, got {self.block}")
        if self.limits is not None:
            check_limits(self, self.limits)

    @property
    def at_rest(self) -> tuple[float, ...]:
        """The action that leaves the robot at rest: what is stated, else zero, or the bound nearest to it."""
        if self.rest is not None:
            return self.rest
        return tuple(max(low, min(high, 0.0)) for low, high in zip(self.low, self.high, strict=True))


def check_limits(action: ActionSpec, limits: ActionLimits, field: str = "action.limits") -> None:
    """Limits that a package may state of its actions, whose bounds stand beside them. Raises PackageError."""
    for name in ("low", "high"):
        if given := getattr(limits, name):
            raise PackageError(f"{field}.{name} must be left out: action.{name} holds the bounds, got {given}")
    narrowed(
        action,
        action.at_rest,
        None,
        limits,
        lambda at, rule, value, _: PackageError(f"{at} {rule}, got {value}"),
        field,
    )


@dataclass(frozen=True)
class PlannerDefaults:
    """What a plan with this model uses where nobody says otherwise. Horizon counts model steps."""

    samples: int = 200
    iterations: int = 8
    elites: int = 20
    horizon: int = 5
    execute: int = 5  # robot actions to take before planning again
    optimizer: str = "cem"  # one of presage.optimizers.OPTIMIZERS
    dimensions: tuple[str, ...] = ()  # names of the action entries searched over, the others rest; none: all
    discount: float = 1.0  # weight of each model step's distance, relative to the step before; above 1: later ones more
    cost: str = ""  # the steps that count, one of presage.optimizers.COSTS; empty: the optimizer's own choice
    replace_margin: float = 0.0  # of its cost by which a plan must beat what is left of the last one to take its place


@dataclass(frozen=True)
class PackageConfig:
    """Everything about a model but its weights."""

    name: str
    family: str  # compact, vjepa2, lewm or dino_wm
    image: ImageSpec
    latent_shape: tuple[int, ...]
    network: dict[str, Any]  # the family's own shapes, read by the family
    action: ActionSpec | None = None  # None: the model only embeds
    proprioception_names: tuple[str, ...] = ()
    history: int = 1  # latents a rollout starts from
    past_actions: bool = False  # they are a model step apart, and the actions executed between them count too
    planner: PlannerDefaults = field(default_factory=PlannerDefaults)
    labels: tuple[str, ...] = ()  # names of the classes of clips that it tells apart; none: it classifies nothing
    clip_frames: int = 0  # frames of a clip that its classifier was trained on; 0: not known
    training: dict[str, Any] = field(default_factory=dict)  # command, data, seeds, minutes, machine
    scores: dict[str, Any] = field(default_factory=dict)  # measured, with intervals
    proposer: dict[str, Any] | None = None  # shapes of the network in proposer.safetensors; None: it has none

    def __post_init__(self) -> None:
        known = self.action.names if self.action is not None else ()
        for name in self.planner.dimensions:
            if name not in known:
                raise PackageError(f"planner.dimensions must be among the action's names {known}, got {name!r}")


def limited(config: PackageConfig, limits: ActionLimits | None) -> PackageConfig:
    """The config with limits on its actions; as it is where there are none. Raises PackageError for what cannot be."""
    if limits is None:
        return config
    if config.action is None:
        raise PackageError(f"limits must be left out: {config.name} only embeds, it has no actions")
    return replace(config, action=replace(config.action, limits=limits))


@dataclass(frozen=True)
class Package:
    """A package read from disk."""

    config: PackageConfig
    folder: Path
    weights_digest: str  # sha256 of the weights file, hexadecimal

    def weights(self) -> dict[str, Tensor]:
        """What `weights_digest` is of, read once within `weights_kept`.

        Raises PackageError for a file that is not whole, or that changed.
        """
        kept = _KEPT.get()
        path = self.folder / WEIGHTS
        if kept is not None and path in kept:
            return dict(kept[path])
        content = path.read_bytes()  # digested and read from the same bytes: the file may be written meanwhile
        found = hashlib.sha256(content).hexdigest()
        if found != self.weights_digest:
            raise PackageError(f"{path} changed while it was read: its sha256 was {self.weights_digest}, now {found}")
        weights = tensors_of(content, path)
        if kept is not None:
            kept[path] = dict(weights)
        return weights

    def digest(self) -> str:
        """sha256 of all that decides what a service answers with it: config, weights, and its other weights files."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        digest.update(self.weights_digest.encode())
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name != WEIGHTS and not path.name.startswith("."):
                digest.update(f"{path.name} {file_digest(path)}".encode())
        return digest.hexdigest()

    def card(self) -> str:
        path = self.folder / CARD
        return path.read_text() if path.exists() else ""


_KEPT: ContextVar[dict[Path, dict[str, Tensor]] | None] = ContextVar("weights kept", default=None)


@contextmanager
def weights_kept() -> Iterator[None]:
    """While it lasts, the weights of a package are read from its file once, however many networks are made of them.

    Within another one it changes nothing.
    """
    outer = _KEPT.get()
    token = _KEPT.set({} if outer is None else outer)
    try:
        yield
    finally:
        _KEPT.reset(token)


def read_package(folder: Path) -> Package:
    """Read a package's config and digest its weights. Raises PackageError naming what is missing or unknown."""
    try:
        raw = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError as error:
        raise PackageError(f"{folder} is not a model package: it has no {CONFIG}") from error
    except ValueError as error:
        raise PackageError(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise PackageError(f"{folder / CONFIG} must hold an object")
    config = _build(PackageConfig, raw, CONFIG)
    weights = folder / WEIGHTS
    if not weights.exists():
        raise PackageError(f"{folder} has no {WEIGHTS}")
    return Package(config, folder, file_digest(weights))


def tensors_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file read from `path`. Raises PackageError for one that is not whole."""
    try:
        return load(content)
    except SafetensorError as error:
        raise PackageError(f"{path} is not a whole safetensors file: {error}") from error


PREDICTS = ("predictor.", "stepper.", "action_predictor.", "masked_predictor.")
"""Beginnings of the names of weights that predict latents and make none."""


def latent_digest(weights: Mapping[str, Tensor]) -> str:
    """sha256, hexadecimal, of the weights that latents depend on: the same for packages of one encoder."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if not name.startswith(PREDICTS):
            flat = weights[name].detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {tuple(weights[name].shape)} {flat.dtype}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_package(folder: Path, config: PackageConfig, weights: Mapping[str, Tensor], card: str) -> None:
    """Write a package; each file is replaced as a whole, so a reader never meets half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{WEIGHTS}.new"
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = temporary.stat().st_mode  # of a file made here; safetensors would keep it from all other users
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, temporary)
    temporary.chmod(mode)
    os.replace(temporary, folder / WEIGHTS)
    replace_text(folder / CONFIG, json.dumps(asdict(config), indent=2) + "\n")
    replace_text(folder / CARD, card)


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and put it there whole."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


_NESTED = {"image": ImageSpec, "action": ActionSpec, "planner": PlannerDefaults, "limits": ActionLimits}


def _build(kind: type[T], raw: Mapping[str, Any], where: str) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(raw) - known):
        raise PackageError(f"{where} has an unknown key: {unknown[0]}")
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name in _NESTED and isinstance(value, dict):
            values[name] = _build(_NESTED[name], value, f"{where}: {name}")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise PackageError(f"{where}: {error}") from error
