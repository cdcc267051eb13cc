"""LeWM's numbers are those of the published implementation."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoints.state_dict import CheckpointError, load_strict
from model.lewm.config import LeWMConfig, from_released
from model.lewm.network import LeWM
from model.lewm.published import our_weights
from model.lewm.rollout import Rollout
from model.preprocessing import prepare
from tests.support.model.lewm import FIXTURES, fixture, needs_fixtures, released_config, released_weights
from tests.support.paths import SHARED

PRECISIONS = [
    pytest.param(torch.float32, "", 1e-5, id="float32"),
    pytest.param(torch.float64, "_f64", 1e-10, id="float64"),
]
LAYOUTS = ("released", "transformers5")


def network(data: dict[str, Any], layout: str, dtype: torch.dtype) -> LeWM:
    lewm = LeWM(from_released(data["config"]["hydra"]))
    load_strict(lewm, our_weights(data["checkpoint_layout"][layout]), layout)
    return lewm.to(dtype).eval().requires_grad_(False)


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the reference where that is above 1."""
    return float((found.double() - wanted.double()).abs().max() / max(1.0, float(wanted.abs().max())))


@needs_fixtures
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "suffix", "bound"), PRECISIONS)
def test_latents_predictions_and_rollouts_are_the_published_ones(
    layout: str, dtype: torch.dtype, suffix: str, bound: float
) -> None:
    data = fixture("lewm_network")
    given, wanted = data["inputs"], data["outputs"]
    lewm = network(data, layout, dtype)
    for name in ("square96", "native56", "nonsquare60x80"):
        image = wanted[f"preprocessed.{name}"][None].to(dtype)
        assert error(lewm.encoder(image)[:, 0], wanted[f"cls.{name}{suffix}"]) <= bound
        assert error(lewm.encode(image), wanted[f"latent.{name}{suffix}"]) <= bound
    squashed = wanted["preprocessed_forced_square.nonsquare60x80"][None].to(dtype)
    assert error(lewm.encode(squashed), wanted[f"latent.nonsquare60x80.forced_square{suffix}"]) <= bound
    assert error(lewm.action_embedder(given["actions"].to(dtype)), wanted[f"action_embedding{suffix}"]) <= bound
    for steps in (1, 2, 3):
        embedded = lewm.action_embedder(given["predict_actions"][:, :steps].to(dtype))
        found = lewm.predict(given["latents"][:, :steps].to(dtype), embedded)
        assert error(found, wanted[f"predict.T{steps}{suffix}"]) <= bound
    fast = Rollout(lewm, dtype)
    for seen in (1, 3):
        rolled = wanted[f"rollout.H{seen}{suffix}"]
        past = given["past_actions"][: seen - 1].to(dtype)
        blocks = given["actions"].to(dtype)
        plain = lewm.rollout(rolled[:, :seen], past.expand(4, -1, -1), blocks)
        found = fast(rolled[:1, :seen], past[None], blocks[None])[0]
        for each in (plain, found):
            assert error(each, rolled[:, seen:]) <= bound
            cost = (each[:, -1] - wanted[f"goal_latent.H{seen}{suffix}"]).square().sum(-1)
            assert error(cost, wanted[f"cost.H{seen}{suffix}"]) <= bound


@needs_fixtures
@pytest.mark.parametrize("name", ["square96", "native56", "nonsquare60x80"])
def test_images_are_preprocessed_as_published(name: str) -> None:
    data = fixture("lewm_network")
    image = data["inputs"][f"image.{name}"][None]
    assert error(prepare(image, "short_side", (56, 56))[0], data["outputs"][f"preprocessed.{name}"]) <= 1e-5


@needs_fixtures
def test_a_frame_can_be_squashed_to_a_square_as_in_training() -> None:
    data = fixture("lewm_network")
    found = prepare(data["inputs"]["image.nonsquare60x80"][None], "stretched", (56, 56))[0]
    assert error(found, data["outputs"]["preprocessed_forced_square.nonsquare60x80"]) <= 1e-5


@needs_fixtures
def test_the_released_config_describes_the_released_keys() -> None:
    config = from_released(json.loads((FIXTURES / "lewm_config.json").read_text()))
    keys = json.loads((SHARED / "parity" / "keys" / "keys_lewm.json").read_text())
    assert config == LeWMConfig()
    weights = our_weights({name: torch.empty(shape, device="meta") for name, shape in keys})
    with torch.device("meta"):
        lewm = LeWM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in lewm.state_dict().items()}


