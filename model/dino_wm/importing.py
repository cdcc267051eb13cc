"""Imports of jepa-wms' and DINO-WM's files: a predictor's `.pth.tar` and the encoder it was trained on, one package.

The files hold neither encoder nor settings nor statistics. These come from the published tables, and the encoder from
a file of its own, which must be the one that the table names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.action_statistics import ActionStatistics
from model.checkpoints.families import Found, Imported, ImportOptions, counted
from model.checkpoints.foreign import Foreign
from model.checkpoints.safetensors_writer import stream_safetensors
from model.checkpoints.state_dict import CheckpointError, first_misfit, strip_prefix
from model.checkpoints.weight_files import TensorSpec
from model.dino_wm.config import DinoConfig, dino_config, dino_config_of
from model.dino_wm.encoder import DinoEncoder, official_names
from model.dino_wm.predictor import SECTIONS, PatchPredictor, network_name
from model.dino_wm.published import RELEASED, SOURCE, TASKS, ReleasedPlanner
from model.dino_wm.world_model import Standards, check, describe
from model.package import (
    CARD,
    CONFIG,
    WEIGHTS,
    ActionSpec,
    ImageSpec,
    PackageConfig,
    file_digest,
    limited,
    replace_text,
)

MARKS = ("predictor_blocks.0.adaLN_modulation.1.weight", "transformer.layers.0.0.to_qkv.weight")
"""Keys of the two predictors that no other family's `predictor` section has."""
DINOV3_MARKS = ("storage_tokens", "rope_embed.periods", "embeddings.register_tokens_v3")


@dataclass(frozen=True)
class EncoderFile:
    """An opened file of encoder weights."""

    path: Path
    config: DinoConfig
    weights: Mapping[str, Tensor]
    """Under the official names, mapped into memory."""
    sha256: str


def recognizes(foreign: Foreign) -> bool:
    """By the keys of its `predictor` section."""
    if foreign.path.is_dir():
        return False
    held = foreign.file.sections.get("predictor", {})
    return any(strip_prefix(key) in MARKS for key in held)


def inspect(foreign: Foreign) -> Found:
    """Names and shapes are compared with the released planners'."""
    misfit, shape, model = "", {}, ""
    try:
        planner = identify(foreign, None)
        model, shape = planner.name, asdict(planner.predictor)
        if planner.encoder.config is None:
            misfit = _unrunnable(foreign, planner)
    except CheckpointError as error:
        misfit = str(error)
    sections = {name: counted(held) for name, held in foreign.file.sections.items()}
    found = next((planner for planner in RELEASED if planner.name == model), None)
    encoder = "its encoder" if found is None else found.encoder.name
    return Found(
        path=foreign.path,
        family="dino_wm",
        layout="jepa-wms",
        model=model,
        misfit=misfit,
        sections=sections,
        shape=shape,
        needs=(f"the weights of {encoder} (--encoder-weights FILE): the file holds a predictor alone",),
    )


def import_weights(
    foreign: Foreign, out: Path, options: ImportOptions, planner: ReleasedPlanner | None = None
) -> Imported:
    """Check everything, then write. `planner` says what the file is where it is none of the released ones."""
    options.refuse(foreign.path, "jepa-wms", "encoder_key", "labels")
    planner = planner or identify(foreign, options.model)
    if planner.encoder.config is None:
        raise CheckpointError(_unrunnable(foreign, planner))
    origins = _checked_predictor(foreign, planner)
    action = _action(foreign, planner, options.statistics)
    if options.encoder_weights is None:
        raise CheckpointError(
            f"{foreign.path}: holds a predictor alone: give the weights of its encoder, {planner.encoder.name} "
            f"({planner.encoder.file}, or its Hugging Face folder), with --encoder-weights FILE"
        )
    encoder = open_encoder(options.encoder_weights)
    _check_encoder(encoder, planner)
    dtype = options.dtype or torch.float32
    config = limited(_package_config(planner, action, foreign, encoder, options.statistics, dtype), options.limits)
    check(config, encoder.config, planner.predictor, _standards(planner))

    shapes = {f"encoder.{name}": tuple(tensor.shape) for name, tensor in encoder.weights.items()}
    shapes |= {
        f"predictor.{name}": foreign.file.sections[section][key].shape for name, (section, key) in origins.items()
    }
    specs = {name: TensorSpec(shape, dtype) for name, shape in shapes.items()}

    def load(names: Sequence[str]) -> dict[str, Tensor]:
        loaded = {name: encoder.weights[name.removeprefix("encoder.")] for name in names if name.startswith("encoder.")}
        asked = {name: origins[name.removeprefix("predictor.")] for name in names if name not in loaded}
        for section in SECTIONS:
            own = {name: key for name, (where, key) in asked.items() if where == section}
            tensors = foreign.file.load(section, list(own.values())) if own else {}
            loaded |= {name: tensors[key] for name, key in own.items()}
        return loaded

    out.mkdir(parents=True, exist_ok=True)
    digest = stream_safetensors(out / WEIGHTS, specs, load, options.progress)
    replace_text(out / CONFIG, json.dumps(asdict(config), indent=2) + "\n")
    replace_text(out / CARD, _card(config, planner, encoder, digest))
    return Imported(
        folder=out,
        model=planner.name,
        family="dino_wm",
        parameters=sum(spec.count for spec in specs.values()),
        weights_bytes=(out / WEIGHTS).stat().st_size,
        weights_sha256=digest,
        details={
            "license": planner.license,
            "encoder": f"{planner.encoder.name} of {encoder.path.name} ({planner.encoder.license})",
            "statistics": str(config.training["action_statistics"]),
        },
    )


