"""Imports of LeWM's files: the network their `config.json` describes, strictly loaded, as a package of our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoints.action_statistics import ActionStatistics
from model.checkpoints.families import Found, Imported, ImportOptions, Section
from model.checkpoints.foreign import Foreign
from model.checkpoints.safetensors_writer import stream_safetensors
from model.checkpoints.state_dict import CheckpointError, first_misfit, strip_prefixes
from model.checkpoints.weight_files import TensorSpec
from model.lewm.config import TARGET_SUFFIX, LeWMConfig, from_released
from model.lewm.network import LeWM
from model.lewm.published import (
    CONFIG_FILE,
    KNOWN_STATISTICS,
    VERIFIED,
    ReleasedModel,
    by_digest,
    is_lewm,
    our_weights,
)
from model.package import (
    CARD,
    CONFIG,
    WEIGHTS,
    ImageSpec,
    PackageConfig,
    PlannerDefaults,
    file_digest,
    limited,
    replace_text,
)

BLOCK = 5
"""Robot actions per model step, of all released models."""
NAMES = ("x", "y")
PACKAGE_NAME = "lewm"


def recognizes(foreign: Foreign) -> bool:
    """By the `_target_` of its config, else by keys that no other family has together."""
    if foreign.config is not None and str(foreign.config.get("_target_", "")).endswith(TARGET_SUFFIX):
        return True
    return foreign.weights.is_file() and is_lewm(frozenset(key.removeprefix("module.") for key in foreign.flat))


def inspect(foreign: Foreign) -> Found:
    """Names and shapes are compared; the digest says whether it is one of the released files."""
    held = foreign.flat
    misfit, shape = "", {}
    try:
        config = _shape(foreign)
        shape = asdict(config)
        _checked_weights(foreign, config)
    except CheckpointError as error:
        misfit = str(error)
    released = by_digest(file_digest(foreign.weights))
    known = released is not None and released.name in KNOWN_STATISTICS
    section = Section(
        tensors=len(held),
        parameters=sum(spec.count for spec in held.values()),
        dtypes=tuple(sorted({str(spec.dtype).removeprefix("torch.") for spec in held.values()})),
    )
    return Found(
        path=foreign.path,
        family="lewm",
        layout="transformers5" if any(key.startswith("encoder.layers.") for key in held) else "released",
        model=released.name if released is not None else PACKAGE_NAME,
        misfit=misfit,
        sections={"": section},
        shape=shape,
        needs=() if known else ("action statistics (--action-stats or --fit): the file does not hold them",),
    )


def import_weights(foreign: Foreign, out: Path, options: ImportOptions) -> Imported:
    """Check everything, then write. Numbers are kept in float32 unless `options` says otherwise: the file is small."""
    if options.encoder_key is not None:
        raise CheckpointError(f"{foreign.path}: LeWM files hold one encoder, so none can be chosen")
    options.refuse(foreign.path, "LeWM", "encoder_weights", "labels", "model")
    config = _shape(foreign)
    weights = _checked_weights(foreign, config)
    released = by_digest(file_digest(foreign.weights))
    statistics = _statistics(foreign, config, released, options.statistics)
    dtype = options.dtype or torch.float32
    specs = {
        name: TensorSpec(tuple(tensor.shape), dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in weights.items()
    }

    def load(names: Sequence[str]) -> dict[str, Tensor]:
        return {name: weights[name] for name in names}

    name = released.name if released is not None else PACKAGE_NAME
    package = limited(_package_config(name, config, statistics, foreign, released, dtype), options.limits)
    out.mkdir(parents=True, exist_ok=True)
    digest = stream_safetensors(out / WEIGHTS, specs, load, options.progress)
    replace_text(out / CONFIG, json.dumps(asdict(package), indent=2) + "\n")
    replace_text(out / CARD, _card(name, foreign, released, statistics, digest))
    return Imported(
        folder=out,
        model=name,
        family="lewm",
        parameters=sum(spec.count for spec in specs.values()),
        weights_bytes=(out / WEIGHTS).stat().st_size,
        weights_sha256=digest,
        details={
            "license": released.license if released is not None else "not known: the file is none of the released ones",
            "action statistics": statistics.source,
        },
    )


def _shape(foreign: Foreign) -> LeWMConfig:
    """The network's shape: heads cannot be read off a file's keys, so its `config.json` must lie beside it."""
    if foreign.config is None:
        raise CheckpointError(
            f"{foreign.path}: {CONFIG_FILE} must lie beside the weights: their shapes do not tell its heads"
        )
    try:
        return from_released(foreign.config)
    except CheckpointError as error:
        raise CheckpointError(f"{foreign.folder}: {error}") from error


def _checked_weights(foreign: Foreign, config: LeWMConfig) -> dict[str, Tensor]:
    """The file's tensors under our names. CheckpointError names the first that is missing, unknown or misshapen."""
    held = foreign.flat
    if not held:
        sections = ", ".join(foreign.file.sections)
        raise CheckpointError(f"{foreign.weights}: must be one flat dictionary of tensors, got sections {sections}")
    try:
        weights = our_weights(strip_prefixes(foreign.file.load("", list(held))))
        with torch.device("meta"):
            network = LeWM(config)
        misfit = first_misfit(network, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    except CheckpointError as error:
        raise CheckpointError(f"{foreign.weights}: {error}") from error
    if misfit:
        raise CheckpointError(f"{foreign.weights}: does not fit its {CONFIG_FILE}: {misfit}")
    return weights


def _statistics(
    foreign: Foreign, config: LeWMConfig, released: ReleasedModel | None, given: ActionStatistics | None
) -> ActionStatistics:
    """Those given, else those known of a released file. Refused where there are none, or where they do not fit."""
    statistics = given
    if statistics is None and released is not None:
        statistics = KNOWN_STATISTICS.get(released.name)
    if statistics is None:
        which = f"{released.name}'s are not published" if released is not None else "it is none of the released files"
        raise CheckpointError(
            f"{foreign.path}: holds no action statistics, without which every plan would be wrong, and {which}: give "
            "them with --action-stats FILE, or fit them with --fit DATASET"
        )
    block = statistics.block or BLOCK
    if statistics.dimensions * block != config.action_width:
        raise CheckpointError(
            f"{foreign.path}: action statistics must have {config.action_width / block:g} entries "
            f"(a model step is {config.action_width} numbers, {block} actions), got {statistics.dimensions}"
        )
    return statistics


def _package_config(
    name: str,
    config: LeWMConfig,
    statistics: ActionStatistics,
    foreign: Foreign,
    released: ReleasedModel | None,
    dtype: torch.dtype,
) -> PackageConfig:
    count = statistics.dimensions
    names = NAMES if count == len(NAMES) else tuple(f"action_{index}" for index in range(count))
    return PackageConfig(
        name=name,
        family="lewm",
        image=ImageSpec(config.image, config.image, "short_side"),
        latent_shape=(config.latent,),
        network=asdict(config),
        action=statistics.specification(BLOCK, names),
        history=config.window,
        past_actions=True,
        planner=PlannerDefaults(
            samples=300, iterations=30, elites=30, horizon=5, execute=5 * (statistics.block or BLOCK), optimizer="lewm"
        ),
        training={
            "imported_from": foreign.weights.name,
            "repository": "" if released is None else released.repository,
            "revision": "" if released is None else released.revision,
            "action_statistics": statistics.source,
            "dtype": str(dtype).removeprefix("torch."),
            "license": "not known" if released is None else released.license,
            "verified": VERIFIED,
        },
    )


def _card(
    name: str, foreign: Foreign, released: ReleasedModel | None, statistics: ActionStatistics, digest: str
) -> str:
    origin = f"`{foreign.weights.name}`, none of the released files"
    license = "not known"
    if released is not None:
        origin, license = f"`{released.repository}` at revision `{released.revision}`", released.license
    bounds = "the statistics' own" if statistics.low is not None else "-1 to 1, those of the public environments"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (statistics.mean, statistics.std))
    return (
        f"# {name}\n\n"
        f"Imported from {origin}. LeWorldModel: arXiv 2603.19312.\n\n"
        f"- License of the weights: {license}.\n"
        f"- Action statistics (the file holds none): mean {mean}; std {std}. Source: {statistics.source}.\n"
        f"- Bounds of actions: {bounds}.\n"
        f"- Verified: {VERIFIED}.\n"
        f"- sha256 of `{WEIGHTS}`: `{digest}`\n"
    )
