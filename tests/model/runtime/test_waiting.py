"""Rollouts of both families that never wait for the device they run on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.camera_yaw import CameraYawWorldModel
from model.compact.world_model import CompactWorldModel
from model.registry import as_trained, find
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from model.vjepa2.encoder import Encoder
from model.vjepa2.world_model import VJepa2WorldModel
from tests.support.model.tiny_vjepa2 import ENCODER
from tests.support.planner.pretended import DEVICE, carry, pretended_device

SHAPE = ActionPredictorConfig(latent_width=32, width=24, depth=2, heads=2, mlp_hidden=48, grid=(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("differentiated", [False, True])
def test_a_compact_rollout_waits_for_nothing(
    dtype: torch.dtype, differentiated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = as_trained(find("arm"), torch.device("cpu")).to_precision(dtype)
    assert isinstance(world, CompactWorldModel)
    shape = world.package.config.latent_shape
    with pretended_device(monkeypatch) as waits, torch.device(DEVICE):
        for network in (world._network, world._normalizer):
            carry(network)
        actions = torch.empty(2, 9, 10 * world.block, 2, requires_grad=differentiated)
        predicted = world.rollout((torch.empty(2, *shape),), actions)
        assert predicted.shape == (2, 9, 10, *shape)
        if differentiated:
            assert torch.autograd.grad(predicted.sum(), actions)[0].shape == actions.shape
    assert waits.count == 0


@pytest.mark.parametrize("extrinsics", [False, True])
def test_a_vjepa2_rollout_waits_for_nothing(extrinsics: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_device(monkeypatch) as waits, torch.device(DEVICE):
        predictor = ActionPredictor(replace(SHAPE, extrinsics=extrinsics))
        world = CameraYawWorldModel(VJepa2WorldModel(Encoder(ENCODER), predictor, size=(16, 24), chunk=4))
        context = [torch.empty(2, 2, 2), torch.empty(2, 3, 6, 32), torch.empty(2, 3, 7), torch.empty(2, 2, 7)]
        camera = [torch.empty(2, 3, 6)] if extrinsics else []
        predicted = world.rollout((*context, *camera), torch.empty(2, 5, 4, 7))
        assert predicted.shape == (2, 5, 4, 6, 32)
    assert waits.count == 0
