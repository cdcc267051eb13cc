"""The action-conditioned predictor and its rollouts: published numbers, causality, cached = uncached."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.vjepa2 import ActionPredictor, CheckpointError
from model.vjepa2.action_predictor import ActionPredictorConfig, frame_causal_mask
from model.vjepa2.poses import compose
from model.vjepa2.rollout import chunk_size, normalize, rollout
from tests.support.model.reference_files import doubled, fixture, worst
from tests.support.model.tiny_vjepa2 import ACTION_PREDICTOR, action_predictor

FIXTURES = ("ac_predictor", "ac_predictor_extrinsics", "ac_predictor_nonsquare")
WITH_CAMERA = ActionPredictorConfig(**{**vars(ACTION_PREDICTOR), "extrinsics": True})


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@torch.inference_mode()
def test_action_predictor_parity(name: str, frames: int) -> None:
    reference = fixture(name)
    network = ActionPredictor.from_reference(reference["config"], reference["checkpoint_layout"]["predictor"])
    given = {key: reference["inputs"].get(f"T{frames}.{key}") for key in ("x", "actions", "states", "extrinsics")}
    assert worst(network(**given), reference["outputs"][f"T{frames}"]) <= 1e-5


@pytest.mark.parametrize("name", FIXTURES)
@torch.inference_mode()
def test_action_predictor_parity_in_float64(name: str) -> None:
    reference = fixture(name)
    network = ActionPredictor.from_reference(reference["config"], doubled(reference["state_dict"]))
    given = [reference["inputs"].get(f"T3.{key}") for key in ("x", "actions", "states", "extrinsics")]
    got = network(*(None if tensor is None else tensor.double() for tensor in given))
    assert worst(got, reference["outputs"]["T3_f64"]) <= 1e-10


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("chunk", [None, 2])
@torch.inference_mode()
def test_rollout_parity(name: str, chunk: int | None) -> None:
    reference = fixture(name)
    network = ActionPredictor.from_reference(reference["config"], reference["state_dict"])
    inputs, outputs = reference["inputs"], reference["outputs"]
    start, pose, actions = inputs["rollout.z0"], inputs["rollout.pose0"], inputs["rollout.actions"]
    robots = len(actions)
    predicted = rollout(
        network,
        start.expand(robots, -1, -1).unsqueeze(1),
        pose.expand(robots, -1, -1),
        torch.zeros(robots, 0, 7),
        actions.unsqueeze(1),
        inputs.get("rollout.extrinsics"),
        chunk,
    )
    expected = outputs["rollout.z"][:, start.shape[1] :]
    assert worst(predicted.squeeze(1).flatten(1, 2), expected) <= 1e-5
    poses = pose.expand(robots, -1, -1)
    for step in range(actions.shape[1]):
        poses = torch.cat([poses, compose(poses[:, -1:], actions[:, step : step + 1])], dim=1)
    assert worst(poses, outputs["rollout.poses"]) <= 1e-6


def test_causal_mask_parity() -> None:
    reference = fixture("masks_and_rope")["outputs"]
    for name, frames, tokens in (
        ("T1_H4_W4_add2", 1, 18),
        ("T3_H2_W3_add2", 3, 8),
        ("T3_H2_W3_add3", 3, 9),
        ("T4_H1_W1_add2", 4, 3),
    ):
        assert torch.equal(frame_causal_mask(frames, tokens, torch.device("cpu")), reference[name])


def uncached_rollout(
    predictor: ActionPredictor,
    latents: Tensor,
    states: Tensor,
    past_actions: Tensor,
    actions: Tensor,
    extrinsics: Tensor | None,
) -> Tensor:
    """The slow way: for every step of every sample, the whole prefix again."""
    samples, time = actions.shape[1:3]
    results = []
    for sample in range(samples):
        seen, poses, done = latents, states, past_actions
        for step in range(time):
            done = torch.cat([done, actions[:, sample, step : step + 1]], dim=1)
            frames = seen.shape[1]
            camera = None
            if extrinsics is not None:
                last = min(frames, extrinsics.shape[1])
                held = extrinsics[:, last - 1 :][:, :1].expand(-1, frames - last, -1)
                camera = torch.cat([extrinsics[:, :last], held], dim=1)
            predicted = predictor(seen.flatten(1, 2), done, poses, camera)
            newest = normalize(predicted.unflatten(1, (frames, -1))[:, -1:])
            seen = torch.cat([seen, newest], dim=1)
            poses = torch.cat([poses, compose(poses[:, -1:], done[:, -1:])], dim=1)
        results.append(seen[:, latents.shape[1] :])
    return torch.stack(results, dim=1)


def random_start(
    config: ActionPredictorConfig, history: int, time: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    latents = normalize(torch.randn(2, history, config.frame_tokens, config.latent_width, dtype=dtype))
    states, past = torch.rand(2, history, 7, dtype=dtype), 0.1 * torch.randn(2, history - 1, 7, dtype=dtype)
    return latents, states, past, 0.1 * torch.randn(2, 3, time, 7, dtype=dtype)


@pytest.mark.parametrize("config", [ACTION_PREDICTOR, WITH_CAMERA], ids=["poses", "camera"])
@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("time", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@torch.inference_mode()
def test_cached_rollout_equals_the_uncached_one(
    config: ActionPredictorConfig, history: int, time: int, dtype: torch.dtype, allowed: float
) -> None:
    network = action_predictor(config).to(dtype)
    start = random_start(config, history, time, dtype)
    camera = torch.randn(2, history, 6, dtype=dtype) if config.extrinsics else None
    got = rollout(network, *start, camera, chunk=4)
    assert worst(got, uncached_rollout(network, *start, camera)) <= allowed


@torch.inference_mode()
def test_company_does_not_change_a_rollout() -> None:
    network = action_predictor().double()
    latents, states, past, actions = random_start(ACTION_PREDICTOR, 2, 3, torch.float64)
    together = rollout(network, latents, states, past, actions)
    for chunk in (1, 4, 6, 100):
        assert worst(rollout(network, latents, states, past, actions, chunk=chunk), together) <= 1e-12
    alone = rollout(network, latents[1:], states[1:], past[1:], actions[1:, 2:])
    assert worst(alone[0, 0], together[1, 2]) <= 1e-12


@torch.inference_mode()
def test_a_later_action_changes_no_earlier_prediction() -> None:
    network = action_predictor()
    start = random_start(ACTION_PREDICTOR, 2, 4, torch.float32)
    changed = start[3].clone()
    changed[:, :, 2] += 1.0
    before, after = rollout(network, *start), rollout(network, *start[:3], changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2], after[:, :, 2])


def test_a_rollout_lets_gradients_through_to_the_actions() -> None:
    """The gradient of a rollout's sum along a direction is its finite difference."""
    network = action_predictor().double()
    latents, states, past, actions = random_start(ACTION_PREDICTOR, 1, 3, torch.float64)
    weights, direction, step = torch.randn(2, 3, 3, 6, 32).double(), torch.randn_like(actions), 1e-6

    def value(given: Tensor) -> Tensor:
        return (rollout(network, latents, states, past, given, chunk=2) * weights).sum()

    leaf = actions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    with torch.no_grad():
        slope = (value(actions + step * direction) - value(actions - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)


@torch.inference_mode()
def test_a_rollout_in_bfloat16_stays_near_the_float32_one() -> None:
    network = action_predictor()
    latents, states, past, actions = random_start(ACTION_PREDICTOR, 2, 2, torch.float32)
    exact = rollout(network, latents, states, past, actions)
    rough = rollout(network.to(torch.bfloat16), latents.to(torch.bfloat16), states, past, actions)
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - exact).square().mean().sqrt()) < 0.05


