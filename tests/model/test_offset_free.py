"""Predictions corrected by what a model gets wrong about rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import registry
from model.compact import CompactWorldModel
from model.offset_free import OffsetFreeModel
from model.package import PackageError, write_package
from planner.world_model import shared_rollout
from tests.support.model.compact_packages import tiny_config

CPU = torch.device("cpu")
REST = torch.tensor([0.0, 0.25])


@pytest.fixture
def model(tmp_path: Path) -> CompactWorldModel:
    made = CompactWorldModel.random(tmp_path / "tiny", tiny_config(), seed=0)
    with torch.no_grad():  # the gates of the adaptive norms start at zero, where no action would matter
        for block in made._network.predictor.blocks:
            block.modulation.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return made


def seen(model: CompactWorldModel) -> torch.Tensor:
    images = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return model.encode(images)[0]


def actions(samples: int = 4) -> torch.Tensor:
    return torch.randn(1, samples, 6, 2, generator=torch.Generator().manual_seed(2))


def test_rest_leaves_the_scene_as_it_is_seen(model: CompactWorldModel) -> None:
    corrected, now = OffsetFreeModel(model, REST), seen(model)
    still = corrected.rollout(corrected.context([now], None), REST.expand(1, 1, 6, 2))
    torch.testing.assert_close(still, now.expand(1, 1, 3, 8), atol=1e-6, rtol=0)
    bare = model.rollout(model.context([now], None), REST.expand(1, 1, 6, 2))
    assert float((bare - now).abs().max()) > 1e-2


def test_what_actions_change_against_rest_is_the_models(model: CompactWorldModel) -> None:
    corrected, now = OffsetFreeModel(model, REST), seen(model)
    inner = model.context([now], None)
    change = model.rollout(inner, actions()) - model.rollout(inner, REST.expand(1, 1, 6, 2))
    found = corrected.rollout(corrected.context([now], None), actions())
    torch.testing.assert_close(found - now, change, atol=1e-6, rtol=0)


def test_what_samples_share_is_still_predicted_once_and_to_the_same_end(model: CompactWorldModel) -> None:
    corrected = OffsetFreeModel(model, REST)
    context = corrected.context([seen(model)], None)
    candidates = actions(3)
    candidates[:, 1:, :4] = candidates[:, :1, :4]  # two model steps alike, then each for itself
    alike = ((0, 0, 0), (0, 0, 1), (0, 0, 2))
    shared = shared_rollout(corrected, context, candidates, alike)
    torch.testing.assert_close(shared, corrected.rollout(context, candidates), atol=1e-5, rtol=0)


def test_robots_in_one_batch_are_corrected_each_by_its_own_error(model: CompactWorldModel) -> None:
    corrected, now = OffsetFreeModel(model, REST), seen(model)
    contexts = [corrected.context([latent], None) for latent in (now, now + 1)]
    together = corrected.rollout(
        tuple(torch.cat(parts) for parts in zip(*contexts, strict=True)), actions().expand(2, -1, -1, -1)
    )
    for row, context in enumerate(contexts):
        torch.testing.assert_close(together[row : row + 1], corrected.rollout(context, actions()), atol=1e-5, rtol=0)


def test_a_package_says_that_rest_holds_and_what_rest_is(tmp_path: Path, model: CompactWorldModel) -> None:
    config = tiny_config()
    assert config.action is not None
    weights = model.package.weights()
    holding = replace(config, action=replace(config.action, rest=(0.0, 0.25), rest_holds=True))
    write_package(tmp_path / "holding", holding, weights, "# holding\n")
    loaded = registry.load(str(tmp_path / "holding"), CPU)
    assert isinstance(loaded, OffsetFreeModel)
    assert torch.equal(loaded.rest, REST)
    assert isinstance(loaded.to_precision(torch.bfloat16), OffsetFreeModel)
    assert isinstance(registry.load(str(model.package.folder), CPU), CompactWorldModel)


def test_rest_is_zero_the_nearest_bound_or_what_is_stated() -> None:
    action = tiny_config().action
    assert action is not None
    assert action.at_rest == (0.0, 0.0)
    assert replace(action, low=(0.2, -2.0), high=(0.9, -0.5)).at_rest == (0.2, -0.5)
    assert replace(action, rest=(0.0, 0.25)).at_rest == (0.0, 0.25)
    with pytest.raises(PackageError, match=r"action.rest of b must lie in -2..2, got 3"):
        replace(action, rest=(0.0, 3.0))
