"""Hugging Face's layout of V-JEPA 2 folders: which of its tensors make which of ours.

Their attention keeps queries, keys and values apart and their mask tokens together; the published layout, which is
ours, does the opposite.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.published import BY_FIXTURES, PublishedModel
from model.checkpoints.state_dict import CheckpointError
from model.checkpoints.weight_files import TensorSpec
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from model.vjepa2.config import EncoderConfig
from model.vjepa2.masked_predictor import MaskedPredictorConfig
from model.vjepa2.probe import ProbeConfig


@dataclass(frozen=True)
class Piece:
    """One of our tensors, out of a file's: one as it is, one part of it, or several one after the other."""

    sources: tuple[str, ...]
    spec: TensorSpec
    index: int | None = None
    """Which entry of the source's first axis, where only one is meant."""

    def assemble(self, loaded: Mapping[str, Tensor]) -> Tensor:
        """The tensor, without a copy where the file holds it as it is."""
        first = loaded[self.sources[0]]
        if self.index is not None:
            return first[self.index]
        return first if len(self.sources) == 1 else torch.cat([loaded[source] for source in self.sources])


_RENAMED = (
    (r"^encoder\.embeddings\.patch_embeddings\.proj\.", "encoder/patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"encoder/blocks.\1."),
    (r"^encoder\.layernorm\.", "encoder/norm."),
    (r"^predictor\.embeddings\.predictor_embeddings\.", "predictor/predictor_embed."),
    (r"^predictor\.embeddings\.mask_tokens$", "predictor/mask_tokens"),
    (r"^predictor\.layer\.(\d+)\.", r"predictor/predictor_blocks.\1."),
    (r"^predictor\.layernorm\.", "predictor/predictor_norm."),
    (r"^predictor\.proj\.", "predictor/predictor_proj."),
    (r"^pooler\.query_tokens$", "probe/pooler.query_tokens"),
    (r"^pooler\.cross_attention_layer\.layer_norm([12])\.", r"probe/pooler.cross_attention_block.norm\1."),
    (r"^pooler\.cross_attention_layer\.", "probe/pooler.cross_attention_block."),
    (r"^pooler\.self_attention_layers\.(\d+)\.layer_norm([12])\.", r"probe/pooler.blocks.\1.norm\2."),
    (r"^pooler\.self_attention_layers\.(\d+)\.", r"probe/pooler.blocks.\1."),
    (r"^classifier\.", "probe/linear."),
)
_JOINED = (
    (".attention.", ("query", "key", "value"), ".attn.qkv."),
    (".self_attn.", ("q_proj", "k_proj", "v_proj"), ".attn.qkv."),
    (".cross_attn.", ("k_proj", "v_proj"), ".xattn.kv."),
)
"""Projections that are apart in their attention and together in ours."""
_ALONE = (
    (".attention.proj.", ".attn.proj."),
    (".self_attn.out_proj.", ".attn.proj."),
    (".cross_attn.q_proj.", ".xattn.q."),
)
WRAPPER = "vjepa2."
"""In front of the encoder's and the predictor's keys in the folders of classifiers."""
PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")


def pieces(specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Piece]]:
    """Our tensors by section (`encoder`, `predictor`, and a classifier's `probe`) and name.

    `CheckpointError` names a key of no such model, or one whose companions are missing.
    """
    sections: dict[str, dict[str, Piece]] = {"encoder": {}, "predictor": {}}
    for key, spec in specs.items():
        section, name = _rename(key.removeprefix(WRAPPER))
        into = sections.setdefault(section, {})
        if name == "mask_tokens":
            one = TensorSpec(spec.shape[1:], spec.dtype)
            into |= {f"{name}.{index}": Piece((key,), one, index) for index in range(spec.shape[0])}
            continue
        joint = next((each for each in _JOINED if any(f"{each[0]}{part}." in name for part in each[1])), None)
        if joint is not None:
            _join(into, specs, key, name, joint)
            continue
        for theirs, ours in _ALONE:
            name = name.replace(theirs, ours)
        into[name] = Piece((key,), spec)
    return sections


def _join(
    into: dict[str, Piece],
    specs: Mapping[str, TensorSpec],
    key: str,
    name: str,
    joint: tuple[str, tuple[str, ...], str],
) -> None:
    """Add what projections are together, once for all of them. `CheckpointError` where one is missing or misshapen."""
    marker, parts, ours = joint
    own = next(part for part in parts if f"{marker}{part}." in name)
    sources = tuple(key.replace(f"{marker}{own}.", f"{marker}{part}.") for part in parts)
    spec = specs[key]
    for source in sources:
        if source not in specs or specs[source].shape != spec.shape:
            raise CheckpointError(f"key {source} must be there with shape {spec.shape}, like {key}")
    whole = TensorSpec((len(parts) * spec.shape[0], *spec.shape[1:]), spec.dtype)
    into[name.replace(f"{marker}{own}.", ours)] = Piece(sources, whole)


