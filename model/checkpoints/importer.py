"""Foreign checkpoints: what a file holds, and its import as a slim model package. All fits, or nothing is written.

Reads Meta's `.pt` files and Hugging Face's folders of the V-JEPA 2 family. Opening the bytes safely is
`model.checkpoints.weight_files`; packages of our own are `model.package`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from presage.limits import ActionLimits
from torch import Tensor

from model.checkpoints.published import PUBLISHED, PublishedModel
from model.checkpoints.safetensors_writer import Progress, stream_safetensors
from model.checkpoints.state_dict import CheckpointError, first_misfit, strip_prefix
from model.checkpoints.weight_files import SafetensorsFiles, TensorSpec, TorchFile, WeightFile
from model.package import CARD, CONFIG, WEIGHTS, limited, replace_text
from model.vjepa2.config import EncoderConfig
from model.vjepa2.huggingface import PROCESSOR_FILES, Piece, check_processor, described, pieces
from model.vjepa2.package_config import card, package_config, parts

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ImportedPackage",
    "Inspection",
    "import_checkpoint",
    "inspect_checkpoint",
    "open_checkpoint",
]

ENCODER_KEYS = ("encoder", "target_encoder", "ema_encoder")
LEFT_OUT = {"encoder": "pos_embed", "predictor": "predictor_pos_embed"}
"""Position tables that files of rotary models may carry along and no rotary model uses."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: what it holds under our names. No tensor has been read yet."""

    path: Path
    layout: str
    """`meta` or `huggingface`."""
    file: WeightFile
    sections: Mapping[str, Mapping[str, Piece]]
    """Tensors by the file's section (`encoder`, `target_encoder`, `predictor`, ...) and by name, without prefixes."""
    described: PublishedModel | None
    """The model as the file itself describes it, where it does."""

    @property
    def encoder_keys(self) -> tuple[str, ...]:
        """The encoders to choose from."""
        return tuple(key for key in ENCODER_KEYS if key in self.sections)

    def parameters(self, section: str) -> int:
        """Numbers in a section."""
        return sum(piece.spec.count for piece in self.sections[section].values())

    def load(self, section: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of a section by our names, mapped into memory for as long as they are held."""
        wanted = {name: self.sections[section][name] for name in names}
        sources = list(dict.fromkeys(source for piece in wanted.values() for source in piece.sources))
        loaded = self.file.load(section if self.layout == "meta" else "", sources)
        return {name: piece.assemble(loaded) for name, piece in wanted.items()}


@dataclass(frozen=True)
class ImportedPackage:
    """What an import wrote."""

    folder: Path
    model: str
    encoder_key: str
    license: str
    parameters: int
    weights_bytes: int
    weights_sha256: str


def open_checkpoint(source: Path) -> Checkpoint:
    """Open a `.pt` file or a Hugging Face folder without reading its tensors.

    Raises `CheckpointError`: not there, not weights (a web page, a truncated file, a pickle that holds code), or a
    folder of another family; the message names the first offending key or byte.
    """
    if source.is_dir():
        return _open_folder(source)
    file = TorchFile(source)
    sections: dict[str, dict[str, Piece]] = {}
    for section, specs in file.sections.items():
        named: dict[str, Piece] = {}
        for key, spec in specs.items():
            name = strip_prefix(key)
            if name in named:
                raise CheckpointError(f"{source}: {section} key {key} is there twice once prefixes are stripped")
            named[name] = Piece((key,), spec)
        named.pop(LEFT_OUT["encoder" if section in ENCODER_KEYS else "predictor"], None)
        sections[section] = named
    return Checkpoint(source, "meta", file, sections, None)


def _open_folder(folder: Path) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: is not a Hugging Face folder: it has no config.json")
    config = _json(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(_json(index)["weight_map"].values()))
    try:
        model = described(config, folder.name)
        file = SafetensorsFiles([folder / name for name in names])
        if (head := file.sections[""].get("classifier.weight")) is not None:
            model = described(config, folder.name, head.shape[0])
        for name in PROCESSOR_FILES:
            if (folder / name).is_file():
                check_processor(_json(folder / name), model.image_size, name)
        return Checkpoint(folder, "huggingface", file, pieces(file.sections[""]), model)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    """An object out of a file. `CheckpointError` where there is none in it."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold an object, got {type(content).__name__}")
    return content


