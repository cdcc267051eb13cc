"""Files in the layouts of jepa-wms and DINOv2, with random weights of the released sizes or smaller."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.dino_wm.config import DinoConfig, PredictorConfig
from model.dino_wm.encoder import DinoEncoder
from model.dino_wm.predictor import PatchPredictor
from model.dino_wm.published import DINOV2, RELEASED, PublishedEncoder, ReleasedPlanner
from tests.support.model.tiny_vjepa2 import randomized

TINY_ENCODER = DinoConfig(width=64, depth=1, heads=1, mlp_hidden=128, grid=3)
TINY = replace(
    RELEASED[0],
    name="tiny",
    file="tiny.pth.tar",
    encoder=PublishedEncoder("tiny_vit", "tiny.pth", "", "none", TINY_ENCODER),
    predictor=PredictorConfig(
        "adaln",
        latent=64,
        action=10,
        depth=2,
        heads=2,
        grid=2,
        width=24,
        mlp_hidden=64,
        proprioception=4,
        proprioception_width=6,
    ),
    image=28,
)


@dataclass(frozen=True)
class Files:
    """A predictor's file and its encoder's, and the networks in them."""

    predictor: Path
    encoder: Path
    networks: tuple[PatchPredictor, DinoEncoder]


def planner_file(path: Path, network: PatchPredictor, **more: Any) -> Path:
    """A predictor as it was released: sections, wrappers' prefixes, masks, and what training left behind."""
    sections: dict[str, dict[str, Tensor]] = {"predictor": {}, "action_encoder": {}, "proprio_encoder": {}}
    for key, tensor in network.state_dict().items():
        section, _, name = key.partition(".")
        sections[section][f"module.{name}"] = tensor
    if network.config.kind == "vit":
        for index in range(network.config.depth):
            sections["predictor"][f"module.transformer.layers.{index}.0.bias"] = torch.ones(1, 1, 8, 8)
    held: dict[str, Any] = {name: held or None for name, held in sections.items()}
    torch.save(held | {"opt": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "scaler": None, "epoch": 50} | more, path)
    return path


def encoder_file(path: Path, network: DinoEncoder) -> Path:
    """An encoder as it was published: one flat dictionary."""
    torch.save({**network.state_dict(), "mask_token": torch.zeros(1, network.config.width)}, path)
    return path


def files(folder: Path, planner: ReleasedPlanner = TINY) -> Files:
    """Both files of a planner."""
    shape = planner.encoder.config or DINOV2.config
    assert shape is not None
    predictor, encoder = randomized(PatchPredictor(planner.predictor)), randomized(DinoEncoder(shape), seed=1)
    assert isinstance(predictor, PatchPredictor)
    assert isinstance(encoder, DinoEncoder)
    return Files(
        planner_file(folder / planner.names[0], predictor),
        encoder_file(folder / planner.encoder.file, encoder),
        (predictor, encoder),
    )


def huggingface_encoder(folder: Path, network: DinoEncoder) -> Path:
    """The same encoder as a Hugging Face folder."""
    folder.mkdir()
    held: dict[str, Tensor] = {"embeddings.mask_token": torch.zeros(1, network.config.width)}
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    for key, tensor in network.state_dict().items():
        name = names.get(key, key.replace("blocks.", "encoder.layer."))
        name = name.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1")
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                held[name.replace("attn.qkv", f"attention.attention.{part}")] = third.contiguous()
        else:
            held[name.replace("attn.proj", "attention.output.dense")] = tensor.contiguous()
    save_file(held, folder / "model.safetensors")
    shape = network.config
    config = {
        "model_type": "dinov2",
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "mlp_ratio": shape.mlp_hidden / shape.width,
        "patch_size": shape.patch,
        "image_size": shape.patch * shape.grid,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