def _rename(key: str) -> tuple[str, str]:
    for pattern, replacement in _RENAMED:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            section, _, name = renamed.partition("/")
            return section, name
    raise CheckpointError(f"key {key} is unknown (not a V-JEPA 2 model in Hugging Face's layout)")


def described(config: Mapping[str, Any], name: str, classes: int | None = None) -> PublishedModel:
    """The model a folder's `config.json` describes; `classes` of its classifier, where the weights hold one.

    `CheckpointError` names what is missing or of another family.
    """
    if config.get("model_type") != "vjepa2":
        raise CheckpointError(f"config.json: model_type must be 'vjepa2', got {config.get('model_type')!r}")
    if config.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(f"config.json: hidden_act must be 'gelu', got {config['hidden_act']!r}")
    try:
        width, patch, size = int(config["hidden_size"]), int(config["patch_size"]), int(config["crop_size"])
        inner = int(config["pred_hidden_size"])
        encoder = EncoderConfig(
            width=width,
            depth=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            mlp_hidden=int(width * float(config["mlp_ratio"])),
            patch=patch,
            tubelet=int(config["tubelet_size"]),
            layer_norm_eps=float(config.get("layer_norm_eps", 1e-6)),
            qkv_bias=bool(config.get("qkv_bias", True)),
        )
        predictor = MaskedPredictorConfig(
            latent_width=width,
            width=inner,
            depth=int(config["pred_num_hidden_layers"]),
            heads=int(config["pred_num_attention_heads"]),
            mlp_hidden=int(inner * float(config["pred_mlp_ratio"])),
            grid=(size // patch, size // patch),
            mask_tokens=int(config["pred_num_mask_tokens"]),
            layer_norm_eps=float(config.get("layer_norm_eps", 1e-6)),
            qkv_bias=bool(config.get("qkv_bias", True)),
        )
        probe = None if classes is None else _probe(config, encoder, classes)
    except KeyError as error:
        raise CheckpointError(f"config.json: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: {error}") from error
    license = str(config.get("license", "see the model's page"))
    return PublishedModel(
        name=name,
        file="model.safetensors",
        encoder=encoder,
        predictor=predictor,
        image_size=size,
        encoder_key="encoder",
        license=license,
        verified=BY_FIXTURES,
        probe=probe,
        labels=() if classes is None else _labels(config, classes),
        clip_frames=int(config.get("frames_per_clip", 0)) if classes is not None else 0,
        crop_policy="huggingface",
    )


def _probe(config: Mapping[str, Any], encoder: EncoderConfig, classes: int) -> ProbeConfig:
    return ProbeConfig(
        width=encoder.width,
        classes=classes,
        heads=encoder.heads,
        depth=1 + int(config.get("num_pooler_layers", 3)),
        mlp_hidden=encoder.mlp_hidden,
        layer_norm_eps=encoder.layer_norm_eps,
    )


def _labels(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Names of the classes in order. `CheckpointError` where `id2label` has others than the weights."""
    named = config.get("id2label")
    if named is None:
        return tuple(str(index) for index in range(classes))
    if not isinstance(named, Mapping) or set(named) != {str(index) for index in range(classes)}:
        count = len(named) if isinstance(named, Mapping) else type(named).__name__
        raise CheckpointError(
            f"config.json: id2label must name the classifier's classes 0 to {classes - 1}, got {count}"
        )
    return tuple(str(named[str(index)]) for index in range(classes))


def check_processor(config: Mapping[str, Any], crop: int, where: str) -> None:
    """Refuse a processor that prepares images in another way than the published one. `CheckpointError`."""
    numbers: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("image_mean", IMAGENET_MEAN),
        ("image_std", IMAGENET_STD),
        ("rescale_factor", (1 / 255,)),
    )
    for name, wanted in numbers:
        got = config.get(name, wanted)
        given = tuple(got) if isinstance(got, (list, tuple)) else (got,)
        if len(given) != len(wanted) or any(abs(float(a) - b) > 1e-6 for a, b in zip(given, wanted, strict=True)):
            raise CheckpointError(f"{where}: {name} must be {wanted}, got {got}")
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not config.get(name, True):
            raise CheckpointError(f"{where}: {name} must be true, got {config[name]!r}")
    if config.get("resample", 2) != 2:
        raise CheckpointError(f"{where}: resample must be 2 (bilinear), got {config['resample']!r}")
    size = config.get("crop_size", crop)
    sides = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    if sides != (crop, crop):
        raise CheckpointError(f"{where}: crop_size must be the model's {crop} x {crop}, got {size}")
