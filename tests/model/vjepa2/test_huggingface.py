"""Folders in Hugging Face's layout: the same networks come out, and what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoints.importer import CheckpointError, import_checkpoint
from tests.support.model.tiny_vjepa2 import encoder, masked_predictor, published

SEES = published(acts=False)


def hugging_face_folder(folder: Path) -> Path:
    """The same networks in the other layout: attention in three parts, mask tokens in one."""
    folder.mkdir()
    weights: dict[str, Tensor] = {}
    parts = (("encoder", encoder().state_dict()), ("predictor", masked_predictor().state_dict()))
    for part, state in parts:
        tokens = [tensor for key, tensor in state.items() if key.startswith("mask_tokens")]
        if tokens:
            weights["predictor.embeddings.mask_tokens"] = torch.stack(tokens)
        for key, tensor in state.items():
            if key.startswith("mask_tokens"):
                continue
            name = key.replace("predictor_blocks", "blocks").replace("blocks.", f"{part}.layer.")
            name = name.replace("patch_embed.proj", "encoder.embeddings.patch_embeddings.proj")
            name = name.replace("predictor_embed.", "predictor.embeddings.predictor_embeddings.")
            name = name.replace("predictor_norm.", "predictor.layernorm.").replace("predictor_proj.", "predictor.proj.")
            name = f"encoder.layernorm.{key.split('.')[1]}" if key.startswith("norm.") else name
            if ".attn.qkv." in name:
                for kind, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    weights[name.replace("attn.qkv", f"attention.{kind}")] = third.contiguous()
            else:
                weights[name.replace("attn.proj", "attention.proj")] = tensor
    save_file(weights, folder / "model.safetensors")
    seen, hidden = SEES.encoder, SEES.predictor
    assert hidden is not None
    config = {
        "model_type": "vjepa2",
        "hidden_size": seen.width,
        "num_hidden_layers": seen.depth,
        "num_attention_heads": seen.heads,
        "mlp_ratio": seen.mlp_hidden / seen.width,
        "patch_size": seen.patch,
        "tubelet_size": 2,
        "crop_size": 16,
        "pred_hidden_size": hidden.width,
        "pred_num_hidden_layers": hidden.depth,
        "pred_num_attention_heads": hidden.heads,
        "pred_mlp_ratio": hidden.mlp_hidden / hidden.width,
        "pred_num_mask_tokens": 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_import_of_a_hugging_face_folder_gives_the_same_weights(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "vjepa2-tiny")
    done = import_checkpoint(folder, tmp_path / "out", torch.float32)
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    assert done.model == "vjepa2-tiny"
    for part, network in (("encoder", encoder()), ("masked_predictor", masked_predictor())):
        for name, tensor in network.state_dict().items():
            assert torch.equal(weights.pop(f"{part}.{name}"), tensor), name
    assert not weights


def test_import_refuses_hugging_face_folders_that_do_not_fit(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "vjepa2-tiny")
    path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    whole = load_file(path)
    save_file({**whole, "head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"key head\.weight is unknown"):
        import_checkpoint(folder, tmp_path / "out")
    save_file({key: value for key, value in whole.items() if "layer.1.attention.key.bias" not in key}, path)
    with pytest.raises(CheckpointError, match=r"layer\.1\.attention\.key\.bias must be there"):
        import_checkpoint(folder, tmp_path / "out")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        import_checkpoint(folder, tmp_path / "out")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(CheckpointError, match="model_type must be 'vjepa2', got 'vit'"):
        import_checkpoint(folder, tmp_path / "out")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="is not a Hugging Face folder"):
        import_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