def identify(foreign: Foreign, name: str | None) -> ReleasedPlanner:
    """The released planner that a file is: as it is told, by its file's name, else by its shapes alone.

    Raises `CheckpointError` where it is none of them, naming the first key that does not fit, or may be several.
    """
    if name is not None:
        for planner in RELEASED:
            if planner.name == name:
                return planner
        raise CheckpointError(f"model must be one of {', '.join(each.name for each in RELEASED)}, got {name!r}")
    for planner in RELEASED:
        if foreign.weights.name in planner.names:
            _checked_predictor(foreign, planner)
            return planner
    misfits = {planner: _misfit(foreign, planner) for planner in RELEASED}
    fitting = [planner for planner, misfit in misfits.items() if not misfit]
    if len(fitting) > 1:
        names = ", ".join(planner.name for planner in fitting)
        raise CheckpointError(f"{foreign.path}: may be any of {names}: say which with --model")
    if not fitting:
        nearest = next(iter(misfits))
        raise CheckpointError(
            f"{foreign.path}: is none of the released planners; not {nearest.name}: {misfits[nearest]}"
        )
    return fitting[0]


def open_encoder(path: Path) -> EncoderFile:
    """Open the weights of a DINOv2 encoder: an official file, or a Hugging Face folder with its `config.json`.

    Raises `CheckpointError`: not there, not whole, of another family; DINOv3 is refused by name.
    """
    foreign = Foreign(path)
    held = foreign.flat
    if not held:
        sections = ", ".join(foreign.file.sections) or "nothing"
        raise CheckpointError(
            f"{path}: is not a DINOv2 encoder: must be one flat dictionary of tensors, got {sections}"
        )
    config = foreign.config if path.is_dir() else None
    kind = str((config or {}).get("model_type", ""))
    if kind.startswith("dinov3") or any(strip_prefix(key).startswith(DINOV3_MARKS) for key in held):
        raise CheckpointError(f"{path}: is a DINOv3 encoder, whose code Presage does not have; DINOv2 is run")
    try:
        weights = official_names(
            {strip_prefix(key): tensor for key, tensor in foreign.file.load("", list(held)).items()}
        )
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        shape = dino_config_of(shapes) if config is None else dino_config(config)
        with torch.device("meta"):
            misfit = first_misfit(DinoEncoder(shape), shapes)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if misfit:
        raise CheckpointError(f"{path}: is not a whole DINOv2 encoder: {misfit}")
    return EncoderFile(path, shape, weights, file_digest(foreign.weights))


def _check_encoder(encoder: EncoderFile, planner: ReleasedPlanner) -> None:
    """CheckpointError where an encoder is not the one that the planner was trained on, as far as its shape tells."""
    wanted = planner.encoder.config
    assert wanted is not None
    for field, value in asdict(wanted).items():
        got = getattr(encoder.config, field)
        if got != value:
            raise CheckpointError(
                f"{encoder.path}: is not {planner.encoder.name}, the encoder of {planner.name}: {field} must be "
                f"{value}, got {got}"
            )


