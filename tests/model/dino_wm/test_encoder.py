"""DINOv2 against the official numbers, in float32 and float64, from official and Hugging Face weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.dino_wm.config import DinoConfig, dino_config, dino_config_of
from model.dino_wm.encoder import DinoEncoder, official_names
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, prepare
from model.vjepa2 import CheckpointError
from tests.support.model.reference_files import fixture, worst
from tests.support.model.tiny_vjepa2 import randomized

GATES = {torch.float32: 1e-5, torch.float64: 1e-10}
LAYOUTS = {"official": ("x_norm_patchtokens", "x_norm_clstoken"), "hf": ("patch_tokens", "cls")}


@pytest.mark.parametrize("dtype", GATES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["dinov2_encoder", "dinov2_encoder_reg"])
@torch.inference_mode()
def test_the_encoder_gives_the_official_numbers_at_any_size(name: str, layout: str, dtype: torch.dtype) -> None:
    reference = fixture(name)
    held = reference["state_dict"] if layout == "official" else reference["checkpoint_layout"]["hf"]
    # transformers' own code scales positions to the size alone; with registers the official code does, too
    offset = {} if layout == "official" else {"interpolate_offset": 0.0}
    network = DinoEncoder.from_reference(reference["config"] | offset, {k: w.to(dtype) for k, w in held.items()})
    patches, summary = LAYOUTS[layout]
    for size, images in reference["inputs"].items():
        features, outputs = network.features(images.to(dtype)), reference["outputs"]
        suffix = "" if dtype == torch.float32 else "_f64"
        agrees(features.patches, outputs[f"{layout}.{size}.{patches}{suffix}"])
        assert torch.equal(network(images.to(dtype)), features.patches)
        if dtype == torch.float32:
            agrees(features.summary, outputs[f"{layout}.{size}.{summary}"])
        registers = f"{layout}.{size}.x_norm_regtokens{suffix}"
        if registers in outputs:
            agrees(features.registers, outputs[registers])


def agrees(got: Tensor, expected: Tensor) -> None:
    assert worst(got, expected) <= GATES[got.dtype] * max(1.0, float(expected.abs().max()))


@torch.inference_mode()
def test_official_and_hugging_face_weights_are_the_same_network() -> None:
    reference = fixture("dinov2_encoder_reg")
    ours = official_names(reference["checkpoint_layout"]["hf"])
    assert {key: tuple(tensor.shape) for key, tensor in ours.items()} == {
        key: tuple(tensor.shape) for key, tensor in reference["state_dict"].items() if key != "mask_token"
    }
    assert all(torch.equal(tensor, reference["state_dict"][key]) for key, tensor in ours.items())


@pytest.mark.parametrize("pixels", ["imagenet", "half"])
def test_images_are_prepared_as_published(pixels: str) -> None:
    reference = fixture("jepa_wms_preprocess")
    side = reference["config"]["img_size"]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if pixels == "imagenet" else ((0.5,) * 3, (0.5,) * 3)
    for name, image in reference["inputs"].items():
        prepared = prepare(image.unsqueeze(0), "planning", (side, side), mean, std)[0]
        assert worst(prepared, reference["outputs"][f"{name}.{pixels}"]) <= 1e-5, name


TINY = DinoConfig(width=128, depth=2, heads=2, mlp_hidden=256, patch=14, grid=3)


def encoder(config: DinoConfig = TINY) -> DinoEncoder:
    network = randomized(DinoEncoder(config))
    assert isinstance(network, DinoEncoder)
    return network


@pytest.mark.parametrize(
    "config", [TINY, replace(TINY, registers=4, offset=0.0, antialias=True), replace(TINY, gated_mlp=True)]
)
def test_a_file_of_weights_says_its_shape(config: DinoConfig) -> None:
    held = encoder(config).state_dict() | {"mask_token": torch.zeros(1, 128)}
    assert dino_config_of({key: tuple(tensor.shape) for key, tensor in held.items()}) == config


def test_weights_in_chunks_of_blocks_are_counted_through() -> None:
    network = encoder()
    chunked = {
        key.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): w
        for key, w in network.state_dict().items()
    }
    assert official_names(chunked).keys() == network.state_dict().keys()


@torch.inference_mode()
def test_the_native_grid_is_not_interpolated_and_a_square_of_another_shape_is() -> None:
    network = encoder(replace(TINY, grid=4))
    assert torch.equal(network.positions(4, 4), network.pos_embed)
    assert network.positions(2, 8).shape == network.pos_embed.shape  # as many patches, other places
    assert not torch.allclose(network.positions(2, 8), network.pos_embed)


def test_what_is_no_encoder_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="is not a DINOv2 encoder: key 'patch_embed.proj.weight' is missing"):
        dino_config_of({"norm.weight": (3,)})
    held = encoder().state_dict()
    config = {"img_size": 42, "embed_dim": 128, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
    DinoEncoder.from_reference(config, held)
    with pytest.raises(CheckpointError, match=r"DINOv2 encoder: key blocks\.1\.ls2\.gamma is missing"):
        DinoEncoder.from_reference(config, {key: w for key, w in held.items() if key != "blocks.1.ls2.gamma"})
    with pytest.raises(CheckpointError, match="key head.weight is unknown"):
        DinoEncoder.from_reference(config, held | {"head.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="setting init_values must be set"):
        dino_config(config | {"init_values": None})
    with pytest.raises(CheckpointError, match="model_type must be dinov2 or dinov2_with_registers, got 'dinov3_vit'"):
        dino_config({"model_type": "dinov3_vit", "hidden_size": 1024})
    with pytest.raises(ValueError, match="images height: must be a positive multiple of 14, got 15"):
        encoder()(torch.zeros(1, 3, 15, 14))
