"""Values to JSON replies. Field names are those of proto/presage/v1."""

from __future__ import annotations

import base64
import math
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, Field

from server.config import Limits
from server.transport.grpc.codec import encode_time
from server.transport.rest.schemas import PlannerBody
from server.transport.rest.tensors import TensorReply, TensorStyle, encode_tensor
from server.values import calls


class ImageSpecReply(BaseModel):
    height: int
    width: int
    crop_policy: str
    cameras: int


class ActionSpecReply(BaseModel):
    names: list[str]
    units: list[str]
    low: list[float]
    high: list[float]
    rate_hz: float
    block: int


class LimitsReply(BaseModel):
    message_bytes: int
    image_pixels: int
    clip_bytes: int
    clip_frames: int
    sessions: int
    rollout_steps: int


class ModelReply(BaseModel):
    """What a robot must know before it asks for a plan."""

    name: str
    family: str
    weights_digest: str
    image: ImageSpecReply
    action: ActionSpecReply | None
    latent_shape: list[int]
    proprioception_names: list[str]
    planner: PlannerBody
    limits: LimitsReply
    card: str
    server_version: str
    execute: int = Field(description="Robot actions to take before planning again, as the model was measured")
    computes: str = Field(description="Precision, device, and which rollouts are replayed as graphs, or why none")
    license: str = Field(description="License of the weights, as far as known; empty where nothing is")
    labels: list[str] = Field(description="Names of the classes of clips; empty for a model that classifies nothing")
    clip_frames: int = Field(description="Frames of a clip that the classifier was trained on; 0: not known")
    measures_goals: bool = Field(description="Whether a goal may say what the robot should measure there")


class ModelsReply(BaseModel):
    models: list[ModelReply]


class GoalReply(BaseModel):
    goal_id: str
    model: str
    cached: bool
    create_time: str


class CalibrationReply(BaseModel):
    angle_rad: float
    residual: float
    residual_before: float
    moves: int


class SessionReply(BaseModel):
    session_id: str
    model: str
    goal_id: str
    epoch: int
    plans: int
    last_sequence: int
    ttl_s: float
    create_time: str
    stage: int | None = Field(description="Which of the stages is pursued, counted from 0; null without stages")
    calibration: CalibrationReply | None = None


class TimingsReply(BaseModel):
    queue_ms: float
    decode_ms: float
    encode_ms: float
    plan_ms: float
    total_ms: float


class ProvenanceReply(BaseModel):
    model: str
    weights_digest: str
    crop_policy: str
    goal_id: str
    planner: PlannerBody
    device: str
    dtype: str
    server_version: str


class PlanReply(BaseModel):
    """Actions to take, and what is known of them."""

    actions: TensorReply
    step_costs: list[float]
    cost: float
    goal_distance: float
    iteration_costs: list[float]
    elite_spread: list[float]
    iterations_done: int
    stop_reason: Literal["converged", "budget", "deadline", "iterations"]
    seed: int
    degraded: bool
    warm_started: bool
    observation_sequence: int
    capture_time: str | None
    epoch: int
    timings: TimingsReply
    provenance: ProvenanceReply
    warnings: list[str]


class EmbeddingReply(BaseModel):
    embedding: TensorReply
    goal_distances: list[float]
    model: str


class ClipEmbeddingReply(BaseModel):
    embedding: TensorReply
    frame_times_s: list[float]
    goal_distances: list[float]
    step_distances: list[float]
    model: str


class ClassScoreReply(BaseModel):
    index: int
    label: str
    probability: float


class ClassificationReply(BaseModel):
    classes: list[ClassScoreReply] = Field(description="The likeliest first")
    frame_times_s: list[float]
    model: str


class RolloutReply(BaseModel):
    latents: TensorReply
    goal_distances: list[float]


class ScoreReply(BaseModel):
    costs: list[float | None] = Field(description="null where the model predicted nothing usable")
    step_costs: TensorReply


class DistanceReply(BaseModel):
    distances: list[float]


class SurpriseReply(BaseModel):
    """How surprising each step was."""

    errors: list[float]
    scores: list[float] = Field(description="Deviations above the session's mean; empty while it knows few steps")
    steps_known: int


class LandscapeReply(BaseModel):
    dimensions: list[str]
    values: TensorReply = Field(description="[dimensions, points] in robot units")
    costs: TensorReply = Field(description="One axis for each of the dimensions")
    best_action: list[float]
    best_cost: float
    rest_cost: float
    plot: str = Field(description="A PNG in base64, empty if none was asked for")


class FaultReply(BaseModel):
    field: str
    rule: str
    value: str
    detail: str


