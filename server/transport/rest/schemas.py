"""JSON requests to the service's values: the REST counterpart of codec, with the field names of proto/presage/v1.

The way back is in rest_replies, arrays both ways are in rest_tensors.

Numbers are strict (true is no number, "1" is no number), unknown fields are refused, bytes are standard base64.
"""

from __future__ import annotations

from typing import Annotated

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from server.errors import Reason, invalid
from server.transport.grpc.codec import decode_time
from server.transport.rest.tensors import Base64, Strict, TensorInput, decode_bytes, decode_tensor
from server.values import calls
from server.values.images import EncodedImage, ImageSource, PixelFormat, RawImage

Count = Annotated[int, Field(ge=0, lt=2**32)]
Number64 = Annotated[int, Field(ge=0, lt=2**64)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Instant = Annotated[str, Field(max_length=40), WithJsonSchema({"type": "string", "format": "date-time"})]
Name = Annotated[str, Field(max_length=256)]


# Observations


class RawImageBody(BaseModel):
    """Pixels without a container: height x width x channels, rows tightly packed."""

    model_config = Strict
    height: Count
    width: Count
    format: PixelFormat
    data: Base64


class ImageBody(BaseModel):
    """One camera image: either a JPEG, PNG or WebP file in base64, or raw pixels."""

    model_config = ConfigDict(**Strict, json_schema_extra={"minProperties": 1, "maxProperties": 1})
    encoded: Base64 | None = None
    raw: RawImageBody | None = None


class ObservationBody(BaseModel):
    """What the robot sees and feels at one instant."""

    model_config = Strict
    images: list[ImageBody] = Field(description="One per camera of the model, in the model's order")
    proprioception: TensorInput | None = None
    capture_time: Instant | None = Field(default=None, description="On the robot's clock; echoed untouched")
    sequence: Number64 = Field(default=0, description="Counts up within a session; 0 lets the server count")
    past_images: list[ImageBody] = Field(
        default=[], description="Without a session, for models with past_actions: seen before, a model step apart"
    )
    past_actions: TensorInput | None = Field(default=None, description="[time, action] executed between them")


def image_source(image: ImageBody, field: str) -> ImageSource:
    if (image.encoded is None) == (image.raw is None):
        shown = "neither" if image.raw is None else "both"
        raise invalid(field, "must have encoded or raw set", shown, Reason.INVALID_IMAGE)
    if image.raw is None:
        return EncodedImage(decode_bytes(image.encoded or "", f"{field}.encoded", Reason.INVALID_IMAGE))
    raw = image.raw
    content = decode_bytes(raw.data, f"{field}.raw.data", Reason.INVALID_IMAGE)
    return RawImage(raw.height, raw.width, raw.format, content)


def image_sources(images: list[ImageBody], field: str) -> list[tuple[str, ImageSource]]:
    """Each image with the name of its field."""
    return [(name := f"{field}[{index}]", image_source(image, name)) for index, image in enumerate(images)]


def observation_sources(body: ObservationBody, field: str) -> list[tuple[str, ImageSource]]:
    """Its images, and behind them those of the past."""
    return [*image_sources(body.images, f"{field}.images"), *image_sources(body.past_images, f"{field}.past_images")]


def decode_observation(
    body: ObservationBody, frames: tuple[calls.Frame, ...], field: str = "observation"
) -> calls.Observation:
    """`frames` are what `observation_sources` gave, decoded."""
    proprioception, captured, executed = None, None, None
    if body.proprioception is not None:
        proprioception = decode_tensor(body.proprioception, f"{field}.proprioception")
    if body.capture_time is not None:
        captured = _decode_instant(body.capture_time, f"{field}.capture_time")
    if body.past_actions is not None:
        executed = decode_tensor(body.past_actions, f"{field}.past_actions")
    count = len(body.images)
    return calls.Observation(frames[:count], proprioception, captured, body.sequence, frames[count:], executed)


def _decode_instant(text: str, field: str) -> int:
    stamp = Timestamp()
    try:
        stamp.FromJsonString(text)
    except ValueError:
        raise invalid(field, "must be an RFC 3339 time such as 2026-01-31T12:00:00.5Z", text) from None
    return decode_time(stamp, field)


# Requests


class PlannerBody(BaseModel):
    """How a plan is searched for. What is not set takes the model's value."""

    model_config = Strict
    samples: Count | None = None
    iterations: Count | None = None
    elites: Count | None = None
    horizon: Count | None = None
    optimizer: Name | None = Field(default=None, description=f"One of {', '.join(calls.OPTIMIZERS)}")
    dimensions: list[Name] = Field(
        default=[], max_length=64, description="Names of the action entries to search over; the others stay at rest"
    )
    discount: float | None = Field(
        default=None, description="Weight of each model step's distance to the goal, relative to the step before"
    )
    metric: Name | None = Field(default=None, description=f"Distance of latents: {', '.join(calls.METRICS)}")
    narrowing: float | None = Field(default=None, description="Of mppi: share of the spread left an iteration later")
    sample_decay: float | None = Field(
        default=None, description="Of searches by samples: share of the samples left an iteration later"
    )

    def decoded(self) -> calls.PlannerSettings:
        return calls.PlannerSettings(
            self.samples,
            self.iterations,
            self.elites,
            self.horizon,
            self.optimizer,
            tuple(self.dimensions),
            self.discount,
            self.metric,
            self.narrowing,
            self.sample_decay,
        )


class PlanBody(BaseModel):
    """Asks for a plan."""

    model_config = Strict
    observation: ObservationBody
    session_id: Name = Field(default="", description="Empty plans without history and warm start")
    model: Name = Field(default="", description="Used only without a session; empty means the default model")
    goal_id: Name = Field(default="", description="Empty means the session's goal")
    planner: PlannerBody = PlannerBody()
    seed: Number64 | None = None
    budget_ms: Real | None = Field(default=None, description="Time to think")
    executed: Count = Field(default=0, description="Actions executed of the plan that plan_sequence names")
    request_id: Name = Field(default="", description="Repeating it in a session returns the same plan")
    plan_sequence: Number64 = Field(
        default=0, description="observation_sequence of the plan that executed counts from; 0 means the session's last"
    )

    def decoded(self, observation: calls.Observation) -> calls.PlanRequest:
        return calls.PlanRequest(
            observation,
            session_id=self.session_id,
            model=self.model,
            goal_id=self.goal_id,
            planner=self.planner.decoded(),
            seed=self.seed,
            budget_ms=self.budget_ms,
            executed=self.executed,
            request_id=self.request_id,
            plan_sequence=self.plan_sequence,
        )


class RolloutBody(BaseModel):
    """Asks what given actions lead to."""

    model_config = Strict
    observation: ObservationBody
    actions: TensorInput = Field(description="[time, action] in robot units")
    session_id: Name = ""
    model: Name = ""
    goal_id: Name = ""


class ScoreBody(BaseModel):
    """Asks what candidates cost."""

    model_config = Strict
    observation: ObservationBody
    candidates: TensorInput = Field(description="[candidates, time, action] in robot units")
    session_id: Name = ""
    model: Name = ""
    goal_id: Name = ""


class DistanceBody(BaseModel):
    """Asks how far images are from a goal."""

    model_config = Strict
    images: list[ImageBody] = Field(min_length=1)
    session_id: Name = ""
    model: Name = ""
    goal_id: Name = Field(default="", description="Empty means the session's goal")


class SurpriseBody(BaseModel):
    """Asks how surprising what happened is."""

    model_config = Strict
    observations: list[ObservationBody] = Field(min_length=2, description="What was seen, one per step of the model")
    actions: TensorInput = Field(description="[time, action] in robot units: what was done between them")
    session_id: Name = Field(default="", description="Whose statistics calibrate the answer and learn from it")
    model: Name = ""


class LandscapeBody(BaseModel):
    """Asks for the cost of a grid of actions around rest."""

    model_config = Strict
    observation: ObservationBody
    session_id: Name = ""
    model: Name = ""
    goal_id: Name = Field(default="", description="Empty means the session's goal")
    dimensions: list[Name] = Field(
        default=[], max_length=3, description="Action entries to vary; empty means the first three searched"
    )
    points: Count = Field(default=5, description="Along each entry, odd so that rest is one of them")
    extent: Real = Field(default=1.0, description="How far to go, as a fraction of the bounds")
    plot: bool = Field(default=False, description="Whether to draw the grid too")

    def decoded(self, observation: calls.Observation) -> calls.LandscapeRequest:
        return calls.LandscapeRequest(
            observation,
            session_id=self.session_id,
            model=self.model,
            goal_id=self.goal_id,
            dimensions=tuple(self.dimensions),
            points=self.points,
            extent=self.extent,
            plot=self.plot,
        )


class MoveBody(BaseModel):
    """One exploratory move."""

    model_config = Strict
    before: ObservationBody
    action: TensorInput = Field(description="[action] in robot units")
    after: ObservationBody


class CalibrateBody(BaseModel):
    """Exploratory moves, at least two in different directions."""

    model_config = Strict
    moves: list[MoveBody] = Field(max_length=64)


class GoalBody(BaseModel):
    """A goal to embed: either an image, or a latent of the model."""

    model_config = ConfigDict(
        **Strict, json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["latent"]}]}
    )
    model: Name = ""
    image: ImageBody | None = None
    latent: TensorInput | None = None
    proprioception: TensorInput | None = Field(
        default=None, description="What the robot should measure there, for models with measures_goals"
    )