def identify(checkpoint: Checkpoint, encoder_key: str | None = None, name: str | None = None) -> PublishedModel:
    """The model a checkpoint is: what it says itself, else what it is called by `name`, its file's or its shapes.

    `encoder_key` says which of its encoders to look at, where it is not the published model's own choice. Raises
    `CheckpointError` when it is none of them, naming the first key that does not fit, or when it may be several.
    """
    if checkpoint.described is not None:
        return checkpoint.described
    if name is not None:
        for model in PUBLISHED:
            if model.name == name:
                return model
        raise CheckpointError(f"model must be one of {', '.join(model.name for model in PUBLISHED)}, got {name!r}")
    if not checkpoint.encoder_keys:
        held = ", ".join(repr(section) for section in checkpoint.sections)
        first = next(iter(next(iter(checkpoint.sections.values()))))
        raise CheckpointError(
            f"{checkpoint.path}: is not of the V-JEPA 2 family: it must hold one of {', '.join(ENCODER_KEYS)}, "
            f"got {held} with key {first!r}"
        )
    named = [model for model in PUBLISHED if model.file == checkpoint.path.name]
    if named:
        return named[0]
    section = encoder_key or checkpoint.encoder_keys[0]
    stem = checkpoint.sections.get(section, {}).get("patch_embed.proj.weight")
    width = stem.spec.shape[0] if stem is not None else None
    alike = [replace(model, encoder_key=encoder_key or model.encoder_key) for model in PUBLISHED]
    alike = [model for model in alike if model.encoder.width == width]
    if not alike:
        widths = ", ".join(str(each) for each in sorted({model.encoder.width for model in PUBLISHED}))
        raise CheckpointError(
            f"{checkpoint.path}: fits no published model: {section} key patch_embed.proj.weight must have "
            f"{widths} channels, got {width}"
        )
    misfits = [_misfit(checkpoint, model) for model in alike]
    fitting = [model for model, misfit in zip(alike, misfits, strict=True) if misfit is None]
    if len(fitting) > 1:
        names = ", ".join(model.name for model in fitting)
        raise CheckpointError(f"{checkpoint.path}: may be any of {names}: say which with --model")
    if not fitting:
        raise CheckpointError(f"{checkpoint.path}: fits no published model; not {alike[0].name}: {misfits[0]}")
    return fitting[0]


@dataclass(frozen=True)
class SectionSummary:
    """One dictionary of tensors in a checkpoint, counted."""

    name: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is, without reading its tensors."""

    path: Path
    layout: str
    model: str | None
    """The published model it is, or the folder's own name; None where it is neither."""
    encoder: EncoderConfig | None
    """That model's encoder."""
    misfit: str | None
    """Why it is no model that can be imported; None where it can."""
    encoder_keys: tuple[str, ...]
    sections: tuple[SectionSummary, ...]


def inspect_checkpoint(source: Path) -> Inspection:
    """Say what a checkpoint holds and whether it can be imported. `CheckpointError`: it cannot be opened at all."""
    checkpoint = open_checkpoint(source)
    model, encoder, misfit = None, None, None
    try:
        identified = identify(checkpoint)
        model, encoder, misfit = identified.name, identified.encoder, _misfit(checkpoint, identified)
    except CheckpointError as error:
        misfit = str(error)
    sections = tuple(
        SectionSummary(
            name=name,
            tensors=len(held),
            parameters=checkpoint.parameters(name),
            bytes=sum(piece.spec.count * piece.spec.dtype.itemsize for piece in held.values()),
            dtypes=tuple(sorted({str(piece.spec.dtype).removeprefix("torch.") for piece in held.values()})),
        )
        for name, held in checkpoint.sections.items()
    )
    return Inspection(source, checkpoint.layout, model, encoder, misfit, checkpoint.encoder_keys, sections)