def test_chunks_shrink_with_the_horizon_and_never_vanish() -> None:
    with torch.device("meta"):
        network = ActionPredictor(ActionPredictorConfig(latent_width=1408)).to(torch.bfloat16)
    sizes = [chunk_size(network, 1, time, 16 << 30) for time in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 8
    assert chunk_size(network, 1, 4, 0) == 1


def test_contexts_that_disagree_are_refused() -> None:
    latents, states, past, actions = random_start(ACTION_PREDICTOR, 2, 1, torch.float32)
    with pytest.raises(ValueError, match="got 2 latents, 1 states and 1 past actions"):
        rollout(action_predictor(), latents, states[:, :1], past, actions)
    with pytest.raises(ValueError, match="x: must hold 3 x 6 tokens"):
        action_predictor()(torch.zeros(1, 12, 32), torch.zeros(1, 3, 7), torch.zeros(1, 3, 7))
    with pytest.raises(ValueError, match="extrinsics: must be given to this model"):
        action_predictor(WITH_CAMERA)(torch.zeros(1, 6, 32), torch.zeros(1, 1, 7), torch.zeros(1, 1, 7))


def test_import_of_an_acausal_predictor_is_refused() -> None:
    with pytest.raises(CheckpointError, match="setting is_frame_causal must be true, got False"):
        ActionPredictor.from_reference({"embed_dim": 32, "is_frame_causal": False}, {})