def _misfit(foreign: Foreign, planner: ReleasedPlanner) -> str:
    with torch.device("meta"):
        network = PatchPredictor(planner.predictor)
    try:
        origins = _origins(foreign)
    except CheckpointError as error:
        return str(error)
    sections = foreign.file.sections
    shapes = {name: sections[section][key].shape for name, (section, key) in origins.items()}
    return first_misfit(network, shapes) or ""


def _checked_predictor(foreign: Foreign, planner: ReleasedPlanner) -> dict[str, tuple[str, str]]:
    """Where in the file each of the predictor's tensors is. CheckpointError names the first that does not fit."""
    if misfit := _misfit(foreign, planner):
        raise CheckpointError(f"{foreign.path}: is not {planner.name}: {misfit}")
    return _origins(foreign)


def _origins(foreign: Foreign) -> dict[str, tuple[str, str]]:
    """Section and key of every tensor, by the name that the predictor has for it."""
    origins: dict[str, tuple[str, str]] = {}
    for section in SECTIONS:
        for key in foreign.file.sections.get(section, {}):
            name = network_name(f"{section}.{strip_prefix(key)}")
            if name is None:
                continue
            if name in origins:
                raise CheckpointError(f"{section} key {key} is there twice once prefixes are stripped")
            origins[name] = section, key
    return origins


def _action(foreign: Foreign, planner: ReleasedPlanner, given: ActionStatistics | None) -> ActionSpec:
    """The task's actions, with statistics of the user's where these are given."""
    table = TASKS[planner.task].action
    if given is None:
        return table
    if given.dimensions != len(table.names):
        raise CheckpointError(
            f"{foreign.path}: action statistics must have {len(table.names)} entries, {', '.join(table.names)}, "
            f"got {given.dimensions}"
        )
    return given.over(table)


def _standards(planner: ReleasedPlanner) -> Standards:
    task = TASKS[planner.task]
    measures = bool(planner.predictor.proprioception)
    return Standards(
        pixel_mean=planner.pixel_mean,
        pixel_std=planner.pixel_std,
        proprioception_mean=task.measured_mean if measures else (),
        proprioception_std=task.measured_std if measures else (),
        alpha=planner.alpha if measures else 0.0,
    )


def _package_config(
    planner: ReleasedPlanner,
    action: ActionSpec,
    foreign: Foreign,
    encoder: EncoderFile,
    given: ActionStatistics | None,
    dtype: torch.dtype,
) -> PackageConfig:
    measures = bool(planner.predictor.proprioception)
    return PackageConfig(
        name=planner.name,
        family="dino_wm",
        image=ImageSpec(planner.image, planner.image, "planning"),
        latent_shape=(planner.predictor.patches, planner.predictor.latent),
        network=dict(describe(encoder.config, planner.predictor, _standards(planner))),
        action=action,
        proprioception_names=TASKS[planner.task].measured if measures else (),
        planner=planner.planner,
        training={
            "imported_from": foreign.weights.name,
            "layout": "jepa-wms",
            "encoder": planner.encoder.name,
            "encoder_file": encoder.path.name,
            "encoder_sha256": encoder.sha256,
            "action_statistics": f"the table of {SOURCE}" if given is None else given.source,
            "settings": SOURCE,
            "dtype": str(dtype).removeprefix("torch."),
            "license": planner.license,
            "verified": planner.verified,
        },
    )


def _card(config: PackageConfig, planner: ReleasedPlanner, encoder: EncoderFile, digest: str) -> str:
    assert config.action is not None
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (config.action.mean, config.action.std))
    return (
        f"# {planner.name}\n\n"
        f"Imported from `{config.training['imported_from']}`. "
        "jepa-wms: arXiv 2512.24497; DINO-WM: arXiv 2411.04983.\n\n"
        f"- License of the predictor's weights: {planner.license}.\n"
        f"- Encoder: {planner.encoder.name}, from `{encoder.path.name}` (sha256 `{encoder.sha256}`), whose license is "
        f"{planner.encoder.license}.\n"
        f"- Settings and statistics (the file holds none) are those of {SOURCE}.\n"
        f"- Action statistics: mean {mean}; std {std}. Source: {config.training['action_statistics']}.\n"
        f"- Verified: {planner.verified}.\n"
        f"- sha256 of `{WEIGHTS}`: `{digest}`\n"
    )


def _unrunnable(foreign: Foreign, planner: ReleasedPlanner) -> str:
    return (
        f"{foreign.path}: is {planner.name}, which needs the encoder {planner.encoder.name}, whose code Presage does "
        "not have; planners on dinov2_vits14 and on V-JEPA 2 are imported"
    )
