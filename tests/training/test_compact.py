"""Compact training on a world that is one moving dot: it learns, resumes exactly, and keeps episodes apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.catalog import load
from model.compact.network import CompactConfig, CompactNetwork
from model.package import read_package
from training.compact import (
    CompactRecipe,
    DivergedError,
    TrainProgress,
    labelled,
    probe,
    schedule,
    start_from,
    train,
)
from training.episodes import Episodes
from training.objective import Losses, losses
from training.probe import linear_probe
from training.windows import Windows, sample_batch

RECIPE = CompactRecipe(
    steps=6,
    batch=16,
    horizon=2,
    block=2,
    directions=64,
    latent=16,
    encoder_width=32,
    encoder_depth=1,
    predictor_width=36,
    predictor_depth=1,
    held_out=16,
    checkpoint_every=3,
    seed=1,
)


def dot_episodes(count: int = 64, steps: int = 8) -> Episodes:
    """A bright dot that moves by its action; the frame shows where it is."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-3, 3, (count, steps, 2)).astype(np.float32)
    start = rng.uniform(8, 24, (count, 1, 2))
    places = np.clip(np.concatenate([start, start + actions.cumsum(axis=1)], axis=1), 0, 31)
    return Episodes(
        frames=drawn_dots(places),
        actions=actions,
        action_names=("down", "right"),
        action_units=("px", "px"),
        action_low=(-3.0, -3.0),
        action_high=(3.0, 3.0),
        rate_hz=10.0,
        source="a dot",
        probe_targets=(places / 16 - 1).astype(np.float32),
    )


def drawn_dots(places: np.ndarray) -> np.ndarray:
    """Frames `[..., 32, 32, 3]` of a dot at `places` `[..., 2]`."""
    rows, columns = np.mgrid[0:32, 0:32]
    distance = (rows - places[..., 0, None, None]) ** 2 + (columns - places[..., 1, None, None]) ** 2
    grey = (255 * np.exp(-distance / 18)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def windy_episodes(count: int = 128, steps: int = 8) -> Episodes:
    """The dot, and a wind that no frame shows and the robot measures; a second measurement never changes."""
    rng = np.random.default_rng(0)
    still = dot_episodes(count, steps)
    wind = np.broadcast_to(rng.uniform(-1.5, 1.5, (count, 1, 1)), (count, steps + 1, 1))
    start = rng.uniform(12, 20, (count, 1, 2))
    drift = np.concatenate([wind, np.zeros_like(wind)], axis=2) * np.arange(steps + 1)[:, None]
    moved = np.concatenate([np.zeros((count, 1, 2)), 0.3 * still.actions.cumsum(axis=1)], axis=1)
    return replace(
        still,
        frames=drawn_dots(np.clip(start + moved + drift, 0, 31)),
        probe_targets=None,
        proprioception=np.concatenate([wind, np.full_like(wind, 7.0)], axis=2).astype(np.float32),
        proprioception_names=("wind", "constant"),
    )


def run(
    recipe: CompactRecipe, out: Path, stop_after: int | None = None, episodes: Episodes | None = None
) -> list[TrainProgress]:
    log: list[TrainProgress] = []

    def note(line: TrainProgress) -> None:
        log.append(line)
        if line.step == stop_after:
            raise KeyboardInterrupt

    train(recipe, episodes or dot_episodes(), "dot", out, note, provenance={"command": "test"})
    return log


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
        assert (one.prediction_loss, one.regulariser) == (other.prediction_loss, other.regulariser)
    assert read_package(tmp_path / "straight").weights_digest == read_package(tmp_path / "resumed").weights_digest


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path / "dot", stop_after=4)
    with pytest.raises(ValueError, match="another recipe"):
        run(replace(RECIPE, learning_rate=1e-4), tmp_path / "dot")


def test_a_checkpoint_of_other_episodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path / "dot", stop_after=4)
    with pytest.raises(ValueError, match="another recipe"):
        run(RECIPE, tmp_path / "dot", episodes=replace(dot_episodes(), source="other dots"))