class StageBody(BaseModel):
    """One goal of several on the way, and when to go on to the next. The last stage stays."""

    model_config = Strict
    goal_id: Name
    switch_below: Real = Field(default=0.0, description="Go on at or below this goal_distance; 0 never does")
    max_actions: Count = Field(default=0, description="Go on after this many executed actions; 0 waits")


class SessionBody(BaseModel):
    """Opens a session."""

    model_config = Strict
    model: Name = ""
    goal_id: Name = ""
    ttl_s: Real = Field(default=0.0, description="0 means the server's default")
    seed: Number64 | None = None
    stages: list[StageBody] = Field(
        default=[], description="Goals to be reached one after another; the first becomes the session's"
    )

    def decoded(self) -> calls.SessionRequest:
        stages = tuple(calls.GoalStage(each.goal_id, each.switch_below, each.max_actions) for each in self.stages)
        return calls.SessionRequest(self.model, self.goal_id, self.ttl_s, self.seed, stages)


class EmbedImagesBody(BaseModel):
    """Images to embed."""

    model_config = Strict
    images: list[ImageBody] = Field(min_length=1)
    model: Name = ""
    kind: calls.EmbeddingKind = "per_frame"
    goal_id: Name = ""


class UploadForm(BaseModel):
    """What may stand beside a clip in every uploaded form."""

    model_config = ConfigDict(extra="forbid")
    model: Name = ""
    fps: Real | None = None
    frames: Count | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(default=None, description="Of the file")


class ClipForm(UploadForm):
    """What may stand beside a clip to embed."""

    kind: calls.EmbeddingKind = "pooled"
    goal_id: Name = ""


class ClassifyForm(UploadForm):
    """What may stand beside a clip to classify."""

    top_k: Count = Field(default=calls.ClassifyClipRequest.top_k, description="Classes to send back, likeliest first")