@pytest.mark.parametrize("seen", [1, 2, 3])
@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 7])
def test_fast_rollouts_equal_the_plain_loop(seen: int, horizon: int) -> None:
    torch.manual_seed(0)
    config = from_released(released_config())
    lewm = LeWM(config)
    load_strict(lewm, our_weights(released_weights(released_config())), "random")
    lewm = lewm.double().eval().requires_grad_(False)
    latents = torch.randn(2, seen, config.latent, dtype=torch.float64)
    past = torch.randn(2, seen - 1, 10, dtype=torch.float64)
    blocks = torch.randn(2, 5, horizon, 10, dtype=torch.float64)
    found = Rollout(lewm, torch.float64)(latents, past, blocks)
    for robot in range(2):
        plain = lewm.rollout(latents[robot].expand(5, -1, -1), past[robot].expand(5, -1, -1), blocks[robot])
        assert error(found[robot], plain) <= 1e-12


def test_rollouts_in_bfloat16_stay_near() -> None:
    torch.manual_seed(0)
    config = from_released(released_config())
    lewm = LeWM(config)
    load_strict(lewm, our_weights(released_weights(released_config())), "random")
    lewm = lewm.eval().requires_grad_(False)
    latents, blocks = torch.randn(1, 1, config.latent), torch.randn(1, 9, 5, 10)
    past = torch.zeros(1, 0, 10)
    exact = Rollout(lewm, torch.float32)(latents, past, blocks)
    lowered = Rollout(lewm, torch.bfloat16)(latents, past, blocks)
    assert float(torch.cosine_similarity(exact, lowered, dim=-1).min()) >= 0.999


def test_a_later_action_changes_no_earlier_prediction() -> None:
    torch.manual_seed(0)
    config = from_released(released_config())
    lewm = LeWM(config)
    load_strict(lewm, our_weights(released_weights(released_config())), "random")
    rollout = Rollout(lewm.eval().requires_grad_(False), torch.float32)
    latents, past, blocks = torch.randn(1, 3, config.latent), torch.randn(1, 2, 10), torch.randn(1, 1, 6, 10)
    before = rollout(latents, past, blocks)
    for step in range(6):
        nudged = blocks.clone()
        nudged[:, :, step] += 1
        after = rollout(latents, past, nudged)
        assert torch.equal(after[:, :, :step], before[:, :, :step])
        assert not torch.equal(after[:, :, step], before[:, :, step])


def test_what_was_seen_and_done_before_changes_predictions() -> None:
    torch.manual_seed(0)
    config = from_released(released_config())
    lewm = LeWM(config)
    load_strict(lewm, our_weights(released_weights(released_config())), "random")
    rollout = Rollout(lewm.eval().requires_grad_(False), torch.float32)
    latents, past, blocks = torch.randn(1, 3, config.latent), torch.randn(1, 2, 10), torch.randn(1, 1, 3, 10)
    whole = rollout(latents, past, blocks)
    other = latents.clone()
    other[:, 0] = torch.randn(config.latent)
    for changed in (rollout(other, past, blocks), rollout(latents, past + 1, blocks)):
        assert not torch.allclose(changed[:, :, 0], whole[:, :, 0])


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("encoder", "size", "enormous", "encoder.size must be one of"),
        ("encoder", "use_mask_token", True, "encoder.use_mask_token must be False"),
        ("encoder", "hidden_act", "relu", "encoder.hidden_act must be 'gelu'"),
        ("encoder", "rotary", True, "encoder.rotary is not supported"),
        ("predictor", "heads", 0, "predictor.heads must be a whole number >= 1"),
        ("predictor", "dim_head", "64", "predictor.dim_head must be a whole number >= 1"),
        ("projector", "norm_fn", {"_target_": "torch.nn.LayerNorm"}, "projector.norm_fn must be torch.nn.BatchNorm1d"),
        ("pred_proj", "output_dim", 7, "pred_proj.output_dim must be predictor.input_dim, 24, got 7"),
        ("action_encoder", "_target_", "other.Thing", "action_encoder._target_ must end in .Embedder"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(section: str, key: str, value: object, said: str) -> None:
    config = released_config()
    config[section][key] = value
    with pytest.raises(CheckpointError, match=f"config.json: {said}".replace(".", r"\.")):
        from_released(config)
