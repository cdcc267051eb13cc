"""Compact training on a world that is one moving dot: it learns, and resumes exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from presage.limits import ActionLimits

from model.compact.network import CompactConfig, CompactNetwork
from model.package import PackageError, read_package
from model.registry import load
from tests.support.training.dots import RECIPE, dot_episodes, ignore, run, windy_episodes
from training.compact.objective import Losses, losses
from training.compact.train import TrainProgress, train
from training.loop import DivergedError


def test_a_training_ends_in_a_package_that_loads_and_predicts(tmp_path: Path) -> None:
    log = run(RECIPE, tmp_path / "dot")
    package = read_package(tmp_path / "dot")
    assert [line.step for line in log] == [1, 2, 3, 4, 5, 6]
    assert package.config.training["command"] == "test"
    assert len(package.config.training["probe_r2"]) == 2
    model = load(str(tmp_path / "dot"), torch.device("cpu"))
    assert model.encode(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 16)
    assert not (tmp_path / "dot" / "checkpoint.pt").exists()


def test_a_resumed_training_has_the_same_losses_and_weights(tmp_path: Path) -> None:
    straight = run(RECIPE, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path / "resumed", stop_after=5)  # after the checkpoint at step 3
    resumed = run(RECIPE, tmp_path / "resumed")
    assert [line.step for line in resumed] == [4, 5, 6]
    for one, other in zip(straight[3:], resumed, strict=True):
        assert (one.prediction_loss, one.regularizer) == (other.prediction_loss, other.regularizer)
    assert read_package(tmp_path / "straight").weights_digest == read_package(tmp_path / "resumed").weights_digest


def test_limits_are_part_of_the_package_and_stay_in_one_that_is_trained_from_it(tmp_path: Path) -> None:
    stated = ActionLimits(slew=(0.5, 1.0), frozen=("down",))
    run(replace(RECIPE, limits=stated), tmp_path / "first")
    first = read_package(tmp_path / "first")
    assert first.config.action is not None
    assert first.config.action.limits == stated
    train(RECIPE, dot_episodes(), "dot", tmp_path / "second", ignore, provenance={}, initial=first)
    second = read_package(tmp_path / "second").config.action
    assert second is not None
    assert second.limits == stated
    with pytest.raises(PackageError, match=r"action\.limits\.frozen\[0\] must be one of down, right, got up"):
        run(replace(RECIPE, limits=ActionLimits(frozen=("up",))), tmp_path / "third")


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path / "dot", stop_after=4)
    with pytest.raises(ValueError, match="made with other settings or recordings: recipe"):
        run(replace(RECIPE, learning_rate=1e-4), tmp_path / "dot")


def test_a_checkpoint_of_other_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path / "dot", stop_after=4)
    degrees = replace(dot_episodes(), actions=dot_episodes().actions * np.float32(57.29578))
    with pytest.raises(ValueError, match="made with other settings or recordings: recordings was"):
        run(RECIPE, tmp_path / "dot", episodes=degrees)


def test_a_frozen_encoder_stays_and_its_predictor_learns(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "first")
    first = read_package(tmp_path / "first")
    alone, log = replace(RECIPE, steps=60, frozen_encoder=True), list[TrainProgress]()
    train(alone, dot_episodes(), "dot", tmp_path / "next", log.append, provenance={}, initial=first)
    assert log[-1].prediction_loss < 0.7 * log[0].prediction_loss
    polished = read_package(tmp_path / "next").weights()
    for name, weight in first.weights().items():
        assert name.startswith("predictor.") or torch.equal(polished[name], weight), name
    assert not torch.equal(polished["predictor.latent_out.weight"], first.weights()["predictor.latent_out.weight"])


def test_overfitting_shows_in_the_loss_of_held_out_episodes(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "first")
    learning = replace(RECIPE, steps=300, frozen_encoder=True, learning_rate=3e-3, held_out=16, checkpoint_every=150)
    ratios = {}
    for name, count in (("four", 20), ("many", 216)):
        log: list[TrainProgress] = []
        made = tmp_path / name
        train(
            learning,
            dot_episodes(count),
            "dot",
            made,
            log.append,
            provenance={},
            initial=read_package(tmp_path / "first"),
        )
        assert [line.step for line in log if line.held_out_loss is not None] == [150, 300]
        last = log[-1]
        assert last.held_out_loss is not None
        ratios[name] = last.held_out_loss / last.prediction_loss
        told = read_package(made).config.training
        assert (told["loss"], told["held_out_loss"]) == (round(last.prediction_loss, 4), round(last.held_out_loss, 4))
    assert ratios["four"] > 2 * ratios["many"], ratios


def test_a_head_reads_where_a_token_stands_only_if_it_has_places(tmp_path: Path) -> None:
    """Tokens exchanged: the mean is the same, what is read in its place is not."""
    tokens = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    shapes = CompactConfig(action_width=2, latent=8, encoder_width=32, encoder_depth=1)
    for placed in (0, 4):
        network = CompactNetwork(replace(shapes, placed_tokens=placed)).eval()
        moved = (network.pool(tokens) - network.pool(tokens.flip(1))).abs().max().item()
        assert (moved < 1e-5) == (placed == 0)


def test_what_a_robot_measures_tells_a_prediction_what_no_frame_shows(tmp_path: Path) -> None:
    windy = windy_episodes()
    recipe = replace(RECIPE, steps=250, horizon=3, learning_rate=3e-3)
    blind = run(recipe, tmp_path / "blind", episodes=windy)
    feeling = run(replace(recipe, proprioception=True), tmp_path / "feeling", episodes=windy)
    tails = [np.mean([line.prediction_loss for line in log[-20:]]) for log in (blind, feeling)]
    assert tails[1] < 0.9 * tails[0], tails
    package = read_package(tmp_path / "feeling")
    assert package.config.proprioception_names == ("wind", "constant")
    assert package.weights()["predictor.proprioception.std"].tolist() == pytest.approx(
        [windy.proprioception[..., 0].std(), 1.0], rel=0.1
    )
    model = load(str(tmp_path / "feeling"), torch.device("cpu"))
    latents = list(model.encode(torch.from_numpy(windy.frames[0, :1])))
    rest = torch.zeros(1, 1, 6, 2)
    against, behind = (model.rollout(model.context(latents, torch.tensor([[w, 7.0]])), rest) for w in (-1.5, 1.5))
    assert (against - behind).abs().max() > 0.1


def test_a_slow_basis_changes_what_is_far_and_nothing_else(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "plain")
    run(replace(RECIPE, slow_floor=0.1), tmp_path / "slow")
    plain, slow = (load(str(tmp_path / name), torch.device("cpu")) for name in ("plain", "slow"))
    frames = torch.from_numpy(dot_episodes().frames[:8].reshape(-1, 32, 32, 3).copy())
    before, after = plain.encode(frames), slow.encode(frames)
    basis = torch.linalg.lstsq(before, after).solution
    torch.testing.assert_close(before @ basis, after, rtol=0.05, atol=0.05)
    scales = torch.linalg.svdvals(basis)
    assert scales[0] / scales[-1] > 1.2
    ahead = [
        model.rollout(model.context([latents[0]], None), torch.ones(1, 1, 4, 2))
        for model, latents in ((plain, before), (slow, after))
    ]
    torch.testing.assert_close(ahead[0] @ basis, ahead[1], rtol=0.05, atol=0.05)


def test_latents_can_be_told_what_no_action_moves(tmp_path: Path) -> None:
    """How bright the dot is stays as it is, and hardly counts in a prediction; labeled, it is told well."""
    rng = np.random.default_rng(1)
    dots = dot_episodes(count=256)
    bright = rng.uniform(0.3, 1.0, (256, 1)).astype(np.float32)
    episodes = replace(
        dots,
        frames=(dots.frames * bright[..., None, None, None]).astype(np.uint8),
        probe_targets=np.repeat(bright[:, None], dots.frames.shape[1], axis=1),
    )
    recipe = replace(RECIPE, steps=120, learning_rate=3e-3, held_out=64, checkpoint_every=120)
    plain = run(recipe, tmp_path / "plain", episodes=episodes)
    told = run(replace(recipe, labels=3.0), tmp_path / "told", episodes=episodes)
    assert all(line.label_loss == 0 for line in plain)
    first, last = (np.mean([line.label_loss for line in part]) for part in (told[:10], told[-10:]))
    assert last < 0.6 * first
    assert 1 - told[-1].probe_r2[0] < 0.5 * (1 - plain[-1].probe_r2[0])
    assert read_package(tmp_path / "told").weights().keys() == read_package(tmp_path / "plain").weights().keys()


def test_a_normed_stem_is_part_of_the_package(tmp_path: Path) -> None:
    run(replace(RECIPE, normed_stem=True), tmp_path / "dot")
    weights = read_package(tmp_path / "dot").weights()
    norms = [name for name in weights if "patch_embed.norms" in name and "running" in name]
    assert len(norms) == 8  # mean and variance after each of four convolutions
    network = CompactNetwork(CompactConfig(**read_package(tmp_path / "dot").config.network))
    network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    frames = torch.rand(3, 3, 32, 32)
    model = load(str(tmp_path / "dot"), torch.device("cpu"))
    shown = (frames * 255).to(torch.uint8).permute(0, 2, 3, 1)
    alone = torch.cat([model.encode(frame[None]) for frame in shown])
    torch.testing.assert_close(model.encode(shown), alone)  # at rest, no frame depends on its company


def test_proprioception_that_was_not_recorded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="proprioception must be recorded, got none in a dot"):
        run(replace(RECIPE, proprioception=True), tmp_path / "dot")


def test_batches_that_are_accumulated_count_as_one(tmp_path: Path) -> None:
    """Without what sees one batch at a time, two halves have the gradient of the whole, and the first is not lost."""
    log = run(replace(RECIPE, accumulate=2), tmp_path / "dot")
    whole = run(RECIPE, tmp_path / "whole")
    assert [line.step for line in log] == [line.step for line in whole]
    assert log[0].prediction_loss != whole[0].prediction_loss  # the mean of two batches


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    straight = run(RECIPE, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path / "dot", stop_after=5)
    before = (tmp_path / "dot" / "checkpoint.pt").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.compact.train.losses", lambda *given, **named: spoilt(losses(*given, **named)))
        with pytest.raises(DivergedError, match="step 4 is not finite"):
            run(RECIPE, tmp_path / "dot")
    assert (tmp_path / "dot" / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "dot" / "weights.safetensors").exists()
    assert run(RECIPE, tmp_path / "dot")[-1].prediction_loss == straight[-1].prediction_loss


def spoilt(found: Losses) -> Losses:
    return replace(found, prediction=found.prediction * torch.nan)


def test_training_finds_the_dot(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=200, checkpoint_every=200, bfloat16=False, batch=32, held_out=256)
    log = run(recipe, tmp_path / "dot", episodes=dot_episodes(count=512))
    assert min(log[-1].probe_r2) > 0.8
    assert log[-1].prediction_loss < 0.5 * log[20].prediction_loss
    assert log[-1].latent_std > 0.5
