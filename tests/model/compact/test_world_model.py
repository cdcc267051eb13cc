"""The compact world model: causal, indifferent to company, and loaded whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.compact import CompactConfig, CompactNetwork, CompactWorldModel
from model.compact.sharing import sharing
from model.package import PackageError, read_package
from model.registry import load
from tests.support.model.compact_packages import tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> CompactWorldModel:
    world_model = CompactWorldModel.random(tmp_path / "tiny", tiny_config(), seed=0)
    with torch.no_grad():  # the gates of the adaptive norms start at zero, where no action would matter
        for block in world_model._network.predictor.blocks:
            block.modulation.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return world_model


def frames(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def actions(batch: int, samples: int, time: int) -> torch.Tensor:
    return torch.randn(batch, samples, time, 2, generator=torch.Generator().manual_seed(3))


def test_a_later_action_changes_no_earlier_prediction(model: CompactWorldModel) -> None:
    context = model.context(list(model.encode(frames(1))), None)
    given = actions(1, 4, 10)
    changed = given.clone()
    changed[:, :, 6:] += 1.0
    before, after = model.rollout(context, given), model.rollout(context, changed)
    assert before.shape == (1, 4, 5, 8)
    torch.testing.assert_close(before[:, :, :3], after[:, :, :3], rtol=0, atol=0)
    assert (before[:, :, 3:] - after[:, :, 3:]).abs().amax(dim=-1).min() > 1e-4


def test_every_action_of_a_block_matters(model: CompactWorldModel) -> None:
    context = model.context(list(model.encode(frames(1))), None)
    given = actions(1, 1, 2)
    for position in range(2):
        for dimension in range(2):
            changed = given.clone()
            changed[0, 0, position, dimension] += 1.0
            assert (model.rollout(context, given) - model.rollout(context, changed)).abs().max() > 1e-4


def test_a_rollout_longer_than_one_call_continues_from_its_last_prediction(model: CompactWorldModel) -> None:
    context = model.context(list(model.encode(frames(1))), None)
    given = actions(1, 2, 12)
    whole = model.rollout(context, given)
    first = model.rollout(context, given[:, :, :6])
    for sample in range(2):
        second = model.rollout((first[:, sample, -1],), given[:, sample : sample + 1, 6:])
        torch.testing.assert_close(whole[:, sample : sample + 1, 3:], second)


def test_proprioception_is_part_of_a_rollouts_start_and_of_no_later_call(tmp_path: Path) -> None:
    config = replace(tiny_config(), proprioception_names=("place", "speed", "load"))
    feeling = replace(config, network={**config.network, "proprioception": 3})
    model = CompactWorldModel.random(tmp_path / "feeling", feeling, seed=0)
    with torch.no_grad():
        proprioception = model._network.predictor.proprioception
        assert proprioception is not None
        proprioception.project.weight.normal_(generator=torch.Generator().manual_seed(1))
        proprioception.unmeasured.fill_(0.3)
    latents, given = list(model.encode(frames(1))), actions(1, 2, 12)
    history = torch.tensor([[9.0, 9.0, 9.0], [0.1, 0.2, 0.3]])
    whole = model.rollout(model.context(latents, history), given)
    newest = model.rollout(model.context(latents, history[1:]), given)
    torch.testing.assert_close(whole, newest, rtol=0, atol=0)
    assert (whole - model.rollout(model.context(latents, history[:1]), given)).abs().max() > 1e-3
    start, blocks = whole[:, 0, 2], given[:, :1, 6:]
    on = model.rollout((start, torch.full((1, 3), torch.nan)), blocks)
    torch.testing.assert_close(whole[:, :1, 3:], on)
    for wrong, found in ((None, "none"), (torch.zeros(1, 2), "2 numbers")):
        with pytest.raises(ValueError, match=f"proprioception: must be .*'place'.*got {found}"):
            model.context(latents, wrong)


def test_names_of_proprioception_that_the_network_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        PackageError, match="network.proprioception must be the number of proprioception_names, 1, got 0"
    ):
        CompactWorldModel.random(tmp_path / "odd", replace(tiny_config(), proprioception_names=("place",)), seed=0)


def test_a_rollout_from_an_encoding_can_be_differentiated(model: CompactWorldModel) -> None:
    given = actions(1, 2, 4).requires_grad_()
    model.rollout(model.context(list(model.encode(frames(1))), None), given).square().sum().backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    assert (given.grad != 0).all()


def test_company_changes_a_prediction_by_rounding_only(model: CompactWorldModel) -> None:
    latents = model.encode(frames(3))
    given = actions(3, 5, 6)
    together = model.rollout((latents,), given)
    for robot in range(3):
        alone = model.rollout((latents[robot : robot + 1],), given[robot : robot + 1])
        torch.testing.assert_close(together[robot : robot + 1], alone, rtol=1e-5, atol=1e-5)


def alike_at_random(samples: int, steps: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Every step of a sample is its own, or an earlier sample's."""
    drawn = torch.rand(samples, steps, generator=torch.Generator().manual_seed(seed))
    firsts: list[tuple[int, ...]] = []
    for sample in range(samples):
        chosen = [int(drawn[sample, step] * 2 * (sample + 1)) for step in range(steps)]
        firsts.append(tuple(sample if at >= sample else firsts[at][step] for step, at in enumerate(chosen)))
    return tuple(firsts)


