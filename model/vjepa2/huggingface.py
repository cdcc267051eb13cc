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
from model.vjepa2.config import EncoderConfig
from model.vjepa2.masked_predictor import MaskedPredictorConfig


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
)


def pieces(specs: Mapping[str, TensorSpec]) -> dict[str, dict[str, Piece]]:
    """Our tensors by section (`encoder`, `predictor`) and name. `CheckpointError` names a key of no such model."""
    sections: dict[str, dict[str, Piece]] = {"encoder": {}, "predictor": {}}
    for key, spec in specs.items():
        section, name = _rename(key)
        into = sections[section]
        if name == "mask_tokens":
            one = TensorSpec(spec.shape[1:], spec.dtype)
            into |= {f"{name}.{index}": Piece((key,), one, index) for index in range(spec.shape[0])}
        elif ".attention.query." in name:
            sources = tuple(key.replace("query", kind) for kind in ("query", "key", "value"))
            missing = [source for source in sources if source not in specs or specs[source] != spec]
            if missing:
                raise CheckpointError(f"key {missing[0]} must be there with shape {spec.shape}, like {key}")
            whole = TensorSpec((3 * spec.shape[0], *spec.shape[1:]), spec.dtype)
            into[name.replace("attention.query", "attn.qkv")] = Piece(sources, whole)
        elif ".attention.key." in name or ".attention.value." in name:
            if re.sub(r"attention\.(key|value)", "attention.query", key) not in specs:
                raise CheckpointError(f"key {key} has no query beside it")
        else:
            into[name.replace("attention.proj", "attn.proj")] = Piece((key,), spec)
    return sections


def _rename(key: str) -> tuple[str, str]:
    for pattern, replacement in _RENAMED:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            section, _, name = renamed.partition("/")
            return section, name
    raise CheckpointError(f"key {key} is unknown (not a V-JEPA 2 model in Hugging Face's layout)")


def described(config: Mapping[str, Any], name: str) -> PublishedModel:
    """The model a folder's `config.json` describes. `CheckpointError` names what is missing or of another family."""
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
    except KeyError as error:
        raise CheckpointError(f"config.json: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: {error}") from error
    license = str(config.get("license", "see the model's page"))
    return PublishedModel(name, "model.safetensors", encoder, predictor, size, "encoder", license, BY_FIXTURES)
