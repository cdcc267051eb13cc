"""Training on a frozen encoder's latents: it learns what motion does, resumes exactly, and its package plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.package import Package, PlannerDefaults, read_package
from model.registry import load
from model.vjepa2.action_predictor import ActionPredictor, ActionPredictorConfig
from model.vjepa2.poses import difference
from planner.optimizers.cem import CEM
from planner.types import ActionSpace, Problem
from tests.support.training.recordings import arm_episodes, with_poses
from training.action_conditioned.encoding_cache import EncodingCache, EncodingError
from training.action_conditioned.train import (
    ActionConditionedProgress,
    ActionConditionedRecipe,
    losses,
    predict,
    thinning,
    train,
)
from training.data.episodes import Episodes
from training.data.video_dataset import from_episodes
from training.masked.train import MaskedRecipe
from training.masked.train import train as pretrain

CPU = torch.device("cpu")
RECIPE = ActionConditionedRecipe(
    steps=6,
    batch=4,
    frames=4,
    fps=5.0,
    width=24,
    depth=1,
    heads=2,
    held_out=2,
    checkpoint_every=3,
    seed=1,
    planner=PlannerDefaults(samples=24, iterations=2, elites=4, horizon=2, execute=1),
)


def posed_arm(count: int = 8, frames: int = 17) -> Episodes:
    recorded = with_poses(arm_episodes((frames,) * count, size=32))
    return Episodes(
        frames=np.stack([episode.frames for episode in recorded]),
        actions=np.stack([episode.actions[:-1] for episode in recorded]),
        action_names=("shoulder", "elbow"),
        action_units=("rad/s", "rad/s"),
        action_low=(-1.5, -1.5),
        action_high=(1.5, 1.5),
        rate_hz=10.0,
        source="the arm",
        proprioception=np.stack([episode.joints for episode in recorded]),
    )


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    return posed_arm()


@pytest.fixture(scope="module")
def encoder(episodes: Episodes, tmp_path_factory: pytest.TempPathFactory) -> Package:
    recipe = MaskedRecipe(
        steps=1, batch=2, frames=2, width=24, depth=1, heads=2, predictor_width=24, predictor_depth=1, predictor_heads=2
    )
    folder = tmp_path_factory.mktemp("encoder")
    videos = from_episodes(episodes)
    pretrain(recipe, videos, "encoder", folder, lambda line: None, provenance={}, device=CPU)
    return read_package(folder)


def run(
    recipe: ActionConditionedRecipe, episodes: Episodes, encoder: Package, out: Path, stop_after: int | None = None
) -> list[ActionConditionedProgress]:
    log: list[ActionConditionedProgress] = []

    def note(line: ActionConditionedProgress) -> None:
        log.append(line)
        if line.step == stop_after:
            raise KeyboardInterrupt

    cache = out.parent / "encodings"
    train(recipe, episodes, encoder, "posed", out, cache, note, provenance={"command": "test"}, device=CPU)
    return log


def test_a_training_ends_in_a_package_that_plans(episodes: Episodes, encoder: Package, tmp_path: Path) -> None:
    run(RECIPE, episodes, encoder, tmp_path / "posed")
    package = read_package(tmp_path / "posed")
    config = package.config
    assert config.action is not None
    assert (config.family, config.action.names[0], config.action.rate_hz) == ("vjepa2", "x", 5.0)
    assert config.action.high[0] == -config.action.low[0] > 0.01
    assert config.training["encoder"] == f"encoder, weights {encoder.weights_digest}"
    model = load(str(tmp_path / "posed"), CPU)
    seen = model.encode(torch.from_numpy(episodes.frames[0, :1].copy()))[0]
    goal = model.encode(torch.from_numpy(episodes.frames[0, 4:5].copy()))[0]
    assert episodes.proprioception is not None
    context = model.context([seen], torch.from_numpy(episodes.proprioception[0, :1]))
    action = config.action
    space = ActionSpace(action.names, action.units, action.low, action.high, action.rate_hz)
    search = CEM(samples=24, iterations=2, elites=4, horizon=2)
    plan = search.plan(model, Problem(context, goal, space, seed=3))
    assert plan.actions.shape == (2, 7)
    assert (plan.actions.abs() <= torch.tensor(action.high) + 1e-6).all()
    assert plan.iteration_costs[-1] <= plan.iteration_costs[0]


def test_loss_falls_and_actions_are_used(episodes: Episodes, encoder: Package, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=120, batch=8, width=48, depth=2, learning_rate=2e-3, checkpoint_every=120)
    log = run(recipe, episodes, encoder, tmp_path / "posed")
    assert np.mean([line.teacher_loss for line in log[-10:]]) < 0.6 * np.mean([line.teacher_loss for line in log[:3]])
    assert np.mean([line.rollout_loss for line in log[-10:]]) < 0.6 * np.mean([line.rollout_loss for line in log[:3]])
    assert log[-1].held_out_error is not None
    assert read_package(tmp_path / "posed").config.training["held_out_error"] == round(log[-1].held_out_error, 4)


def test_a_resumed_training_has_the_same_losses_and_weights(
    episodes: Episodes, encoder: Package, tmp_path: Path
) -> None:
    straight = run(RECIPE, episodes, encoder, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, episodes, encoder, tmp_path / "resumed", stop_after=5)
    resumed = run(RECIPE, episodes, encoder, tmp_path / "resumed")
    assert [line.teacher_loss for line in straight[3:]] == [line.teacher_loss for line in resumed]
    assert read_package(tmp_path / "straight").weights_digest == read_package(tmp_path / "resumed").weights_digest


def test_the_rollout_feeds_predictions_back() -> None:
    """With two steps, the second prediction is made from the first frame and the first prediction alone."""
    torch.manual_seed(0)
    shape = ActionPredictorConfig(latent_width=8, width=12, depth=2, heads=2, mlp_hidden=24, grid=(2, 2))
    predictor = ActionPredictor(shape).eval()
    latents = torch.nn.functional.layer_norm(torch.randn(3, 4, 4, 8), (8,))
    poses = torch.rand(3, 4, 7) * 0.1
    actions = difference(poses[:, :-1], poses[:, 1:])
    teacher, rolled = losses(predictor, latents, poses, 2)
    first = predict(predictor, latents[:, :1], actions[:, :1], poses[:, :1])
    second = predict(predictor, torch.cat([latents[:, :1], first], dim=1), actions[:, :2], poses[:, :2])[:, 1:]
    expected = (torch.cat([first, second], dim=1) - latents[:, 1:3]).abs().mean()
    assert torch.allclose(rolled, expected, atol=1e-6)
    straight = predict(predictor, latents[:, :-1], actions, poses[:, :-1])
    assert torch.allclose(teacher, (straight - latents[:, 1:]).abs().mean(), atol=1e-6)


def test_recordings_without_poses_are_refused(episodes: Episodes, encoder: Package, tmp_path: Path) -> None:
    joints = replace(episodes, proprioception=np.zeros((8, 17, 2), np.float32))
    with pytest.raises(ValueError, match="proprioception must be poses of 7 numbers .* got 2"):
        run(RECIPE, joints, encoder, tmp_path / "out")
    degrees = replace(episodes, proprioception=np.full((8, 17, 7), 90, np.float32))
    with pytest.raises(ValueError, match="episode 0: pose must have its angles in radians"):
        run(RECIPE, degrees, encoder, tmp_path / "out")
    with pytest.raises(ValueError, match="frames must be at most 9"):
        run(replace(RECIPE, frames=12), episodes, encoder, tmp_path / "out")
    with pytest.raises(ValueError, match="held_out must lie in 1..7, got 8"):
        run(replace(RECIPE, held_out=8), episodes, encoder, tmp_path / "out")


def test_recordings_are_thinned_to_the_models_rate() -> None:
    assert [thinning(rate, 4.0) for rate in (30.0, 15.0, 10.0, 4.0, 3.0)] == [8, 4, 2, 1, 1]


def counting_cache(folder: Path, limit: int, digest: str = "one") -> tuple[EncodingCache, list[int]]:
    encoded: list[int] = []

    def encode(frames: torch.Tensor) -> torch.Tensor:
        encoded.append(len(frames))
        return frames.flatten(1).float().view(len(frames), 3, -1)

    return EncodingCache(folder, encode, digest, limit), encoded


def test_frames_are_encoded_once_for_each_encoder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = [rng.integers(256, size=(frames, 2, 2, 3), dtype=np.uint8) for frames in (5, 20)]
    cache, encoded = counting_cache(tmp_path, 10**6)
    latents = cache.encodings(episodes)
    assert [each.shape for each in latents] == [(5, 3, 4), (20, 3, 4)]
    assert np.array_equal(latents[1].reshape(20, 12), episodes[1].reshape(20, 12))
    assert encoded == [5, 16, 4]
    cache.encodings(reversed(episodes))
    assert encoded == [5, 16, 4]
    other, again = counting_cache(tmp_path, 10**6, "two")
    other.encodings(episodes)
    assert again == [5, 16, 4]
    changed = episodes[0].copy()
    changed[0, 0, 0, 0] ^= 1
    cache.encodings([changed])
    assert encoded[3:] == [5]


def test_the_cache_keeps_its_bound(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = [rng.integers(256, size=(10, 2, 2, 3), dtype=np.uint8) for _ in range(4)]
    size = 10 * 12 * 2 + 128
    cache, encoded = counting_cache(tmp_path, 2 * size)
    cache.encodings(episodes[:2])
    cache.encodings(episodes[2:3])
    assert len(list(tmp_path.iterdir())) == 2
    cache.encodings(episodes[2:3])
    assert len(encoded) == 3
    with pytest.raises(EncodingError, match=f"first 3 episodes take {3 * size} bytes .* at most {2 * size}"):
        cache.encodings(episodes)