class ProblemReply(BaseModel):
    """Problem details as in RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="The reason, the same as on the gRPC gateway")
    request_id: str
    errors: list[FaultReply]
    retry_after_s: float | None = None


def encode_model(model: calls.ModelReply, limits: Limits, server_version: str) -> ModelReply:
    action = ActionSpecReply(
        names=list(model.action_names),
        units=list(model.action_units),
        low=list(model.action_low),
        high=list(model.action_high),
        rate_hz=model.rate_hz,
        block=model.block,
    )
    return ModelReply(
        name=model.name,
        family=model.family,
        weights_digest=model.weights_digest,
        image=ImageSpecReply(
            height=model.image_height,
            width=model.image_width,
            crop_policy=model.crop_policy,
            cameras=model.cameras,
        ),
        action=action if model.action_names else None,
        latent_shape=list(model.latent_shape),
        proprioception_names=list(model.proprioception_names),
        planner=_encode_planner(model.planner),
        limits=LimitsReply(**limits.model_dump(include=set(LimitsReply.model_fields))),
        card=model.card,
        server_version=server_version,
        execute=model.execute,
        computes=model.computes,
        license=model.license,
        labels=list(model.labels),
        clip_frames=model.clip_frames,
        measures_goals=model.measures_goals,
    )


def encode_goal(goal: calls.GoalReply) -> GoalReply:
    created = _encode_instant(goal.create_time_ns)
    return GoalReply(goal_id=goal.goal_id, model=goal.model, cached=goal.cached, create_time=created)


def encode_session(session: calls.SessionReply) -> SessionReply:
    return SessionReply(
        session_id=session.session_id,
        model=session.model,
        goal_id=session.goal_id,
        epoch=session.epoch,
        plans=session.plans,
        last_sequence=session.last_sequence,
        ttl_s=session.ttl_s,
        create_time=_encode_instant(session.create_time_ns),
        stage=session.stage,
        calibration=None if session.calibration is None else CalibrationReply(**asdict(session.calibration)),
    )


def encode_plan(plan: calls.PlanReply, style: TensorStyle) -> PlanReply:
    provenance = plan.provenance
    return PlanReply(
        actions=encode_tensor(plan.actions, style),
        step_costs=list(plan.step_costs),
        cost=plan.cost,
        goal_distance=plan.goal_distance,
        iteration_costs=list(plan.iteration_costs),
        elite_spread=list(plan.elite_spread),
        iterations_done=plan.iterations_done,
        stop_reason=plan.stop_reason,
        seed=plan.seed,
        degraded=plan.degraded,
        warm_started=plan.warm_started,
        observation_sequence=plan.observation_sequence,
        capture_time=None if plan.capture_time_ns is None else _encode_instant(plan.capture_time_ns),
        epoch=plan.epoch,
        timings=TimingsReply(**asdict(plan.timings)),
        provenance=ProvenanceReply(
            model=provenance.model,
            weights_digest=provenance.weights_digest,
            crop_policy=provenance.crop_policy,
            goal_id=provenance.goal_id,
            planner=_encode_planner(provenance.planner),
            device=provenance.device,
            dtype=provenance.dtype,
            server_version=provenance.server_version,
        ),
        warnings=list(plan.warnings),
    )


def encode_images_embedding(reply: calls.EmbedReply, style: TensorStyle) -> EmbeddingReply:
    embedding = encode_tensor(reply.embedding, style)
    return EmbeddingReply(embedding=embedding, goal_distances=list(reply.goal_distances), model=reply.model)


def encode_clip_embedding(reply: calls.EmbedReply, style: TensorStyle) -> ClipEmbeddingReply:
    return ClipEmbeddingReply(
        embedding=encode_tensor(reply.embedding, style),
        frame_times_s=list(reply.frame_times_s),
        goal_distances=list(reply.goal_distances),
        step_distances=list(reply.step_distances),
        model=reply.model,
    )


def encode_classes(reply: calls.ClassifyReply) -> ClassificationReply:
    classes = [ClassScoreReply(index=at.index, label=at.label, probability=at.probability) for at in reply.classes]
    return ClassificationReply(classes=classes, frame_times_s=list(reply.frame_times_s), model=reply.model)


def encode_rollout(reply: calls.RolloutReply, style: TensorStyle) -> RolloutReply:
    return RolloutReply(latents=encode_tensor(reply.latents, style), goal_distances=list(reply.goal_distances))


def encode_score(reply: calls.ScoreReply, style: TensorStyle) -> ScoreReply:
    costs = [cost if math.isfinite(cost) else None for cost in reply.costs.tolist()]
    return ScoreReply(costs=costs, step_costs=encode_tensor(reply.step_costs, style))


def encode_surprise(reply: calls.SurpriseReply) -> SurpriseReply:
    return SurpriseReply(errors=list(reply.errors), scores=list(reply.scores), steps_known=reply.steps_known)


def encode_landscape(reply: calls.LandscapeReply, style: TensorStyle) -> LandscapeReply:
    return LandscapeReply(
        dimensions=list(reply.dimensions),
        values=encode_tensor(reply.values, style),
        costs=encode_tensor(reply.costs, style),
        best_action=reply.best_action.tolist(),
        best_cost=reply.best_cost,
        rest_cost=reply.rest_cost,
        plot=base64.b64encode(reply.plot).decode(),
    )


def _encode_planner(settings: calls.PlannerSettings) -> PlannerBody:
    return PlannerBody(
        samples=settings.samples,
        iterations=settings.iterations,
        elites=settings.elites,
        horizon=settings.horizon,
        optimizer=settings.optimizer,
        dimensions=list(settings.dimensions),
        discount=settings.discount,
        metric=settings.metric,
        narrowing=settings.narrowing,
        sample_decay=settings.sample_decay,
    )


def _encode_instant(nanoseconds: int) -> str:
    stamp = encode_time(nanoseconds)
    assert stamp is not None
    return stamp.ToJsonString()
