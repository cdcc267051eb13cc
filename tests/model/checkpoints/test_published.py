"""Every published model's parameter names and shapes, without its memory."""

from __future__ import annotations

import pytest
import torch

from model.checkpoints.published import PUBLISHED, by_name
from model.checkpoints.weight_files import TensorSpec
from model.vjepa2 import ActionPredictor, ActionPredictorConfig, Encoder, MaskedPredictor, MaskedPredictorConfig
from model.vjepa2.config import encoder_config
from model.vjepa2.huggingface import described, pieces
from model.vjepa2.masked_predictor import masked_predictor_config
from tests.support.model.reference_files import keys

KEY_LISTS = {
    "vjepa2-vitl-256": "keys_vjepa2_vit_large",
    "vjepa2-vith-256": "keys_vjepa2_vit_huge",
    "vjepa2-vitg-256": "keys_vjepa2_vit_giant",
    "vjepa2-vitg-384": "keys_vjepa2_vit_giant_384",
    "vjepa2-ac-vitg": "keys_vjepa2_ac_vit_giant",
    "vjepa2_1-vitb-384": "keys_vjepa2_1_vit_base_384_derived",
    "vjepa2_1-vitl-384": "keys_vjepa2_1_vit_large_384_derived",
    "vjepa2_1-vitg-384": "keys_vjepa2_1_vit_giant_384_derived",
    "vjepa2_1-vitgigantic-384": "keys_vjepa2_1_vit_gigantic_384_derived",
}
HUGGING_FACE = {
    "vjepa2-vitl-256": "keys_hf_vitl_256",
    "vjepa2-vith-256": "keys_hf_vith_256",
    "vjepa2-vitg-256": "keys_hf_vitg_256",
    "vjepa2-vitg-384": "keys_hf_vitg_384",
}


def shapes(network: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def networks(name: str) -> tuple[Encoder, MaskedPredictor | ActionPredictor]:
    model = by_name(name)
    with torch.device("meta"):
        encoder = Encoder(model.encoder)
        if isinstance(model.predictor, ActionPredictorConfig):
            return encoder, ActionPredictor(model.predictor)
        assert isinstance(model.predictor, MaskedPredictorConfig)
        return encoder, MaskedPredictor(model.predictor)


def test_every_published_model_has_a_key_list() -> None:
    assert set(KEY_LISTS) == {model.name for model in PUBLISHED}


@pytest.mark.parametrize("name", KEY_LISTS)
def test_key_parity_of_published_models(name: str) -> None:
    expected = keys(KEY_LISTS[name])
    encoder, predictor = networks(name)
    assert shapes(encoder) == expected["encoder"]
    assert shapes(predictor) == expected["predictor"]
    for part, network in (("encoder", encoder), ("predictor", predictor)):
        assert sum(tensor.numel() for tensor in network.state_dict().values()) == expected[f"n_params_{part}"]


def test_key_parity_of_the_predictor_with_extrinsics() -> None:
    config = ActionPredictorConfig(latent_width=1408, extrinsics=True)
    with torch.device("meta"):
        assert shapes(ActionPredictor(config)) == keys("keys_ac_predictor_extrinsics")["predictor"]


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_key_parity_of_hugging_face_folders(name: str) -> None:
    specs = {key: TensorSpec(tuple(shape), torch.float32) for key, shape in keys(HUGGING_FACE[name]).items()}
    renamed = pieces(specs)
    for section, network in zip(("encoder", "predictor"), networks(name), strict=True):
        got = {key: list(piece.spec.shape) for key, piece in renamed[section].items()}
        assert got == shapes(network)
    used = {source for section in renamed.values() for piece in section.values() for source in piece.sources}
    assert used == set(specs)


def test_published_settings_translate_to_the_published_sizes() -> None:
    giant = {"embed_dim": 1408, "depth": 40, "num_heads": 22, "mlp_ratio": 48 / 11, "img_size": 256}
    assert encoder_config(giant) == by_name("vjepa2-vitg-256").encoder
    later = {**giant, "img_size": 384, "img_temporal_dim_size": 1, "interpolate_rope": True}
    assert encoder_config(later) == by_name("vjepa2_1-vitg-384").encoder
    predictor = {"embed_dim": 1408, "predictor_embed_dim": 384, "depth": 12, "num_heads": 12, "num_mask_tokens": 10}
    assert masked_predictor_config({**predictor, "img_size": 384}) == by_name("vjepa2-vitg-384").predictor
    later_predictor = {**predictor, "depth": 24, "num_mask_tokens": 8, "img_size": 384, "img_temporal_dim_size": 1}
    assert (
        masked_predictor_config({**later_predictor, "return_all_tokens": True})
        == by_name("vjepa2_1-vitg-384").predictor
    )


def test_hugging_faces_settings_translate_to_the_published_sizes() -> None:
    settings = {
        "model_type": "vjepa2",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "mlp_ratio": 4.0,
        "patch_size": 16,
        "tubelet_size": 2,
        "crop_size": 256,
        "pred_hidden_size": 384,
        "pred_num_hidden_layers": 12,
        "pred_num_attention_heads": 12,
        "pred_mlp_ratio": 4.0,
        "pred_num_mask_tokens": 10,
    }
    model = described(settings, "here")
    assert model.encoder == by_name("vjepa2-vitl-256").encoder
    assert model.predictor == by_name("vjepa2-vitl-256").predictor


def test_a_name_nobody_published_is_refused() -> None:
    with pytest.raises(KeyError, match="model must be one of vjepa2-vitl-256"):
        by_name("vjepa3")
