"""Encoder and masked predictor against an independent implementation, where `transformers` is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from model.checkpoints.importer import import_checkpoint
from model.checkpoints.state_dict import load_strict
from model.package import read_package
from model.vjepa2 import MaskedPredictor
from model.vjepa2.model import build
from tests.support.model.reference_files import worst
from tests.support.model.tiny_vjepa2 import randomized


@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_parity_with_transformers_after_import(tmp_path: Path) -> None:
    """A tiny random model of theirs, saved as they save, imported as we import, gives the same numbers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(
        patch_size=16,
        crop_size=64,
        frames_per_clip=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=4.0,
        pred_hidden_size=24,
        pred_num_hidden_layers=2,
        pred_num_attention_heads=2,
        pred_mlp_ratio=2.0,
        pred_num_mask_tokens=3,
    )
    theirs: nn.Module = randomized(transformers.VJEPA2Model(config))
    theirs.save_pretrained(tmp_path / "theirs")  # type: ignore[operator]
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours", torch.float32)
    package = read_package(tmp_path / "ours")
    networks, weights = build(package.config), package.weights()
    for name, network in networks.items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        load_strict(network, own, name)
    encoder, predictor = networks["encoder"], networks["masked_predictor"]
    assert isinstance(predictor, MaskedPredictor)

    video = torch.randn(2, 3, 4, 64, 64)
    numbers = torch.stack([torch.randperm(32), torch.randperm(32)])
    visible, hidden = numbers[:, :20].sort(dim=1).values, numbers[:, 20:].sort(dim=1).values
    expected = theirs(video.transpose(1, 2), context_mask=[visible], target_mask=[hidden])
    encoded = encoder(video)
    assert worst(encoded, expected.last_hidden_state) <= 1e-5
    predicted = predictor(encoded.take_along_dim(visible.unsqueeze(-1), dim=1), visible, hidden)
    assert worst(predicted, expected.predictor_output.last_hidden_state) <= 1e-5
