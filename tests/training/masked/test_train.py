"""Masked-latent pretraining: it learns what hidden places hold, resumes exactly, and its package embeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.package import read_package
from model.registry import load
from model.video.decode import write_clip
from tests.support.training.dots import dot_episodes
from training.data.dataset import DatasetError
from training.data.episodes import Episodes
from training.data.video_dataset import FrameDataset, from_episodes, random_crop
from training.data.video_folder import read_footage
from training.masked.collapse_metrics import content, effective_rank, feature_std
from training.masked.train import (
    MaskedLearner,
    MaskedProgress,
    MaskedRecipe,
    masked_loss,
    probe,
    to_network_input,
    train,
)
from training.schedule import warmup_stable_decay

CPU = torch.device("cpu")
RECIPE = MaskedRecipe(
    steps=6,
    batch=4,
    frames=4,
    width=32,
    depth=2,
    heads=2,
    predictor_width=24,
    predictor_depth=1,
    predictor_heads=2,
    checkpoint_every=3,
    seed=1,
)


def run(recipe: MaskedRecipe, videos: FrameDataset, out: Path, stop_after: int | None = None) -> list[MaskedProgress]:
    log: list[MaskedProgress] = []

    def note(line: MaskedProgress) -> None:
        log.append(line)
        if line.step == stop_after:
            raise KeyboardInterrupt

    train(recipe, videos, "dots", out, note, provenance={"command": "test"}, device=CPU)
    return log


@pytest.fixture(scope="module")
def videos() -> FrameDataset:
    return from_episodes(dot_episodes(count=24, steps=8))


def test_a_training_ends_in_a_package_that_embeds(videos: FrameDataset, tmp_path: Path) -> None:
    log = run(RECIPE, videos, tmp_path / "dots")
    assert [line.step for line in log] == [1, 2, 3, 4, 5, 6]
    package = read_package(tmp_path / "dots")
    assert (package.config.family, package.config.latent_shape, package.config.action) == ("vjepa2", (16, 32), None)
    assert package.config.training["videos"] == "a dot"
    model = load(str(tmp_path / "dots"), CPU)
    clip = torch.randint(256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert model.embed_clip(clip).per_frame.shape == (3, 32)
    assert not (tmp_path / "dots/checkpoint.pt").exists()


def test_the_package_sees_what_the_training_saw(videos: FrameDataset, tmp_path: Path) -> None:
    """The service's own path from pixels to features gives what the probe reads in training."""
    learner = MaskedLearner(RECIPE, 32)
    frames = torch.from_numpy(videos.frames[:3].copy())
    run(replace(RECIPE, steps=1), videos, tmp_path / "dots")
    model = load(str(tmp_path / "dots"), CPU)
    weights = read_package(tmp_path / "dots").weights()
    own = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    learner.target.load_state_dict(own)
    expected = torch.nn.functional.layer_norm(learner.target(to_network_input(frames.unsqueeze(1))), (32,))
    assert torch.allclose(model.encode(frames), expected, atol=1e-5)


def test_a_resumed_training_has_the_same_losses_and_weights(videos: FrameDataset, tmp_path: Path) -> None:
    straight = run(RECIPE, videos, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, videos, tmp_path / "resumed", stop_after=5)
    resumed = run(RECIPE, videos, tmp_path / "resumed")
    assert [line.step for line in resumed] == [4, 5, 6]
    assert [line.loss for line in straight[3:]] == [line.loss for line in resumed]
    assert read_package(tmp_path / "straight").weights_digest == read_package(tmp_path / "resumed").weights_digest
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, videos, tmp_path / "other", stop_after=5)
    with pytest.raises(ValueError, match="made with other settings or recordings: recipe"):
        run(replace(RECIPE, average=0.9), videos, tmp_path / "other")


def test_targets_come_from_the_average_and_gradients_only_from_what_is_seen() -> None:
    torch.manual_seed(0)
    learner = MaskedLearner(RECIPE, 32)
    clips = torch.randn(4, 3, 4, 32, 32, requires_grad=True)
    loss, targets = masked_loss(learner, clips, RECIPE, torch.Generator().manual_seed(0))
    loss.backward()
    assert not targets.requires_grad
    assert all(weight.grad is None for weight in learner.target.parameters())
    assert all(weight.grad is not None for weight in learner.encoder.parameters())
    assert clips.grad is not None
    touched = clips.grad.abs().sum(dim=(1, 2)).unflatten(1, (4, 8)).unflatten(3, (4, 8)).sum(dim=(2, 4)) > 0
    assert not touched.all()  # places hidden by both mask sets
    assert touched.any(dim=(1, 2)).all()
    before = [weight.clone() for weight in learner.target.parameters()]
    with torch.no_grad():
        for weight in learner.encoder.parameters():
            weight += 1
    learner.average(0.75)
    for old, mean, new in zip(before, learner.target.parameters(), learner.encoder.parameters(), strict=True):
        assert torch.allclose(mean, 0.75 * old + 0.25 * new, atol=1e-6)


def test_collapse_is_seen_in_the_monitors() -> None:
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(16, 32, 24, generator=generator)
    places = torch.randn(1, 32, 24, generator=generator).expand(16, -1, -1)  # the same for every input
    assert feature_std(content(healthy)) == pytest.approx(1, abs=0.1)
    assert effective_rank(content(healthy)) > 23
    assert feature_std(content(places)) < 1e-6
    line = torch.randn(16, 32, 1, generator=generator) * torch.randn(24, generator=generator)
    assert effective_rank(content(line)) == pytest.approx(1, abs=0.01)
    assert effective_rank(torch.zeros(8, 4)) == 1.0


