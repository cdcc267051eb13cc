"""Proposer and step predictor on the latents of a world that is one moving dot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.package import PackageError, read_package, write_package
from model.proposer import PROPOSER
from model.registry import load
from planner import registry
from planner.proposals import with_proposals
from planner.types import ActionSpace, Problem
from tests.support.training.dots import RECIPE, dot_episodes, run
from training.frozen import proposer, step_predictor
from training.frozen.latent_store import latents_of
from training.frozen.proposer import ProposerProgress, ProposerRecipe
from training.frozen.reading import fit_reading, reading_package, told_episodes, told_latents
from training.frozen.step_predictor import StepPredictorProgress, StepPredictorRecipe
from training.frozen.windows import EncodedEpisodes, draw_hindsight, draw_windows, encoded_episodes

CPU = torch.device("cpu")
PROPOSE = ProposerRecipe(steps=60, batch=64, longest=4, blocks=2, width=32, depth=2, held_out=8, checkpoint_every=20)
STEP = StepPredictorRecipe(steps=60, batch=32, horizon=2, width=32, depth=2, held_out=8, checkpoint_every=20)


@pytest.fixture(scope="module")
def dot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dot") / "package"
    run(RECIPE, folder)
    return folder


@pytest.fixture(scope="module")
def encoded(dot: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedEpisodes:
    episodes = dot_episodes()
    model = load(str(dot), CPU)
    return encoded_episodes(episodes, latents_of(model, episodes, tmp_path_factory.mktemp("latents"), every=2), 2)


def trained_proposer(
    dot: Path, encoded: EncodedEpisodes, out: Path, recipe: ProposerRecipe = PROPOSE, stop: int = 0
) -> list[ProposerProgress]:
    log: list[ProposerProgress] = []

    def note(line: ProposerProgress) -> None:
        log.append(line)
        if line.step == stop:
            raise KeyboardInterrupt

    proposer.train(recipe, encoded, read_package(dot), out, note, source="a dot", provenance={})
    return log


def test_latents_are_those_of_the_model_and_are_encoded_once(dot: Path, tmp_path: Path) -> None:
    episodes, model = dot_episodes(4), load(str(dot), CPU)
    told: list[int] = []
    first = latents_of(model, episodes, tmp_path, every=4, bfloat16=False, progress=lambda done, _: told.append(done))
    assert first.shape == (4, 3, 16)
    exact = model.encode(torch.from_numpy(np.array(episodes.frames[2, 4:5])))
    np.testing.assert_allclose(first[2, 1], exact[0].numpy(), atol=1e-5)
    assert told == [4]
    latents_of(model, episodes, tmp_path, every=4, bfloat16=False, progress=lambda done, _: told.append(done))
    assert told == [4], "found again"
    latents_of(
        model,
        replace(episodes, source="others"),
        tmp_path,
        every=4,
        bfloat16=False,
        progress=lambda d, _: told.append(d),
    )
    assert told == [4, 4]


def test_an_interrupted_encoding_goes_on(dot: Path, tmp_path: Path) -> None:
    episodes, model = dot_episodes(4), load(str(dot), CPU)
    whole = latents_of(model, episodes, tmp_path / "whole", every=4).copy()
    latents_of(model, episodes, tmp_path / "cut", every=4)
    about = tmp_path / "cut" / "latents.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "done": 2}))
    np.testing.assert_array_equal(latents_of(model, episodes, tmp_path / "cut", every=4), whole)


def test_hindsight_pairs_are_of_one_episode_and_as_far_apart_as_they_say(encoded: EncodedEpisodes) -> None:
    numbered = replace(encoded, latents=np.arange(64 * 5, dtype=np.float32).reshape(64, 5, 1).repeat(2, axis=2))
    pairs = draw_hindsight(numbered, 200, longest=6, time=4, generator=torch.Generator().manual_seed(0))
    apart = (pairs.goal - pairs.latent)[:, 0] * encoded.every
    torch.testing.assert_close(apart, pairs.steps_to_go)
    assert set(pairs.steps_to_go.tolist()) == {2.0, 4.0, 6.0}
    row, place = divmod(int(pairs.latent[0, 0]), 5)
    known = min(4, 8 - 2 * place)
    np.testing.assert_array_equal(pairs.actions[0, :known], encoded.actions[row, 2 * place : 2 * place + known])


def test_episodes_too_short_for_hindsight_are_named(encoded: EncodedEpisodes) -> None:
    short = replace(encoded, lengths=np.ones(64, np.int64))
    with pytest.raises(ValueError, match="at least 2 steps long for hindsight .* got 1"):
        draw_hindsight(short, 8, longest=4, time=4, generator=torch.Generator())
    with pytest.raises(ValueError, match="at least 8 steps long, got 1"):
        draw_windows(short, 8, 4, 2, torch.Generator())


def test_a_proposer_learns_and_is_found_in_its_package(dot: Path, encoded: EncodedEpisodes, tmp_path: Path) -> None:
    log = trained_proposer(dot, encoded, tmp_path)
    assert log[-1].held_out_loss is not None
    assert log[-1].loss < log[0].loss
    package = read_package(tmp_path)
    assert package.weights_digest == read_package(dot).weights_digest
    assert package.config.training["proposer"]["episodes"] == "a dot"
    model = load(str(tmp_path), CPU)
    assert model.proposer is not None
    action = package.config.action
    assert action is not None
    space = ActionSpace(action.names, action.units, action.low, action.high, action.rate_hz)
    goal = torch.from_numpy(encoded.latents[0, 2])
    problem = Problem(model.context([torch.from_numpy(encoded.latents[0, 0])], None), goal, space, seed=0)
    for name in ("policy", "cem"):
        optimizer = registry.optimizer(name, 16, 2, 4, horizon=2)
        given = with_proposals(problem, model.proposer, model, optimizer)
        assert given.proposals is not None
        assert given.proposals.shape == (1 if name == "policy" else 2, 4, 2)
        plan = optimizer.plan(model, given)
        assert plan.proposed == 1 if name == "policy" else plan.proposed <= 1


def test_a_resumed_training_of_a_proposer_is_the_same(dot: Path, encoded: EncodedEpisodes, tmp_path: Path) -> None:
    straight = trained_proposer(dot, encoded, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        trained_proposer(dot, encoded, tmp_path / "resumed", stop=50)
    resumed = trained_proposer(dot, encoded, tmp_path / "resumed")
    assert [line.loss for line in straight[40:]] == [line.loss for line in resumed]
    assert (tmp_path / "straight" / PROPOSER).read_bytes() == (tmp_path / "resumed" / PROPOSER).read_bytes()


def test_a_proposer_of_another_package_is_named(dot: Path, encoded: EncodedEpisodes, tmp_path: Path) -> None:
    trained_proposer(dot, encoded, tmp_path / "own")
    run(replace(RECIPE, seed=2), tmp_path / "other")
    own, other = read_package(tmp_path / "own"), read_package(tmp_path / "other")
    (tmp_path / "other" / PROPOSER).write_bytes((tmp_path / "own" / PROPOSER).read_bytes())
    with pytest.raises(PackageError, match="has no proposer that says what it is"):
        load(str(tmp_path / "other"), CPU)
    write_package(tmp_path / "other", replace(other.config, proposer=own.config.proposer), other.weights(), "")
    with pytest.raises(PackageError, match="must be trained on the package's own latents"):
        load(str(tmp_path / "other"), CPU)
    (tmp_path / "own" / PROPOSER).unlink()
    with pytest.raises(PackageError, match="has no proposer.safetensors"):
        load(str(tmp_path / "own"), CPU)


def test_weights_that_do_not_fit_a_proposers_shapes_are_named(
    dot: Path, encoded: EncodedEpisodes, tmp_path: Path
) -> None:
    trained_proposer(dot, encoded, tmp_path)
    package = read_package(tmp_path)
    assert package.config.proposer is not None
    for change, said in (({"width": 64}, "do not fit the config"), ({"colour": 1}, "unknown key: colour")):
        config = replace(package.config, proposer={**package.config.proposer, **change})
        write_package(tmp_path, config, package.weights(), "")
        with pytest.raises(PackageError, match=said):
            load(str(tmp_path), CPU)


def steps(
    dot: Path, encoded: EncodedEpisodes, out: Path, recipe: StepPredictorRecipe = STEP
) -> list[StepPredictorProgress]:
    log: list[StepPredictorProgress] = []
    step_predictor.train(recipe, encoded, read_package(dot), out, log.append, source="a dot", provenance={})
    return log


@pytest.mark.parametrize("labels", [0.0, 1.0])
def test_a_step_predictor_learns_beside_the_other(
    dot: Path, encoded: EncodedEpisodes, tmp_path: Path, labels: float
) -> None:
    trained_proposer(dot, encoded, tmp_path / "with")
    log = steps(tmp_path / "with", encoded, tmp_path / "both", replace(STEP, labels=labels))
    first, last = log[19].held_out, log[-1].held_out
    assert first is not None
    assert last is not None
    assert sum(last.stepped) < sum(first.stepped)
    assert last.at_once == first.at_once, "which is not trained"
    model = load(str(tmp_path / "both"), CPU)
    assert model.proposer is not None, "the latents are as before"
    context = model.context([torch.from_numpy(encoded.latents[0, 0])], None)
    actions = torch.from_numpy(encoded.actions[:3, :4]).unsqueeze(0)
    both, once = model.rollout(context, actions), load(str(dot), CPU).rollout(context, actions)
    assert not torch.allclose(both, once)
    alike = ((0, 0), (1, 1), (2, 2))
    torch.testing.assert_close(model.rollout_shared(context, actions, alike), both, atol=1e-5, rtol=1e-5)  # type: ignore[attr-defined]


def test_a_step_predictor_may_stand_alone(dot: Path, encoded: EncodedEpisodes, tmp_path: Path) -> None:
    steps(dot, encoded, tmp_path, replace(STEP, share=1.0))
    assert not any(name.startswith("predictor.") for name in read_package(tmp_path).weights())
    model = load(str(tmp_path), CPU)
    context = model.context([torch.from_numpy(encoded.latents[0, 0])], None)
    long = model.rollout(context, torch.from_numpy(encoded.actions[:1]).unsqueeze(0))
    assert long.shape == (1, 1, 4, 16), "any number of steps"


def test_a_line_is_folded_into_the_head(dot: Path, encoded: EncodedEpisodes, tmp_path: Path) -> None:
    episodes = dot_episodes()
    package = reading_package(read_package(dot), (0.5, 0.25), episodes, encoded.latents, 2, tmp_path / "reading")
    assert package.config.latent_shape == (2,)
    told = told_episodes(episodes, (0.5, 0.25), package.config.training["reading"]["off"], seed=0)
    assert told.latents.shape == (64, 9, 2)
    log: list[StepPredictorProgress] = []
    recipe = replace(STEP, share=1.0, reading=(0.5, 0.25), products=True, steps=100)
    step_predictor.train(recipe, told, package, tmp_path / "out", log.append, source="a dot", provenance={})
    model = load(str(tmp_path / "out"), CPU)
    read = model.encode(torch.from_numpy(np.array(episodes.frames[60, :9])))
    assert episodes.probe_targets is not None
    wanted = torch.from_numpy(episodes.probe_targets[60] / np.float32([0.5, 0.25]))
    off = (read - wanted).square().mean().sqrt()
    assert off < wanted.std(), "what an encoder of six steps can tell of it"
    last = log[-1].held_out
    assert last is not None
    assert last.stepped[0] < last.unchanged[0]


def test_a_line_that_labels_follow_is_found_and_its_error_told() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4000, 6, generator=generator)
    labels = 3 * latents[:, :2] + 1 + 0.1 * torch.randn(4000, 2, generator=generator)
    reading = fit_reading(latents, labels, (1.0, 0.5))
    torch.testing.assert_close(reading.off, torch.tensor([0.1, 0.2]), atol=0.01, rtol=0)
    noise = told_latents(np.zeros((100, 9, 2), np.float32), (1.0, 0.5), (0.1, 0.2), seed=0)
    np.testing.assert_allclose(noise.std(axis=(0, 1)), [0.1, 0.2], atol=0.02)


@pytest.mark.parametrize("scale", [(1.0,), (1.0, 0.0), (1.0, -2.0)])
def test_a_reading_has_a_unit_for_each_label(scale: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="reading must hold 2 numbers above 0"):
        fit_reading(torch.zeros(8, 3), torch.zeros(8, 2), scale)


def test_a_reading_needs_labels_and_stands_alone(dot: Path, encoded: EncodedEpisodes, tmp_path: Path) -> None:
    blind = replace(dot_episodes(), probe_targets=None)
    with pytest.raises(ValueError, match="reading: episodes must say what latents are to tell"):
        reading_package(read_package(dot), (1.0, 1.0), blind, encoded.latents, 2, tmp_path)
    with pytest.raises(ValueError, match="reading needs share 1"):
        StepPredictorRecipe(reading=(1.0,))


def test_a_diverged_training_and_one_of_another_block_are_named(
    dot: Path, encoded: EncodedEpisodes, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="every must divide the package's block of 2"):
        steps(dot, replace(encoded, every=3), tmp_path)
