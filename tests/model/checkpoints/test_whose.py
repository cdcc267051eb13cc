"""Files that nobody imports are told by name, and what can be imported in their place."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.families import ImportOptions, import_weights, inspect
from model.checkpoints.state_dict import CheckpointError
from model.dino_wm import DinoEncoder
from tests.support.model.dino_files import TINY_ENCODER, encoder_file, huggingface_encoder


def refused(path: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as error:
        import_weights(path, path.parent / "out", ImportOptions())
    assert "\n" not in str(error.value)
    assert not (path.parent / "out").exists()


def test_an_encoder_alone_is_told_where_to_give_it(tmp_path: Path) -> None:
    network = DinoEncoder(TINY_ENCODER)
    refused(encoder_file(tmp_path / "vits14.pth", network), "plans nothing by itself: give it beside a planner's file")
    folder = huggingface_encoder(tmp_path / "dinov2", network)
    refused(folder, r"model_type must be 'vjepa2', got 'dinov2' \(give it beside a planner's file")
    assert "plans nothing by itself" in inspect(tmp_path / "vits14.pth").misfit


def test_a_decoder_and_another_family_are_told_by_name(tmp_path: Path) -> None:
    torch.save({"image_head": {"module.weight": torch.zeros(2)}, "epoch": 3}, tmp_path / "vm2m.pth.tar")
    refused(tmp_path / "vm2m.pth.tar", "holds a decoder of jepa-wms, from latents to pictures")
    folder = tmp_path / "bert"
    folder.mkdir()
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(
        folder, r"model_type must be 'vjepa2', got 'bert'; V-JEPA 2 and 2\.1, LeWM, DINO-WM and jepa-wms are imported"
    )


def test_pickled_modules_are_refused_unopened_and_told_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("models.visual_world_model")
    kind = type("VWorldModel", (), {"__module__": module.__name__})
    module.VWorldModel = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", ModuleType("models"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "model_latest.pth"
    path.write_bytes(pickle.dumps({"predictor": kind()}, protocol=2))
    refused(path, "refused unread: models.visual_world_model.VWorldModel: it looks like DINO-WM's own checkpoint")