def test_a_training_that_starts_from_a_package_has_its_weights(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "first")
    first = read_package(tmp_path / "first")
    still = replace(RECIPE, steps=1, learning_rate=1e-12)  # a step that moves nothing
    train(still, dot_episodes(), "dot", tmp_path / "next", ignore, provenance={}, initial=first)
    went_on = read_package(tmp_path / "next")
    assert first.weights_digest in went_on.config.training["initialised_from"]
    for name, weight in first.weights().items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(went_on.weights()[name], weight, rtol=0, atol=1e-9)


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


def test_what_is_known_by_heart_shows_in_the_loss_of_what_was_held_out(tmp_path: Path) -> None:
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


def test_a_residual_predictor_begins_with_nothing_changes_whatever_it_starts_from(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "first")
    first = read_package(tmp_path / "first")
    shapes = CompactConfig(**{**first.config.network, "residual": True})
    network = CompactNetwork(shapes)
    start_from(network, first)
    latent, actions = torch.randn(3, 16), torch.randn(3, 4, shapes.action_width)
    torch.testing.assert_close(network.predict(latent, actions), latent.unsqueeze(1).expand(3, 4, 16))
    kept = network.predictor.action_in[0].weight
    torch.testing.assert_close(kept, first.weights()["predictor.action_in.0.weight"].float())


