"""Embedding calls: images, clips and goals."""

from __future__ import annotations

import time

import numpy as np
from presage import values
from presage.protocol.arguments import one_of
from presage.values import ClassScore, ClipClasses, ClipEmbedding, Embedding, Model

from server.config import Limits
from server.engine.messages import (
    ClassifyClipJob,
    ClassifyDone,
    EmbedClipJob,
    EmbedDone,
    EmbedImagesJob,
    EncodeDone,
    EncodeJob,
    Floats,
)
from server.engine.pool import EnginePool
from server.errors import invalid, refuse
from server.service import validation, work_limits
from server.service.clips import Clips
from server.service.goals import Goal, GoalCache, content_id
from server.service.prediction import require_numbers
from server.values.caller import calling
from server.values.calls import (
    Array,
    ClassifyClipRequest,
    EmbedClipRequest,
    EmbeddingKind,
    EmbedImagesRequest,
    Frame,
    FrameSampling,
    GoalRequest,
)


class EmbeddingCalls:
    """Embeds goals, images and clips."""

    def __init__(self, pool: EnginePool, goals: GoalCache, clips: Clips, limits: Limits) -> None:
        self._engines, self._goals, self._clips, self._limits = pool, goals, clips, limits

    async def goal(self, request: GoalRequest, deadline: float | None) -> values.Goal:
        """See `Application.create_goal`."""
        model = self._engines.model(request.model).reply
        one_of("source", {"image": request.image, "latent": request.latent}, refuse)
        content: Array
        if request.latent is not None:
            validation.latent(request.latent, model, "latent")
            content = np.ascontiguousarray(request.latent, np.float32)
        else:
            assert request.image is not None
            validation.frame(request.image, model, "image")
            content = request.image
        measured = self._measured(request, model)
        goal_id = content_id(content, model.name, model.weights_digest, model.image.crop_policy, measured)
        goal = self._goals.find(goal_id, calling().owner)
        if goal is not None:
            return describe(goal, cached=True)
        latent = content if request.image is None else await self._encode(request.image, model, deadline, measured)
        goal = Goal(goal_id, model.name, np.array(latent, np.float32), time.time_ns())
        self._goals.put(goal, calling().owner)
        return describe(goal, cached=False)

    async def images(self, request: EmbedImagesRequest, deadline: float | None) -> Embedding:
        """See `Application.embed_images`."""
        model = self._engines.model(request.model).reply
        validation.image_count(request.images, self._limits.images)
        for index, image in enumerate(request.images):
            validation.frame(image, model, f"images[{index}]")
        job = EmbedImagesJob(model.name, request.images, request.kind, self._toward(request.goal_id, model))
        work_s = self._work_s(len(request.images), request.kind, model, "images")
        done = await self._engines.run(job, deadline, work_s)
        assert isinstance(done, EmbedDone)
        _require_embedding(done)
        return Embedding(done.embedding, request.kind, model.name, done.goal_distances)

    async def clip(self, request: EmbedClipRequest, deadline: float | None) -> ClipEmbedding:
        """See `Application.embed_clip`."""
        model = self._engines.model(request.model).reply
        goal = self._toward(request.goal_id, model)
        left_s = None if deadline is None else deadline - time.monotonic()
        clip = await self._clips.decode(request.path, request.sampling, model, left_s)
        work_s = self._work_s(len(clip.frames), request.kind, model, "clip")
        job = EmbedClipJob(model.name, clip.frames, request.kind, goal, request.step_distances)
        done = await self._engines.run(job, deadline, work_s)
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

    async def classify(self, request: ClassifyClipRequest, deadline: float | None) -> ClipClasses:
        """See `Application.classify_clip`."""
        model = self._engines.model(request.model).reply
        if not model.labels:
            raise invalid("model", "must have labels to classify a clip", f"{model.name}, which has none")
        if not 1 <= request.top_k <= len(model.labels):
            raise invalid("top_k", f"must be 1 to the model's {len(model.labels)} classes", request.top_k)
        sampling = request.sampling
        if sampling == FrameSampling() and model.clip_frames:  # as many as it was trained on
            sampling = FrameSampling(frames=min(model.clip_frames, self._clips.most_frames))
        left_s = None if deadline is None else deadline - time.monotonic()
        clip = await self._clips.decode(request.path, sampling, model, left_s)
        work_s = self._work_s(len(clip.frames), "pooled", model, "clip")
        done = await self._engines.run(ClassifyClipJob(model.name, clip.frames), deadline, work_s)
        assert isinstance(done, ClassifyDone)
        require_numbers(done.probabilities)
        likeliest = np.argsort(-done.probabilities, kind="stable")[: request.top_k]
        scores = (ClassScore(int(at), model.labels[at], float(done.probabilities[at])) for at in likeliest)
        return ClipClasses(tuple(scores), model.name, tuple(clip.timestamps_s.tolist()))

    def _work_s(self, count: int, kind: EmbeddingKind, model: Model, field: str) -> float:
        """Seconds that embedding frames takes at the least. Raises TOO_LARGE, for a reply that would be, too."""
        if kind == "tokens":
            work_limits.reply(count, model, self._limits, field)
        return work_limits.frames(count, self._engines.pace(model.name), self._limits, field)

    def _toward(self, goal_id: str, model: Model) -> Floats | None:
        return self._goals.toward(goal_id, model.name, owner=calling().owner).latent if goal_id else None

    def _measured(self, request: GoalRequest, model: Model) -> Floats | None:
        """What a goal says that the robot should measure there. Raises ServiceError where it cannot be said."""
        if request.proprioception is None:
            return None
        if not model.measures_goals or request.image is None:
            rule = "must be left out but for an image, and a model that predicts what a robot measures"
            raise invalid("proprioception", rule, f"{request.proprioception.size} numbers for model {model.name}")
        names = model.proprioception_names
        if request.proprioception.shape != (len(names),):
            raise invalid("proprioception", f"must have {len(names)} entries", list(request.proprioception.shape))
        if not np.isfinite(request.proprioception).all():
            raise invalid("proprioception", "must be finite", request.proprioception.tolist())
        return np.ascontiguousarray(request.proprioception, np.float32)

    async def _encode(self, image: Frame, model: Model, deadline: float | None, measured: Floats | None) -> Floats:
        done = await self._engines.run(EncodeJob(model.name, (image,), measured), deadline)
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
