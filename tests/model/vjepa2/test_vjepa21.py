"""V-JEPA 2.1 against the published implementation's numbers, in float32 and float64, and settings that change them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.vjepa2 import CheckpointError, Encoder, MaskedPredictor
from tests.support.model.reference_files import fixture, worst

GATES = {torch.float32: 1e-5, torch.float64: 1e-10}
LEVELS = (2, 5, 8, 11)


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def loaded(name: str, section: str, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """The reference numbers, the section's weights, and the inputs, in a precision."""
    reference = fixture(name)
    weights = cast(reference["checkpoint_layout"][section], dtype)
    return reference, weights, cast(reference["inputs"], dtype)


def agrees(got: Tensor, outputs: dict[str, Tensor], name: str) -> None:
    expected = outputs[name if got.dtype == torch.float32 else f"{name}_f64"]
    assert worst(got, expected) <= GATES[got.dtype] * max(1.0, float(expected.abs().max())), name


@pytest.mark.parametrize("dtype", GATES)
@torch.inference_mode()
def test_the_2_1_encoder_gives_the_published_numbers_at_any_size_and_length(dtype: torch.dtype) -> None:
    reference, weights, inputs = loaded("vjepa21_encoder", "ema_encoder", dtype)
    network, outputs = Encoder.from_reference(reference["config"], weights), reference["outputs"]
    for name in ("video4", "nonsquare", "odd_frames", "image", "image_nonsquare"):
        agrees(network(inputs[name]), outputs, name)
    agrees(network(inputs["video4"], [inputs["mask_a"], inputs["mask_b"]]), outputs, "video4.masked")


@pytest.mark.parametrize("dtype", GATES)
@torch.inference_mode()
def test_the_2_1_encoder_gives_the_published_levels(dtype: torch.dtype) -> None:
    reference, weights, inputs = loaded("vjepa21_encoder", "ema_encoder", dtype)
    network, outputs = Encoder.from_reference(reference["config"], weights), reference["outputs"]
    for name in ("video4", "image"):
        agrees(torch.cat(network.layer_outputs(inputs[name], LEVELS), dim=-1), outputs, f"{name}.hierarchical")
    for layer, level in zip(LEVELS, network.layer_outputs(inputs["video4"], LEVELS), strict=True):
        agrees(level, outputs, f"video4.norms_block.layer{layer}")


@pytest.mark.parametrize("dtype", GATES)
@torch.inference_mode()
def test_the_2_1_predictor_gives_the_published_numbers_for_targets_and_context(dtype: torch.dtype) -> None:
    reference, weights, inputs = loaded("vjepa21_predictor", "predictor", dtype)
    network, outputs = MaskedPredictor.from_reference(reference["config"], weights), reference["outputs"]
    given = inputs["context"], inputs["masks_x"], inputs["masks_y"]
    place = torch.cat(given[1:], dim=1).argsort(dim=1).argsort(dim=1).unsqueeze(-1)
    for modality in ("video", "image"):
        for index in (0, 1, 9) if dtype == torch.float32 else (0, 1):
            name, image = f"{modality}.mask_index{index}", modality == "image"
            agrees(network(*given, mask_index=index, image=image), outputs, f"{name}.targets")
            listed = network.all_tokens(*given, mask_index=index, image=image).take_along_dim(place, dim=1)
            agrees(listed[:, : given[0].shape[1]], outputs, f"{name}.context")
            agrees(listed[:, given[0].shape[1] :], outputs, f"{name}.targets")


@torch.inference_mode()
def test_interpolate_rope_is_honored() -> None:
    reference, weights, inputs = loaded("vjepa21_encoder", "ema_encoder", torch.float32)
    stretched = Encoder.from_reference(reference["config"], weights)
    plain = Encoder.from_reference(reference["config"] | {"interpolate_rope": False}, weights)
    assert stretched.config.rotary_grid == 16
    assert plain.config.rotary_grid is None
    full = torch.randn(1, 3, 2, 256, 256)
    assert worst(stretched(full), plain(full)) <= 1e-5  # on the grid of 16 the stretch is by one
    assert worst(stretched(inputs["video4"]), plain(inputs["video4"])) > 1e-2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"interpolate_rope": True, "img_temporal_dim_size": None}, "interpolate_rope is of 2.1 encoders alone"),
        ({"n_output_distillation": 4, "img_temporal_dim_size": None}, "n_output_distillation is of 2.1"),
        ({"modality_embedding": False}, "modality_embedding must be True"),
        ({"use_rope": False}, "use_rope must be True"),
        ({"img_temporal_dim_size": 2}, "img_temporal_dim_size must be 1"),
        ({"num_frames": 1}, "num_frames must be at least 2"),
        ({"depth": 13}, "depth: must be one of"),
    ],
)
def test_encoder_settings_that_would_change_the_numbers_are_refused(setting: dict[str, Any], said: str) -> None:
    base = {"img_size": 64, "embed_dim": 32, "depth": 12, "num_heads": 2, "img_temporal_dim_size": 1}
    with pytest.raises(ValueError, match=said):
        Encoder.from_reference(base | setting, {})


def test_a_predictor_with_stretched_positions_is_refused() -> None:
    config = {"embed_dim": 8, "predictor_embed_dim": 8, "depth": 1, "num_heads": 1, "interpolate_rope": True}
    with pytest.raises(CheckpointError, match="setting interpolate_rope must be false, got True"):
        MaskedPredictor.from_reference(config, {})