@pytest.mark.parametrize("steps", [1, 3, 6])  # 6 are predicted in two calls
@pytest.mark.parametrize("proprioception", [False, True])
def test_what_samples_share_is_predicted_as_for_each_alone(tmp_path: Path, steps: int, proprioception: bool) -> None:
    config = tiny_config()
    if proprioception:
        config = replace(config, proprioception_names=("p",), network={**config.network, "proprioception": 1})
    world_model = CompactWorldModel.random(tmp_path / "tiny", config, seed=0)
    with torch.no_grad():
        for block in world_model._network.predictor.blocks:
            block.modulation.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    latents = world_model.encode(frames(2))
    context = (latents, torch.tensor([[0.3], [torch.nan]])) if proprioception else (latents,)
    for seed in range(5):
        alike = alike_at_random(9, steps, seed)
        given = actions(2, 9, 2 * steps).view(2, 9, steps, 2, 2)
        rows, columns = torch.tensor(alike), torch.arange(steps)
        given = given[:, rows, columns].flatten(2, 3)
        shared = world_model.rollout_shared(context, given, alike)
        torch.testing.assert_close(shared, world_model.rollout(context, given), rtol=1e-4, atol=1e-5)


def test_what_was_shared_while_serving_can_be_differentiated_later(model: CompactWorldModel) -> None:
    context = model.context(list(model.encode(frames(1))), None)
    alike = ((0, 0), (0, 1), (0, 2))
    given = actions(1, 3, 4)
    given[:, 1:, :2] = given[:, :1, :2]
    with torch.inference_mode():
        model.rollout_shared(context, given, alike)
    slopes = []
    for rollout in (lambda a: model.rollout(context, a), lambda a: model.rollout_shared(context, a, alike)):
        asked = given.clone().requires_grad_()
        (slope,) = torch.autograd.grad(rollout(asked)[:, :, 1].square().sum(), asked)
        slopes.append(torch.cat([slope[:, :, :2].sum(1), slope[:, :, 2:].flatten(1, 2)], dim=1))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)


def test_what_samples_share_is_computed_once() -> None:
    nudged = [(0,) * 5, *(tuple(1 + at if step == at else 0 for step in range(5)) for at in range(5))]
    shared = sharing(tuple(nudged), CPU)
    assert shared.action_rows.tolist() == [0, 1, 2, 3, 4, 5, 11, 17, 23, 29]  # the first sample's, and one each
    assert len(shared.rows) == 5 + 5 + 4 + 3 + 2 + 1  # from where each parts from the first
    assert shared.beginning_of.view(6, 5)[2].tolist() == [0, *range(10, 14)]


def test_a_clip_embeds_as_its_frames(model: CompactWorldModel) -> None:
    clip = frames(5)
    embedding = model.embed_clip(clip)
    assert embedding.tokens.shape == (5, 4, 16)
    torch.testing.assert_close(embedding.per_frame, model.encode(clip), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(embedding.pooled, model.encode(clip).mean(dim=0), rtol=1e-5, atol=1e-5)


def test_time_must_be_a_multiple_of_the_block(model: CompactWorldModel) -> None:
    with pytest.raises(ValueError, match="multiple of the block 2, got 3"):
        model.rollout(model.context(list(model.encode(frames(1))), None), actions(1, 1, 3))


def test_a_package_loads_to_the_same_numbers(tmp_path: Path, model: CompactWorldModel) -> None:
    again = CompactWorldModel.random(tmp_path / "again", tiny_config(), seed=0)
    loaded = load(str(tmp_path / "again"), CPU)
    torch.testing.assert_close(again.encode(frames(2)), loaded.encode(frames(2)), rtol=0, atol=0)
    assert len(loaded.package.weights_digest) == 64


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    CompactWorldModel.random(folder, tiny_config(), seed=0)
    weights = load_file(folder / "weights.safetensors")
    if damage == "missing":
        del weights["predictor.latent_in.weight"]
    elif damage == "unknown":
        weights["predictor.latent_in.surprise"] = torch.zeros(1)
    else:
        weights["predictor.latent_in.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(PackageError, match=r"predictor\.latent_in"):
        load(str(folder), CPU)


def test_an_unknown_config_key_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    CompactWorldModel.random(folder, tiny_config(), seed=0)
    config = json.loads((folder / "config.json").read_text())
    config["image"]["color"] = "blue"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PackageError, match="image has an unknown key: color"):
        read_package(folder)


def test_a_package_survives_a_round_trip_through_its_files(tmp_path: Path) -> None:
    CompactWorldModel.random(tmp_path / "tiny", tiny_config(), seed=0)
    assert read_package(tmp_path / "tiny").config == tiny_config()


def test_whoever_may_read_a_packages_config_may_read_its_weights(tmp_path: Path) -> None:
    CompactWorldModel.random(tmp_path / "tiny", tiny_config(), seed=0)
    modes = {(tmp_path / "tiny" / name).stat().st_mode for name in ("config.json", "weights.safetensors", "README.md")}
    assert len(modes) == 1


def test_an_action_width_that_contradicts_the_block_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    wrong = replace(config, network={**config.network, "action_width": 6})
    with pytest.raises(PackageError, match="block x dimensions = 4, got 6"):
        CompactWorldModel.random(tmp_path / "wrong", wrong, seed=0)


def test_a_name_that_is_no_package_says_what_there_is() -> None:
    with pytest.raises(PackageError, match="neither built in"):
        load("no-such-package", CPU)


def test_the_network_is_as_wide_as_its_config_says() -> None:
    network = CompactNetwork(CompactConfig(action_width=10))
    assert network.encode(torch.zeros(2, 3, 64, 64)).shape == (2, 128)
    assert network.tokens(torch.zeros(2, 3, 64, 64)).shape == (2, 16, 128)
