"""Every call of the service as one table, which both transports serve: what is asked, who answers, where it stands.

A clip's upload and the control stream are each transport's own: their requests are no single message.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from presage import values
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, planning_pb2, sessions_pb2

from server.transport.gateway import Gateway
from server.values import calls
from server.values.caller import require_robot

SERVICES = {
    service.name: service
    for file in (models_pb2, embeddings_pb2, goals_pb2, sessions_pb2, planning_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}


@dataclass(frozen=True)
class Arrival:
    """When a request had arrived whole, and by when it must be answered: instants of time.monotonic()."""

    received: float
    deadline: float | None
    decode_ms: float


@dataclass(frozen=True)
class Method:
    """One call. `route` is its HTTP method and path; names in braces are fields of the request.

    `reply_field` is the field of the response that holds the reply, where the response is not the reply itself; `array`
    the field that a caller over REST may take alone.
    """

    rpc: str  # service and name in presage.v1
    route: str
    request: type
    reply: Any  # a dataclass; None: nothing is answered
    work: Callable[[Gateway, Any, Arrival], Coroutine[Any, Any, Any]]
    reply_field: str = ""
    status: int = 200
    array: str = ""
    looks: bool = False  # whether it only tells what is there, which the role `viewer` may ask for too

    def require_role(self) -> None:
        """Raises FORBIDDEN where the role of the caller at work may not ask for this."""
        if not self.looks:
            require_robot()

    @property
    def described(self) -> MethodDescriptor:
        service, _, name = self.rpc.partition(".")
        described: MethodDescriptor = SERVICES[service].methods_by_name[name]
        return described

    @property
    def reply_message(self) -> Descriptor:
        """The message that the reply is written to: the response, or a field of it."""
        response: Any = self.described.output_type
        held: Descriptor = response.fields_by_name[self.reply_field].message_type if self.reply_field else response
        return held


async def _list_models(gateway: Gateway, asked: calls.Empty, at: Arrival) -> calls.ModelList:
    return calls.ModelList(tuple(_described(gateway, model) for model in gateway.application.models()))


async def _get_model(gateway: Gateway, asked: calls.ModelName, at: Arrival) -> values.Model:
    return _described(gateway, gateway.application.model(asked.name))


def _described(gateway: Gateway, model: values.Model) -> values.Model:
    """What an engine says of a model, with what the front knows."""
    limits = values.Limits(**gateway.limits.model_dump(include=set(values.Limits.__dataclass_fields__)))
    return replace(model, limits=limits, server_version=gateway.server_version)


async def _plan(gateway: Gateway, asked: calls.PlanRequest, at: Arrival) -> values.Plan:
    plan = await gateway.application.plan(asked, at.deadline, at.received, at.decode_ms)
    gateway.telemetry.observe_plan(plan)
    return plan


METHODS = (
    Method("Models.List", "GET /models", calls.Empty, calls.ModelList, _list_models, looks=True),
    Method("Models.Get", "GET /models/{name}", calls.ModelName, values.Model, _get_model, "model", looks=True),
    Method(
        "Goals.Create", "POST /goals", calls.GoalRequest, values.Goal,
        lambda gateway, asked, at: gateway.application.create_goal(asked, at.deadline), "goal", 201,
    ),
    Method(
        "Goals.Get", "GET /goals/{goal_id}", calls.GoalId, values.Goal,
        lambda gateway, asked, at: gateway.application.get_goal(asked.goal_id), "goal", looks=True,
    ),
    Method(
        "Goals.Delete", "DELETE /goals/{goal_id}", calls.GoalId, None,
        lambda gateway, asked, at: gateway.application.delete_goal(asked.goal_id), status=204,
    ),
    Method(
        "Sessions.Create", "POST /sessions", calls.SessionRequest, values.SessionStatus,
        lambda gateway, asked, at: gateway.application.create_session(asked), "session", 201,
    ),
    # Before the plain paths: a colon may stand in a session's id as far as the router knows.
    Method(
        "Sessions.Reset", "POST /sessions/{session_id}:reset", calls.SessionId, values.SessionStatus,
        lambda gateway, asked, at: gateway.application.reset_session(asked.session_id), "session",
    ),
    Method(
        "Sessions.Get", "GET /sessions/{session_id}", calls.SessionId, values.SessionStatus,
        lambda gateway, asked, at: gateway.application.get_session(asked.session_id), "session", looks=True,
    ),
    Method(
        "Sessions.Delete", "DELETE /sessions/{session_id}", calls.SessionId, None,
        lambda gateway, asked, at: gateway.application.delete_session(asked.session_id), status=204,
    ),
    Method(
        "Sessions.Calibrate", "POST /sessions/{session_id}:calibrate", calls.CalibrateRequest, values.SessionStatus,
        lambda gateway, asked, at: gateway.application.calibrate(asked, at.deadline), "session",
    ),
    Method("Planning.Plan", "POST /plans", calls.PlanRequest, values.Plan, _plan, "plan"),
    Method(
        "Planning.Rollout", "POST /rollouts", calls.RolloutRequest, values.Rollout,
        lambda gateway, asked, at: gateway.application.rollout(asked, at.deadline), array="latents",
    ),
    Method(
        "Planning.Score", "POST /scores", calls.ScoreRequest, values.Score,
        lambda gateway, asked, at: gateway.application.score(asked, at.deadline),
    ),
    Method(
        "Planning.Distance", "POST /distances", calls.DistanceRequest, calls.DistanceReply,
        lambda gateway, asked, at: gateway.application.distance(asked, at.deadline),
    ),
    Method(
        "Planning.Surprise", "POST /surprises", calls.SurpriseRequest, values.Surprise,
        lambda gateway, asked, at: gateway.application.surprise(asked, at.deadline),
    ),
    Method(
        "Planning.Landscape", "POST /landscapes", calls.LandscapeRequest, values.Landscape,
        lambda gateway, asked, at: gateway.application.landscape(asked, at.deadline),
    ),
    Method(
        "Embeddings.EmbedImages", "POST /embeddings/images", calls.EmbedImagesRequest, values.Embedding,
        lambda gateway, asked, at: gateway.application.embed_images(asked, at.deadline), array="embedding",
    ),
)  # fmt: skip
