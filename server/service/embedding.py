"""Embedding calls: images, clips and goals."""

from __future__ import annotations

import time

import numpy as np
from presage import values
from presage.values import ClipEmbedding, Embedding, Model

from server.engine.messages import EmbedClipJob, EmbedDone, EmbedImagesJob, EncodeDone, EncodeJob, Floats
from server.engine.pool import EnginePool
from server.errors import invalid
from server.service import validation
from server.service.clips import Clips
from server.service.goals import Goal, GoalCache, content_id
from server.service.prediction import require_numbers
from server.values.calls import Array, EmbedClipRequest, EmbedImagesRequest, Frame, GoalRequest


class EmbeddingCalls:
    """Embeds goals, images and clips. `max_images`: in one call."""

    def __init__(self, pool: EnginePool, goals: GoalCache, clips: Clips, max_images: int) -> None:
        self._engines, self._goals, self._clips, self._max_images = pool, goals, clips, max_images

    async def goal(self, request: GoalRequest, deadline: float | None) -> values.Goal:
        """See `Application.create_goal`."""
        model = self._engines.model(request.model).reply
        if (request.image is None) == (request.latent is None):
            given = "neither" if request.image is None else "both"
            raise invalid("source", "must be exactly one of image and latent", given)
        content: Array
        if request.latent is not None:
            validation.latent(request.latent, model, "latent")
            content = np.ascontiguousarray(request.latent, np.float32)
        else:
            assert request.image is not None
            validation.frame(request.image, model, "image")
            content = request.image
        goal_id = content_id(content, model.name, model.weights_digest, model.image.crop_policy)
        goal = self._goals.find(goal_id)
        if goal is not None:
            return describe(goal, cached=True)
        latent = await self._encode(request.image, model, deadline) if request.image is not None else content
        goal = Goal(goal_id, model.name, np.array(latent, np.float32), time.time_ns())
        self._goals.put(goal)
        return describe(goal, cached=False)

    async def images(self, request: EmbedImagesRequest, deadline: float | None) -> Embedding:
        """See `Application.embed_images`."""
        model = self._engines.model(request.model).reply
        validation.image_count(request.images, self._max_images)
        for index, image in enumerate(request.images):
            validation.frame(image, model, f"images[{index}]")
        job = EmbedImagesJob(model.name, request.images, request.kind, self._toward(request.goal_id, model))
        done = await self._engines.run(job, deadline)
        assert isinstance(done, EmbedDone)
        _require_embedding(done)
        return Embedding(done.embedding, request.kind, model.name, done.goal_distances)

    async def clip(self, request: EmbedClipRequest, deadline: float | None) -> ClipEmbedding:
        """See `Application.embed_clip`."""
        model = self._engines.model(request.model).reply
        goal = self._toward(request.goal_id, model)
        left_s = None if deadline is None else deadline - time.monotonic()
        clip = await self._clips.decode(request.path, request.sampling, model, left_s)
        done = await self._engines.run(EmbedClipJob(model.name, clip.frames, request.kind, goal), deadline)
        assert isinstance(done, EmbedDone)
        _require_embedding(done)
        times_s = tuple(clip.timestamps_s.tolist())
        return ClipEmbedding(
            done.embedding,
            request.kind,
            model.name,
            times_s,
            done.goal_distances,
            done.step_distances,
            clip.description.stream,
        )

    def _toward(self, goal_id: str, model: Model) -> Floats | None:
        return self._goals.toward(goal_id, model.name).latent if goal_id else None

    async def _encode(self, image: Frame, model: Model, deadline: float | None) -> Floats:
        done = await self._engines.run(EncodeJob(model.name, (image,)), deadline)
        assert isinstance(done, EncodeDone)
        require_numbers(done.latents)
        latent: Floats = done.latents[0]
        return latent


def describe(goal: Goal, cached: bool) -> values.Goal:
    """A goal as its callers are told of it; `cached`: whether it was there before the call."""
    return values.Goal(goal.goal_id, goal.model, cached, goal.create_time_ns)


def _require_embedding(done: EmbedDone) -> None:
    for numbers in (done.embedding, np.array(done.goal_distances), np.array(done.step_distances)):
        require_numbers(numbers)
