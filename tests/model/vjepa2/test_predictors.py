"""The masked predictor and the probe against the published implementation's numbers, and what holds for any weights."""

from __future__ import annotations

import pytest
import torch

from model.vjepa2 import AttentiveProbe, CheckpointError, MaskedPredictor, MaskedPredictorConfig
from tests.support.model.reference_files import fixture, worst
from tests.support.model.tiny_vjepa2 import MASKED_PREDICTOR, masked_predictor


@torch.inference_mode()
def test_masked_predictor_parity_for_every_mask_token() -> None:
    reference = fixture("predictor_masked")
    network = MaskedPredictor.from_reference(reference["config"], reference["state_dict"])
    given = [reference["inputs"][name] for name in ("context", "masks_x", "masks_y")]
    for index in range(3):
        assert worst(network(*given, mask_index=index), reference["outputs"][f"mask_index{index}"]) <= 1e-5
    assert worst(network(*given, mask_index=4), reference["outputs"]["mask_index1"]) <= 1e-5
    assert worst(network.all_tokens(*given), reference["outputs"]["return_all_tokens"]) <= 1e-5


@torch.inference_mode()
def test_attentive_probe_parity() -> None:
    reference = fixture("attentive_classifier")
    probe = AttentiveProbe.from_reference(reference["config"], reference["state_dict"])
    assert worst(probe(reference["inputs"]["tokens"]), reference["outputs"]["logits"]) <= 1e-5


@torch.inference_mode()
def test_the_order_in_which_context_is_listed_does_not_matter() -> None:
    network = masked_predictor()
    context, at, hidden = torch.randn(1, 3, 32), torch.tensor([[0, 2, 5]]), torch.tensor([[1, 7]])
    turned = torch.tensor([2, 0, 1])
    expected = network(context, at, hidden)
    assert worst(network(context[:, turned], at[:, turned], hidden), expected) <= 1e-5
    assert worst(network(context, at, hidden.flip(1)), expected.flip(1)) <= 1e-5


@torch.inference_mode()
def test_2_1_predictor_takes_levels_and_reads_context_through_its_own_projection() -> None:
    config = MaskedPredictorConfig(
        **{**vars(MASKED_PREDICTOR), "levels": 4, "context_output": True, "modality_embeddings": True}
    )
    network = masked_predictor(config)
    context, at, hidden = torch.randn(2, 3, 128), torch.tensor([[0, 2, 5]] * 2), torch.tensor([[1, 7]] * 2)
    predicted = network(context, at, hidden)
    everything = network.all_tokens(context, at, hidden)
    assert predicted.shape == (2, 2, 128)
    assert torch.equal(everything[:, [1, 4]], predicted)
    before = everything[:, [0, 2, 3]].clone()
    network.predictor_proj_context.weight.zero_()
    assert not torch.allclose(network.all_tokens(context, at, hidden)[:, [0, 2, 3]], before)
    assert not torch.allclose(network(context, at, hidden, image=True), predicted)


def test_predictor_inputs_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="context, context_at, target_at: must agree"):
        masked_predictor()(torch.zeros(1, 3, 32), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 1).long())


def test_import_of_predictor_settings_without_rotary_positions_is_refused() -> None:
    config = {"embed_dim": 32, "predictor_embed_dim": 24, "depth": 2, "num_heads": 2, "use_rope": False}
    with pytest.raises(CheckpointError, match="setting use_rope must be true, got False"):
        MaskedPredictor.from_reference(config, {})
