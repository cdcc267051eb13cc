"""Every call of the service: its path, its messages, and whether it is idempotent.

Built from the messages alone. The generated `*_pb2_grpc` stubs refuse grpcio before 1.70, which the wire does not, and
one table serves the blocking and the asyncio client alike.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Callable, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from presage.errors import ServerError
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, planning_pb2, sessions_pb2

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Method(Generic[Request, Reply]):
    """One RPC. `repeatable`: a second attempt after a lost reply changes nothing that the first did not."""

    path: str
    request: type[Request]
    reply: type[Reply]
    repeatable: bool

    def parse(self, data: bytes) -> Reply:
        """The reply's message. Raises ServerError for bytes that are none."""
        try:
            return self.reply.FromString(data)
        except DecodeError as error:
            raise ServerError(
                f"{self.path} answered {len(data)} bytes that cannot be read", reason="INTERNAL"
            ) from error


@dataclass(frozen=True)
class Call(Generic[Value]):
    """One request on its way: what to send where, and how the reply's bytes become a value."""

    path: str
    payload: bytes
    read: Callable[[bytes], Value]
    repeatable: bool
    request_id: str


def call(
    method: Method[Request, Reply], request: Request, read: Callable[[Reply], Value], request_id: str = ""
) -> Call[Value]:
    """A request ready to send; `request_id` is made up where the caller has none."""
    return Call(
        method.path,
        request.SerializeToString(),
        lambda data: read(method.parse(data)),
        method.repeatable,
        request_id or new_request_id(),
    )


def new_request_id() -> str:
    """A name for one call, for the logs of both sides."""
    return uuid.uuid4().hex


LIST_MODELS = Method(
    "/presage.v1.Models/List", models_pb2.ModelsListRequest, models_pb2.ModelsListResponse, repeatable=True
)
GET_MODEL = Method("/presage.v1.Models/Get", models_pb2.ModelsGetRequest, models_pb2.ModelsGetResponse, repeatable=True)
EMBED_IMAGES = Method(
    "/presage.v1.Embeddings/EmbedImages",
    embeddings_pb2.EmbedImagesRequest,
    embeddings_pb2.EmbedImagesResponse,
    repeatable=True,
)
EMBED_CLIP = Method(
    "/presage.v1.Embeddings/EmbedClip",
    embeddings_pb2.EmbedClipRequest,
    embeddings_pb2.EmbedClipResponse,
    repeatable=True,
)
CLASSIFY_CLIP = Method(
    "/presage.v1.Embeddings/ClassifyClip",
    embeddings_pb2.ClassifyClipRequest,
    embeddings_pb2.ClassifyClipResponse,
    repeatable=True,
)
# A goal is named by its content: making it twice finds it the second time.
CREATE_GOAL = Method(
    "/presage.v1.Goals/Create", goals_pb2.GoalsCreateRequest, goals_pb2.GoalsCreateResponse, repeatable=True
)
GET_GOAL = Method("/presage.v1.Goals/Get", goals_pb2.GoalsGetRequest, goals_pb2.GoalsGetResponse, repeatable=True)
DELETE_GOAL = Method(
    "/presage.v1.Goals/Delete", goals_pb2.GoalsDeleteRequest, goals_pb2.GoalsDeleteResponse, repeatable=False
)
# A repeated Create would leave a session behind that nobody closes; a repeated Reset would count an epoch too many.
CREATE_SESSION = Method(
    "/presage.v1.Sessions/Create",
    sessions_pb2.SessionsCreateRequest,
    sessions_pb2.SessionsCreateResponse,
    repeatable=False,
)
GET_SESSION = Method(
    "/presage.v1.Sessions/Get", sessions_pb2.SessionsGetRequest, sessions_pb2.SessionsGetResponse, repeatable=True
)
RESET_SESSION = Method(
    "/presage.v1.Sessions/Reset",
    sessions_pb2.SessionsResetRequest,
    sessions_pb2.SessionsResetResponse,
    repeatable=False,
)
DELETE_SESSION = Method(
    "/presage.v1.Sessions/Delete",
    sessions_pb2.SessionsDeleteRequest,
    sessions_pb2.SessionsDeleteResponse,
    repeatable=False,
)
# The same moves give the same calibration.
CALIBRATE_SESSION = Method(
    "/presage.v1.Sessions/Calibrate",
    sessions_pb2.SessionsCalibrateRequest,
    sessions_pb2.SessionsCalibrateResponse,
    repeatable=True,
)
# Safe to repeat because the request id makes the server answer with the same plan.
PLAN = Method("/presage.v1.Planning/Plan", planning_pb2.PlanRequest, planning_pb2.PlanResponse, repeatable=True)
CONTROL = Method(
    "/presage.v1.Planning/Control", planning_pb2.ControlRequest, planning_pb2.ControlResponse, repeatable=False
)
ROLLOUT = Method(
    "/presage.v1.Planning/Rollout", planning_pb2.RolloutRequest, planning_pb2.RolloutResponse, repeatable=True
)
DISTANCE = Method(
    "/presage.v1.Planning/Distance", planning_pb2.DistanceRequest, planning_pb2.DistanceResponse, repeatable=True
)
# A session learns from what it is asked: asked twice, it would count the same steps twice.
SURPRISE = Method(
    "/presage.v1.Planning/Surprise", planning_pb2.SurpriseRequest, planning_pb2.SurpriseResponse, repeatable=False
)
SCORE = Method("/presage.v1.Planning/Score", planning_pb2.ScoreRequest, planning_pb2.ScoreResponse, repeatable=True)
LANDSCAPE = Method(
    "/presage.v1.Planning/Landscape",
    planning_pb2.LandscapeRequest,
    planning_pb2.LandscapeResponse,
    repeatable=True,
)