def test_a_head_with_places_begins_with_what_the_mean_it_starts_from_says(tmp_path: Path) -> None:
    run(replace(RECIPE, placed=False), tmp_path / "first")
    first = read_package(tmp_path / "first")
    of_means = CompactNetwork(CompactConfig(**first.config.network))
    of_places = CompactNetwork(CompactConfig(**{**first.config.network, "placed_tokens": 4}))
    start_from(of_means, first)
    start_from(of_places, first)
    frames = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(of_places.eval().encode(frames), of_means.eval().encode(frames))
    run(RECIPE, tmp_path / "places")
    places = read_package(tmp_path / "places")
    with pytest.raises(ValueError, match="init_from: dot has placed_tokens 4, this recipe 0"):
        start_from(of_means, places)


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
    assert package.weights()["predictor.felt.std"].tolist() == pytest.approx(
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
    """How bright the dot is stays as it is, and hardly counts in a prediction; labelled, it is told well."""
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


def test_labels_are_measured_in_their_own_spread_where_they_were_recorded() -> None:
    episodes = replace(dot_episodes(3, 4), lengths=np.array([4, 2, 3]))
    assert episodes.probe_targets is not None
    targets = np.concatenate([100.0 + 7.0 * episodes.probe_targets, np.full((3, 5, 1), 5.0)], axis=2)
    targets[1, 3:], targets[2, 4:] = 1e9, np.nan  # never recorded
    labels = labelled(replace(episodes, probe_targets=targets.astype(np.float32))).labels
    assert labels is not None
    recorded = np.concatenate([labels[0], labels[1, :3], labels[2, :4]])
    np.testing.assert_allclose(recorded.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(recorded.std(axis=0), [1.0, 1.0, 0.0], atol=1e-5)
    with pytest.raises(ValueError, match="labels: episodes must say what latents are to tell, got none in a dot"):
        labelled(replace(episodes, probe_targets=None))


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


def test_a_frozen_encoder_without_a_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen_encoder must have a package to start from"):
        run(replace(RECIPE, frozen_encoder=True), tmp_path / "dot")


def test_a_package_of_other_shapes_is_refused_by_the_shape(tmp_path: Path) -> None:
    run(RECIPE, tmp_path / "first")
    first, wider = read_package(tmp_path / "first"), replace(RECIPE, latent=32)
    with pytest.raises(ValueError, match="init_from: dot has latent 16, this recipe 32"):
        train(wider, dot_episodes(), "dot", tmp_path / "next", ignore, provenance={}, initial=first)


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
        patch.setattr("training.compact.losses", lambda *given, **named: spoilt(losses(*given, **named)))
        with pytest.raises(DivergedError, match="step 4 is not finite"):
            run(RECIPE, tmp_path / "dot")
    assert (tmp_path / "dot" / "checkpoint.pt").read_bytes() == before
    assert not (tmp_path / "dot" / "weights.safetensors").exists()
    assert run(RECIPE, tmp_path / "dot")[-1].prediction_loss == straight[-1].prediction_loss


def spoilt(found: Losses) -> Losses:
    return replace(found, prediction=found.prediction * torch.nan)


def ignore(line: TrainProgress) -> None:
    """Nobody watches."""


def test_training_finds_the_dot(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=200, checkpoint_every=200, bfloat16=False, batch=32, held_out=256)
    log = run(recipe, tmp_path / "dot", episodes=dot_episodes(count=512))
    assert min(log[-1].probe_r2) > 0.8
    assert log[-1].prediction_loss < 0.5 * log[20].prediction_loss
    assert log[-1].latent_std > 0.5


def test_windows_never_leave_their_episode_and_pair_actions_with_frames() -> None:
    count, steps = 5, 9
    frames = np.zeros((count, steps + 1, 2, 2, 3), np.uint8)
    frames += (np.arange(count)[:, None] * 16 + np.arange(steps + 1)).astype(np.uint8)[:, :, None, None, None]
    actions = np.arange(count)[:, None] * 16.0 + np.arange(steps)
    episodes = Episodes(
        frames, actions[..., None].astype(np.float32), ("a",), ("m",), (0.0,), (100.0,), 10.0, "numbered"
    )
    windows = Windows(batch=16, horizon=2, block=2, latent=4, directions=3)
    drawn = sample_batch(episodes, windows, torch.Generator().manual_seed(0))
    shown, between = drawn.frames, drawn.actions
    first = shown[:, 0, 0, 0, 0].long()
    assert (shown[:, :, 0, 0, 0].long() == first[:, None] + torch.tensor([0, 2, 4])).all()
    assert (shown[:, 0, 0, 0, 0].long() // 16 == shown[:, -1, 0, 0, 0].long() // 16).all()
    assert (between[:, :, 0].long() == first[:, None] + torch.arange(4)).all()


def test_windows_of_episodes_that_differ_in_length_stay_within_what_was_recorded() -> None:
    lengths = np.array([9, 4, 3, 6])
    frames = np.zeros((4, 10, 2, 2, 3), np.uint8)
    actions = np.full((4, 9, 1), np.float32(1e9))  # what was not recorded would show
    for row, length in enumerate(lengths):
        actions[row, :length, 0] = row * 16 + np.arange(length)
    episodes = Episodes(
        frames, actions, ("a",), ("m",), (0.0,), (100.0,), 10.0, "numbered", probe_targets=None, lengths=lengths
    )
    rows, starts = episodes.draw_windows(4000, 4, torch.Generator().manual_seed(0))
    found, counts = np.unique(rows * 16 + starts, return_counts=True)
    assert found.tolist() == [0, 1, 2, 3, 4, 5, 16, 48, 49, 50]  # every window there is, and no other
    assert counts.min() > 300  # each about as often: 400
    assert episodes.action_spread()[0] < 100
    assert episodes.split(2)[1].lengths.tolist() == [3, 6]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="at least horizon x block = 10 steps, got 9"):
        episodes.draw_windows(1, 10, torch.Generator())


def test_a_probe_sees_only_what_was_recorded() -> None:
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(action_width=2, latent=8, encoder_width=32, encoder_depth=1))
    whole = dot_episodes(count=6)
    frames, targets = whole.frames.copy(), np.asarray(whole.probe_targets).copy()
    frames[:, 6:], targets[:, 6:] = 255, 1e6
    short = replace(whole, frames=frames, probe_targets=targets, lengths=np.full(6, 5))
    cut = replace(whole, frames=whole.frames[:, :6], actions=whole.actions[:, :5], probe_targets=targets[:, :6])
    assert probe(network, short) == probe(network, cut)


def test_the_schedule_rises_and_then_falls_to_zero() -> None:
    factors = [schedule(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.001


def test_a_constant_action_is_named() -> None:
    episodes = dot_episodes()
    actions = episodes.actions.copy()
    actions[..., 1] = 0.5
    with pytest.raises(ValueError, match="action right must vary"):
        replace(episodes, actions=actions)


def test_a_linear_probe_finds_what_is_linear_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    y = torch.stack([x @ torch.arange(6.0), torch.randn(400, generator=generator), torch.full((400,), 3.0)], dim=1)
    found, noise, constant = linear_probe(x[:200], y[:200], x[200:], y[200:])
    assert found > 0.999
    assert noise < 0.1
    assert constant == 0