Origin = tuple[Checkpoint, str]
"""Where a part of a package comes from: an opened file, and the section in it."""


def import_checkpoint(
    source: Path,
    out: Path,
    dtype: torch.dtype = torch.bfloat16,
    progress: Progress | None = None,
    *,
    encoder_key: str | None = None,
    model: PublishedModel | None = None,
    beside: Mapping[str, Origin] | None = None,
    limits: ActionLimits | None = None,
) -> ImportedPackage:
    """Write a slim package of a checkpoint into the folder `out`: one encoder and what works on it, nothing else.

    Tensors are converted to `dtype` and copied one group at a time. `encoder_key` chooses among the file's encoders (by
    default the published model's choice), `model` says what the file is where it is not a published one. Parts that are
    in files of their own are named by `beside`. Everything is checked before anything is written, and each file is
    replaced as a whole; `progress` is told bytes done and in all. Raises `CheckpointError`.
    """
    checkpoint = open_checkpoint(source)
    model = model or identify(checkpoint, encoder_key)
    key = encoder_key or model.encoder_key
    if key not in checkpoint.encoder_keys:
        raise CheckpointError(f"{source}: encoder must be one of {', '.join(checkpoint.encoder_keys)}, got {key!r}")
    model = replace(model, encoder_key=key)
    beside = beside or {}
    if misfit := _misfit(checkpoint, model, beside):
        raise CheckpointError(misfit if beside else f"{source}: is not {model.name}: {misfit}")
    specs: dict[str, TensorSpec] = {}
    origin: dict[str, tuple[str, str]] = {}
    origins = {part: beside.get(part, (checkpoint, section)) for part, (section, _) in parts(model).items()}
    for part, (_, network) in parts(model).items():
        for name, tensor in network.state_dict().items():
            specs[f"{part}.{name}"] = TensorSpec(tuple(tensor.shape), dtype)
            origin[f"{part}.{name}"] = part, name

    def load(names: Sequence[str]) -> dict[str, Tensor]:
        loaded: dict[str, Tensor] = {}
        for part in dict.fromkeys(origin[name][0] for name in names):
            own = {name: origin[name][1] for name in names if origin[name][0] == part}
            held, section = origins[part]
            tensors = held.load(section, list(own.values()))
            loaded |= {name: tensors[short] for name, short in own.items()}
        return loaded

    files = tuple(dict.fromkeys(held.path.name for held, _ in (*beside.values(), (checkpoint, ""))))
    config = limited(package_config(model, files, checkpoint.layout, dtype), limits)
    out.mkdir(parents=True, exist_ok=True)
    digest = stream_safetensors(out / WEIGHTS, specs, load, progress)
    replace_text(out / CONFIG, json.dumps(asdict(config), indent=2) + "\n")
    replace_text(out / CARD, card(model, files, digest))
    parameters = sum(spec.count for spec in specs.values())
    size = (out / WEIGHTS).stat().st_size
    return ImportedPackage(out, model.name, key, model.license, parameters, size, digest)


def _misfit(checkpoint: Checkpoint, model: PublishedModel, beside: Mapping[str, Origin] | None = None) -> str | None:
    """The first thing in a checkpoint, and in the files beside it, that does not fit a model; None where all does."""
    if model.encoder_key not in checkpoint.encoder_keys:
        return f"section {model.encoder_key} is missing"
    beside = beside or {}
    for part, (section, network) in parts(model).items():
        held, place = beside.get(part, (checkpoint, section))
        where = f"{held.path}: " if beside else ""
        if place not in held.sections:
            return f"{where}section {place} is missing"
        shapes = {name: piece.spec.shape for name, piece in held.sections[place].items()}
        if misfit := first_misfit(network, shapes):
            return f"{where}is not of {model.name}: {place}: {misfit}" if beside else f"{place}: {misfit}"
    return None
