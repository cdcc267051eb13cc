"""LeWM folders as they are released, with random weights: a `config.json` and a `weights.pt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.lewm.config import from_released
from model.lewm.network import LeWM
from tests.support.paths import SHARED

FIXTURES = SHARED / "parity" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"{FIXTURES} holds the published outputs")

_LAYER = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_BLOCK = {
    "attn.norm": "attn.norm",
    "attn.qkv": "attn.to_qkv",
    "attn.proj": "attn.to_out.0",
    "mlp.norm": "mlp.net.0",
    "mlp.fc1": "mlp.net.1",
    "mlp.fc2": "mlp.net.4",
    "modulation": "adaLN_modulation.1",
}
_OTHERS = {
    "encoder.cls_token": "encoder.embeddings.cls_token",
    "encoder.pos_embed": "encoder.embeddings.position_embeddings",
    "encoder.patch_embed": "encoder.embeddings.patch_embeddings.projection",
    "encoder.norm": "encoder.layernorm",
    "predictor.pos_embed": "predictor.pos_embedding",
    "predictor.norm": "predictor.transformer.norm",
    "action_embedder.smooth": "action_encoder.patch_embed",
    "action_embedder.fc1": "action_encoder.embed.0",
    "action_embedder.fc2": "action_encoder.embed.2",
}


def fixture(name: str) -> dict[str, Any]:
    """What the published implementation gave."""
    loaded: dict[str, Any] = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    return loaded


def released_config(action_width: int = 10, width: int = 24) -> dict[str, Any]:
    """A small network's `config.json`, with overrides as the public loader takes them."""
    norm = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}
    mlp = {"_target_": "stable_worldmodel.wm.lewm.module.MLP", "input_dim": width, "output_dim": width}
    return {
        "_target_": "stable_worldmodel.wm.lewm.LeWM",
        "encoder": {
            "_target_": "stable_pretraining.backbone.utils.vit_hf",
            "size": "tiny",
            "patch_size": 14,
            "image_size": 56,
            "pretrained": False,
            "use_mask_token": False,
            "hidden_size": width,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 4 * width,
        },
        "predictor": {
            "_target_": "stable_worldmodel.wm.lewm.module.Predictor",
            "num_frames": 3,
            "input_dim": width,
            "hidden_dim": width,
            "output_dim": width,
            "depth": 2,
            "heads": 2,
            "mlp_dim": 32,
            "dim_head": 16,
            "dropout": 0.1,
            "emb_dropout": 0.0,
        },
        "action_encoder": {
            "_target_": "stable_worldmodel.wm.lewm.module.Embedder",
            "input_dim": action_width,
            "emb_dim": width,
        },
        "projector": {**mlp, "hidden_dim": 40, "norm_fn": norm},
        "pred_proj": {**mlp, "hidden_dim": 40, "norm_fn": norm},
    }


def released_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the released files' names."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, tensor in LeWM(from_released(config)).state_dict().items():
        if not tensor.is_floating_point():
            value = tensor
        elif name.endswith("running_var"):
            value = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            scale = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.1
            value = scale * torch.randn(tensor.shape, generator=generator)
            value = value + 1 if "norm" in name and name.endswith("weight") else value
        weights |= _released(name, value)
    return weights


def write_folder(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A folder as it is downloaded; returns it."""
    config = released_config() if config is None else config
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(released_weights(config, seed), folder / "weights.pt")
    return folder


def write_statistics(path: Path, mean: tuple[float, ...] = (0.1, -0.2), std: tuple[float, ...] = (0.4, 0.5)) -> Path:
    """A file for `--action-stats`; returns it."""
    path.write_text(json.dumps({"mean": mean, "std": std}))
    return path


def _released(name: str, value: Tensor) -> dict[str, Tensor]:
    stem, _, end = name.rpartition(".")
    if name in _OTHERS:
        return {_OTHERS[name]: value}
    if stem in _OTHERS:
        return {f"{_OTHERS[stem]}.{end}": value.unsqueeze(-1) if name == "action_embedder.smooth.weight" else value}
    part, _, rest = name.partition(".")
    if part in ("projector", "prediction_head"):
        layer = {"fc1": "0", "norm": "1", "fc2": "3"}[rest.split(".")[0]]
        return {f"{'projector' if part == 'projector' else 'pred_proj'}.net.{layer}.{end}": value}
    index, _, inner = stem.removeprefix(f"{part}.blocks.").partition(".")
    if part == "predictor":
        return {f"predictor.transformer.layers.{index}.{_BLOCK[inner]}.{end}": value}
    prefix = f"encoder.encoder.layer.{index}."
    if inner == "attn.qkv":
        kinds = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return {f"{prefix}attention.attention.{kind}.{end}": each.clone() for kind, each in kinds}
    return {f"{prefix}{_LAYER[inner]}.{end}": value}
