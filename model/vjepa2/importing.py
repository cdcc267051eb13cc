"""Imports of the V-JEPA 2 family as `model.checkpoints.families` asks for them.

Whole models are the work of `model.checkpoints.importer`. Two kinds of files hold a part that needs an encoder of
another file: Meta's probes, and the action-conditioned predictors of jepa-wms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from presage.fields import from_fields

from model.checkpoints.families import Found, Imported, ImportOptions, Section, counted
from model.checkpoints.foreign import Foreign
from model.checkpoints.importer import (
    ENCODER_KEYS,
    Checkpoint,
    ImportedPackage,
    identify,
    import_checkpoint,
    inspect_checkpoint,
    open_checkpoint,
)
from model.checkpoints.published import (
    PROBES,
    PUBLISHED,
    RETRAINED,
    PublishedModel,
    PublishedProbe,
    RetrainedPredictor,
)
from model.checkpoints.state_dict import CheckpointError, first_misfit, strip_prefix
from model.checkpoints.whose import whose
from model.package import ActionSpec, PlannerDefaults
from model.vjepa2.action_predictor import ActionPredictor
from model.vjepa2.huggingface import Piece
from model.vjepa2.poses import POSE_NAMES
from model.vjepa2.probe import ProbeConfig

PROBE_SECTION = "classifiers.0"
"""Files hold a list of classifiers, of which the published code takes the first."""
PROBE_HEADS = 16
"""Of every published probe; weights do not say it."""
OTHER_HEADS = ("verb_classifier", "noun_classifier", "action_classifier")
ALIKE = {"vjepa2-vitg-256": ("vjepa2-ac-vitg",)}
"""Models that hold an encoder of the same kind."""
DROID = ActionSpec(
    names=POSE_NAMES,
    units=("m", "m", "m", "rad", "rad", "rad", "1"),
    low=(-0.1,) * 6 + (-0.75,),
    high=(0.1,) * 6 + (0.75,),
    rate_hz=4.0,
    block=1,
    mean=(0.0,) * 7,
    std=(1.0,) * 7,
)
"""Actions as jepa-wms searches them: changes of pose, each entry within its bound."""
DROID_SEARCH = PlannerDefaults(samples=300, iterations=15, elites=10, horizon=3, execute=3, optimizer="jepa_wms_droid")
LEFT_OUT = "extrinsics_encoder."
"""A layer that the repackaged predictor may carry along and that these models never use."""


def recognizes(foreign: Foreign) -> bool:
    """It is asked last, and takes everything: opening says what is missing."""
    return True


def inspect(foreign: Foreign) -> Found:
    """What a file holds; of a part that needs an encoder, what it fits."""
    if (whose_it_is := whose(foreign)) is not None:
        sections = {name: counted(held) for name, held in foreign.file.sections.items()}
        return Found(foreign.path, "", "", "", whose_it_is, sections, {})
    if foreign.path.is_file() and (part := _part(foreign)) is not None:
        return _inspect_part(foreign, part)
    found = inspect_checkpoint(foreign.path)
    return Found(
        path=found.path,
        family="" if found.encoder is None else "vjepa2",
        layout=found.layout,
        model=found.model or "",
        misfit=found.misfit or "",
        sections={each.name: Section(each.tensors, each.parameters, each.dtypes) for each in found.sections},
        shape={} if found.encoder is None else asdict(found.encoder),
    )


def import_weights(foreign: Foreign, out: Path, options: ImportOptions) -> Imported:
    """Check everything, then write a package into `out`; in bfloat16 unless `options` says otherwise."""
    if (whose_it_is := whose(foreign)) is not None:
        raise CheckpointError(whose_it_is)
    options.refuse(foreign.path, "V-JEPA 2, which does not standardize actions", "statistics")
    part = _part(foreign) if foreign.path.is_file() else None
    if part is not None:
        imported = (_import_probe if part == "probe" else import_predictor)(foreign, out, options)
    else:
        options.refuse(foreign.path, "V-JEPA 2 with an encoder in it", "encoder_weights", "labels")
        named = None
        if options.model is not None:
            named = identify(open_checkpoint(foreign.path), options.encoder_key, options.model)
        imported = import_checkpoint(
            foreign.path,
            out,
            dtype=options.dtype or torch.bfloat16,
            progress=options.progress,
            encoder_key=options.encoder_key,
            model=named,
            limits=options.limits,
        )
    details = {"encoder": imported.encoder_key, "license": imported.license}
    return from_fields(Imported, imported, family="vjepa2", details=details)


def _part(foreign: Foreign) -> str | None:
    """`probe` or `predictor` where a file holds that alone; None where it is something else."""
    sections = foreign.file.sections
    if any(name.startswith("classifiers.") for name in sections):
        return "probe"
    held = {strip_prefix(key) for key in sections.get("predictor", {})}
    alone = "predictor_blocks.0.attn.qkv.weight" in held and not set(ENCODER_KEYS) & set(sections)
    return "predictor" if alone and "action_encoder.weight" in held else None


def _import_probe(foreign: Foreign, out: Path, options: ImportOptions) -> ImportedPackage:
    opened = open_checkpoint(foreign.path)
    published = next((probe for probe in PROBES if probe.file == foreign.path.name), None)
    shape = _probe_config(opened)
    if options.labels is not None and len(options.labels) != shape.classes:
        raise CheckpointError(
            f"{foreign.path}: labels must name its {shape.classes} classes, got {len(options.labels)}"
        )
    encoder = _encoder(foreign, options, "a probe", published.encoder if published else None)
    name = f"{encoder.name}-{foreign.path.name.partition('.')[0]}" if published is None else published.name
    if shape.width != encoder.encoder.width:
        raise CheckpointError(
            f"{options.encoder_weights}: is not the encoder of {foreign.path.name}: width must be {shape.width}, "
            f"got {encoder.encoder.width}"
        )
    model = replace(
        encoder,
        name=name,
        predictor=None,
        probe=shape,
        labels=options.labels or tuple(str(index) for index in range(shape.classes)),
        clip_frames=0 if published is None else published.frames,
        license=f"{'not known' if published is None else published.license}; of the encoder: {encoder.license}",
    )
    return _write(out, options, model, {"probe": (opened, PROBE_SECTION)})


def import_predictor(
    foreign: Foreign, out: Path, options: ImportOptions, published: RetrainedPredictor | None = None
) -> ImportedPackage:
    """Import an action-conditioned predictor; `published` says what it is where it is none of the released ones."""
    options.refuse(foreign.path, "an action-conditioned predictor", "labels")
    opened = _as_ours(open_checkpoint(foreign.path))
    published = published or _retrained(foreign, opened)
    encoder = _encoder(foreign, options, "an action-conditioned predictor", published.encoder)
    if encoder.encoder.width != published.predictor.latent_width:
        raise CheckpointError(
            f"{options.encoder_weights}: is not the encoder of {published.name}: width must be "
            f"{published.predictor.latent_width}, got {encoder.encoder.width}"
        )
    model = replace(
        encoder,
        name=published.name,
        predictor=published.predictor,
        encoder_key=options.encoder_key or published.encoder_key,
        action=DROID,
        planner=DROID_SEARCH,
        license=f"{published.license}; of the encoder: {encoder.license}",
        verified=published.verified,
        crop_policy=None,
    )
    return _write(out, options, model, {"action_predictor": (opened, "predictor")})


def _write(
    out: Path, options: ImportOptions, model: PublishedModel, beside: Mapping[str, tuple[Checkpoint, str]]
) -> ImportedPackage:
    assert options.encoder_weights is not None
    return import_checkpoint(
        options.encoder_weights,
        out,
        dtype=options.dtype or torch.bfloat16,
        progress=options.progress,
        encoder_key=options.encoder_key,
        model=model,
        beside=beside,
        limits=options.limits,
    )


def _encoder(foreign: Foreign, options: ImportOptions, what: str, wanted: str | None) -> PublishedModel:
    """The model whose encoder the part is to read. `CheckpointError` where none is given, or another than `wanted`."""
    if options.encoder_weights is None:
        named = f", {wanted}," if wanted else ""
        raise CheckpointError(
            f"{foreign.path}: holds {what} alone: give the weights of its encoder{named} with --encoder-weights FILE"
        )
    opened = open_checkpoint(options.encoder_weights)
    by_file = next((model.name for model in PUBLISHED if model.file == opened.path.name), None)
    if wanted is not None and by_file is not None and by_file not in (wanted, *ALIKE.get(wanted, ())):
        raise CheckpointError(f"{options.encoder_weights}: is {by_file}, and {foreign.path.name} reads {wanted}")
    return identify(opened, options.encoder_key, options.model or by_file or wanted)


def _probe_config(opened: Checkpoint) -> ProbeConfig:
    """The shape of a file's first classifier. `CheckpointError` where it is no attentive probe, or another kind."""
    held = opened.sections.get(PROBE_SECTION, {})
    shapes = {name: piece.spec.shape for name, piece in held.items()}
    if any(name.startswith(OTHER_HEADS) for name in shapes):
        raise CheckpointError(
            f"{opened.path}: holds classifiers of verbs, nouns and actions to come (EPIC-Kitchens), which Presage does "
            "not run; probes with one classifier are imported"
        )
    try:
        classes, width = shapes["linear.weight"]
        hidden = shapes["pooler.cross_attention_block.mlp.fc1.weight"][0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{opened.path}: is not an attentive probe: key {error} is missing") from error
    if width % PROBE_HEADS:
        raise CheckpointError(f"{opened.path}: width must be a multiple of {PROBE_HEADS} heads, got {width}")
    blocks = {match[1] for name in shapes if (match := re.match(r"pooler\.blocks\.(\d+)\.", name))}
    return ProbeConfig(width, classes, heads=PROBE_HEADS, depth=1 + len(blocks), mlp_hidden=hidden)


def _as_ours(opened: Checkpoint) -> Checkpoint:
    """The predictor's keys as ours: poses are proprioception there, and the camera's layer goes."""
    renamed: dict[str, Piece] = {}
    for name, piece in opened.sections["predictor"].items():
        ours = re.sub(r"^proprio_encoder\.", "state_encoder.", name)
        if ours in renamed:
            raise CheckpointError(f"{opened.path}: predictor key {name} is there twice, by either of its names")
        if not ours.startswith(LEFT_OUT):
            renamed[ours] = piece
    return replace(opened, sections={**opened.sections, "predictor": renamed})


def _retrained(foreign: Foreign, opened: Checkpoint) -> RetrainedPredictor:
    """Which of the released predictors a file is, by its name, else by whether it takes poses."""
    held = opened.sections["predictor"]
    named = [each for each in RETRAINED if foreign.path.name in each.names]
    poses = "state_encoder.weight" in held
    published = named[0] if named else next(each for each in RETRAINED if each.predictor.poses == poses)
    with torch.device("meta"):
        network = ActionPredictor(published.predictor)
    if misfit := first_misfit(network, {name: piece.spec.shape for name, piece in held.items()}):
        raise CheckpointError(f"{foreign.path}: is not {published.name}: predictor: {misfit}")
    return published


def _inspect_part(foreign: Foreign, part: str) -> Found:
    """A probe or a predictor: its shape, the released file it is, and which encoder it needs."""
    opened, model, misfit, needed = open_checkpoint(foreign.path), "", "", "its encoder"
    shape: Mapping[str, object] = {}
    try:
        if part == "probe":
            shape = asdict(_probe_config(opened))
            found: PublishedProbe | None = next((each for each in PROBES if each.file == foreign.path.name), None)
            model, needed = (found.name, found.encoder) if found is not None else ("probe", needed)
        else:
            retrained = _retrained(foreign, _as_ours(opened))
            model, needed, shape = retrained.name, retrained.encoder, asdict(retrained.predictor)
    except CheckpointError as error:
        misfit = str(error)
    sections = {name: counted(held) for name, held in foreign.file.sections.items()}
    need = f"the weights of {needed} (--encoder-weights FILE): the file holds a {part} alone"
    return Found(foreign.path, "vjepa2", "meta", model, misfit, sections, shape, (need,))
