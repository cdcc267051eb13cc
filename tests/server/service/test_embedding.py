"""Embeddings of images and clips by an application."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.video.decode import write_clip
from server.errors import Reason
from server.service.application import Application
from server.values.calls import EmbedClipRequest, EmbeddingKind, EmbedImagesRequest, FrameSampling
from tests.support.server.linear import frame, latent
from tests.support.server.requests import goal_at, refused

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize(
    ("kind", "linear", "tiny"),
    [("pooled", (2,), (8,)), ("per_frame", (3, 2), (3, 8)), ("tokens", (3, 1, 2), (3, 16, 24))],
)
async def test_images_embed_in_three_kinds(
    application: Application, kind: EmbeddingKind, linear: tuple[int, ...], tiny: tuple[int, ...]
) -> None:
    images = tuple(frame(0.1 * index, 0.4) for index in range(3))
    goal = await goal_at(application, 0.1)
    embedded = await application.embed_images(EmbedImagesRequest(images, "linear", kind, goal))
    assert (embedded.embedding.shape, embedded.embedding.dtype) == (linear, np.float32)
    expected = [float(np.square(latent(0.1 * index, 0.4) - latent(0.1, 0.4)).mean()) for index in range(3)]
    assert embedded.goal_distances == pytest.approx(expected, abs=1e-7)
    larger = tuple(np.resize(image, (32, 32, 3)) for image in images)
    assert (await application.embed_images(EmbedImagesRequest(larger, "tiny", kind))).embedding.shape == tiny


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (EmbedImagesRequest(()), Reason.INVALID_FIELD, "images"),
        (EmbedImagesRequest((frame(0, 0),) * 257), Reason.TOO_LARGE, "images"),
        (EmbedImagesRequest((frame(0, 0), frame(0, 0)[1:])), Reason.IMAGE_SIZE, "images[1]"),
        (EmbedImagesRequest((frame(0, 0),), goal_id="none"), Reason.UNKNOWN_GOAL, "goal_id"),
        (EmbedImagesRequest((frame(0, 0),), model="nobody"), Reason.UNKNOWN_MODEL, "model"),
    ],
)
async def test_bad_images_are_refused_by_name(
    application: Application, request_: EmbedImagesRequest, reason: Reason, field: str
) -> None:
    await refused(application.embed_images(request_), reason, field)


async def test_a_clip_embeds_with_times_and_distances(application: Application, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    brightness = np.linspace(0, 255, 7).astype(np.uint8)
    write_clip(path, np.tile(brightness[:, None, None, None], (1, 32, 32, 3)), fps=10.0)
    goal = await goal_at(application, 1.0, 1.0)
    clip = await application.embed_clip(EmbedClipRequest(path, kind="per_frame", goal_id=goal, step_distances=True))
    assert clip.embedding.shape == (7, 2)
    np.testing.assert_allclose(clip.embedding[:, 0], brightness / 255, atol=0.03)
    assert clip.frame_times_s == pytest.approx([0.1 * index for index in range(7)], abs=1e-3)
    distances = np.square(clip.embedding - 1).mean(1)
    np.testing.assert_allclose(clip.goal_distances, distances, atol=1e-6)
    np.testing.assert_allclose(clip.step_distances, np.square(np.diff(clip.embedding, axis=0)).mean(1), atol=1e-6)
    few = EmbedClipRequest(path, model="tiny", sampling=FrameSampling(frames=3), kind="tokens")
    assert (await application.embed_clip(few)).embedding.shape == (3, 16, 24)
    no_video = tmp_path / "text.mp4"
    no_video.write_bytes(b"not a video at all" * 100)
    await refused(application.embed_clip(EmbedClipRequest(no_video)), Reason.INVALID_CLIP, "clip")


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (FrameSampling(fps=0.0), "sampling.fps"),
        (FrameSampling(fps=float("nan")), "sampling.fps"),
        (FrameSampling(frames=0), "sampling.frames"),
        (FrameSampling(frames=1 << 31), "sampling.frames"),
        (FrameSampling(fps=1.0, frames=1), "frames"),
    ],
)
async def test_bad_sampling_is_refused_by_name(
    application: Application, tmp_path: Path, sampling: FrameSampling, field: str
) -> None:
    request = EmbedClipRequest(tmp_path / "clip.mp4", sampling=sampling)
    await refused(application.embed_clip(request), Reason.INVALID_FIELD, field)