def test_the_schedule_warms_up_stays_and_decays() -> None:
    factors = [warmup_stable_decay(step, 100, 0.1, 0.2) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:80] == [1.0] * 70
    assert factors[80:] == sorted(factors[80:], reverse=True)
    assert 0 < factors[-1] < 0.06


def test_windows_of_footage_never_leave_their_clip() -> None:
    lengths = np.array([5, 1, 3])
    starts = np.array([0, 5, 6])
    frames = np.zeros((9, 2, 2, 3), np.uint8)
    frames += np.arange(9, dtype=np.uint8)[:, None, None, None]
    videos = FrameDataset(frames, starts, lengths, "exact", "numbered")
    drawn = videos.draw(500, 3, torch.Generator().manual_seed(0))[:, :, 0, 0, 0]
    assert sorted({tuple(row) for row in drawn.tolist()}) == [(0, 1, 2), (1, 2, 3), (2, 3, 4), (6, 7, 8)]
    with pytest.raises(ValueError, match="at most 5, the longest clip's, got 6"):
        videos.draw(1, 6, torch.Generator())


def test_a_crop_shows_a_part_and_a_whole_crop_everything() -> None:
    clips = torch.arange(64.0).view(1, 1, 1, 8, 8).expand(2, 3, 4, 8, 8)
    assert torch.equal(random_crop(clips, 1.0, torch.Generator()), clips)
    cropped = random_crop(clips, 0.2, torch.Generator().manual_seed(0))
    assert cropped.shape == clips.shape
    assert torch.equal(cropped[:, :, :1].expand_as(cropped), cropped)  # the same part in every frame
    assert cropped[0].max() - cropped[0].min() < 63


def test_folders_of_clips_and_images_are_read_and_the_broken_left_out(tmp_path: Path) -> None:
    frames = dot_episodes(count=1, steps=19).frames[0]
    (tmp_path / "in/deep").mkdir(parents=True)
    write_clip(tmp_path / "in/deep/a.mp4", frames, 10.0)
    Image.fromarray(frames[7]).resize((64, 48)).save(tmp_path / "in/b.png")
    (tmp_path / "in/c.mp4").write_bytes(b"no clip")
    (tmp_path / "in/d.jpg").write_bytes(b"no image")
    (tmp_path / "in/notes.txt").write_text("not read")
    videos, skipped = read_footage([tmp_path / "in"], tmp_path / "store", 32, fps=5.0)
    assert [Path(entry.name).name for entry in skipped] == ["c.mp4", "d.jpg"]
    assert videos.lengths.tolist() == [1, 10]  # b.png, then every second frame of a.mp4
    assert np.abs(videos.frames[1:].astype(int) - frames[::2]).mean() < 3
    assert "1 clips and 1 images, 11 frames at up to 5 a second, 2 files left out" in videos.source
    with pytest.raises(DatasetError, match=r"no video or image can be read: .*c\.mp4: the file is not a video"):
        read_footage([tmp_path / "in/c.mp4"], tmp_path / "other", 32, fps=5.0)
    with pytest.raises(DatasetError, match="no such file or folder"):
        read_footage([tmp_path / "out"], tmp_path / "other", 32, fps=5.0)


def gratings(clips: int, frames: int, seed: int) -> Episodes:
    """Drifting gratings: what is hidden follows from what is seen, by direction and wavelength, which a probe asks."""
    rng = np.random.default_rng(seed)
    angle, wavelength, phase, speed = rng.uniform((0, 5, 0, -1), (np.pi, 12, 2 * np.pi, 1), (clips, 4)).T[
        :, :, None, None, None
    ]
    rows, columns = np.mgrid[0:32, 0:32]
    along = columns * np.cos(angle) + rows * np.sin(angle)
    drift = speed * np.arange(frames)[:, None, None]
    gray = (127.5 + 100 * np.sin(2 * np.pi * along / wavelength + phase + drift)).astype(np.uint8)
    wanted = np.stack([np.cos(2 * angle), np.sin(2 * angle), wavelength / 5], axis=-1)[:, :, 0, 0]
    dots = dot_episodes(count=clips, steps=frames - 1)
    probed = np.repeat(wanted, frames, axis=1).astype(np.float32)
    return replace(dots, frames=np.repeat(gray[..., None], 3, axis=-1), probe_targets=probed, source="gratings")


def test_pretraining_improves_a_linear_probe(tmp_path: Path) -> None:
    """On what can be predicted, pooled features tell its causes better than those of the same encoder untrained."""
    recipe = replace(RECIPE, steps=150, batch=16, images=0.5, crop=1.0, learning_rate=2e-3, average=0.99)
    log: list[MaskedProgress] = []
    folder = train(
        replace(recipe, checkpoint_every=150),
        from_episodes(gratings(200, 8, seed=0)),
        "gratings",
        tmp_path / "gratings",
        log.append,
        provenance={"command": "test"},
        device=CPU,
        held_out=gratings(600, 2, seed=1),
    )
    training = read_package(folder).config.training
    before, after = training["probe_r2_before"], training["probe_r2"]
    assert np.mean(after) > np.mean(before) + 0.08, (before, after)
    assert min(after) > 0.6
    assert log[-1].loss < 0.9 * log[0].loss
    assert log[-1].feature_std > 0.3
    assert log[-1].effective_rank > 8


def test_the_probe_weighs_features_alike_whatever_their_size() -> None:
    """Where most of a picture stays as it is pooled features differ by little, and a ridge must not flatten that."""
    learner = MaskedLearner(RECIPE, 32)
    held_out = dot_episodes(count=40)
    told = probe(learner.target, held_out)
    with torch.no_grad():
        learner.target.norm.weight *= 1e-3
    assert probe(learner.target, held_out) == pytest.approx(told, abs=1e-3)
