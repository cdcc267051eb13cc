"""CameraYawWorldModel cameras: the fit on moves with a known turn, and the wrapper against the bare model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from model.camera_yaw import CameraYawWorldModel, fit_camera_yaw, rotation, turns
from model.compact import CompactWorldModel
from tests.support.model.compact_packages import tiny_config

CPU = torch.device("cpu")


def moves(count: int) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("degrees", [-170.0, -35.0, 0.0, 20.0, 90.0])
def test_a_known_turn_is_found_and_explains_everything(degrees: float) -> None:
    angle = math.radians(degrees)
    understood = moves(6)
    found = fit_camera_yaw(understood @ rotation(angle, CPU)[0].T, understood)
    assert found.angle_rad == pytest.approx(angle, abs=1e-6)
    assert found.residual < 1e-6
    assert found.residual_before == pytest.approx(2 * abs(math.sin(angle / 2)) * moves(6).square().sum(1).mean().sqrt())


def test_the_residual_is_what_noise_leaves_and_no_other_turn_leaves_less() -> None:
    understood = moves(200)
    noise = 0.1 * torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    done = understood @ rotation(0.6, CPU)[0].T + noise
    found = fit_camera_yaw(done, understood)
    assert found.angle_rad == pytest.approx(0.6, abs=0.02)
    assert found.residual == pytest.approx(0.1 * math.sqrt(2), rel=0.1)
    for other in torch.linspace(-3, 3, 61).tolist():
        left = (done - understood @ rotation(other, CPU)[0].T).square().sum(1).mean().sqrt()
        assert float(left) >= found.residual - 1e-6


def test_the_models_are_asked_about_actions_turned_back(tmp_path: Path) -> None:
    model = CompactWorldModel.random(tmp_path / "tiny", tiny_config(), seed=0)
    with torch.no_grad():  # the gates of the adaptive norms start at zero, where no action would matter
        for block in model._network.predictor.blocks:
            block.modulation.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    context = model.context(list(model.encode(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))), None)
    given = torch.randn(1, 3, 4, 2, generator=torch.Generator().manual_seed(2))
    turn = rotation(0.7, CPU)
    seen = CameraYawWorldModel(model).rollout((turn, *context), given @ turn[0].T)
    torch.testing.assert_close(seen, model.rollout(context, given), atol=1e-5, rtol=0)
    straight = CameraYawWorldModel(model).rollout((rotation(0.0, CPU), *context), given)
    assert torch.equal(straight, model.rollout(context, given))


def test_only_actions_with_x_and_y_first_turn() -> None:
    assert turns(("x", "y", "z"))
    assert not turns(("shoulder", "elbow"))
    assert not turns(("y", "x"))
