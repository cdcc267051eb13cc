"""A server that speaks presage.v1 over real gRPC and knows no model: plans follow from seed and sequence alone.

It keeps the contract (unknown goals, image sizes, repeated request ids, heartbeats) and, unlike a healthy server,
misbehaves when told to: it refuses calls, stalls, drops streams. What a real server does is test_real_server.py's.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Iterator

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from presage.v1 import (
    embeddings_pb2,
    embeddings_pb2_grpc,
    goals_pb2,
    goals_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    planning_pb2,
    planning_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    tensor_pb2,
)

SIZE = 8  # pixels, square
HORIZON, ACTION = 6, 2
CODES = {code.name: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Refusal:
    """How a call is refused."""

    code: str
    reason: str = ""
    message: str = "refused by the test"
    field: str = ""
    retry_after_s: float | None = None


@dataclass
class Behaviour:
    """What the server was told to do wrong, and what it saw."""

    refusals: list[Refusal] = field(default_factory=list)  # one for each of the next calls
    refuse_after_work: bool = False  # the work is done, its reply is lost
    serving: bool = True
    planning: threading.Event = field(default_factory=threading.Event)  # clear: plans wait
    muted: bool = False  # control streams hear and say nothing
    drop_streams: int = 0  # control streams that end at their next observation
    calls: list[str] = field(default_factory=list)
    metadata: list[Any] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    starts: list[Any] = field(default_factory=list)
    observations: list[Any] = field(default_factory=list)
    refused_observations: list[Refusal] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    plans_made: int = 0

    def __post_init__(self) -> None:
        self.planning.set()


def abort(context: Any, refusal: Refusal, request_id: str = "served-1") -> None:
    """Ends a call with a google.rpc.Status, or with a bare code where the refusal has no reason."""
    if not refusal.reason:
        context.abort(CODES[refusal.code], refusal.message)
    details = [
        error_details_pb2.ErrorInfo(reason=refusal.reason, domain="presage"),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=refusal.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if refusal.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(refusal.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=CODES[refusal.code].value[0], message=refusal.message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))


def tensor(array: np.ndarray) -> tensor_pb2.Tensor:
    data = np.ascontiguousarray(array, "<f4")
    return tensor_pb2.Tensor(dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32, shape=data.shape, data=data.tobytes())


def expected_actions(seed: int, sequence: int) -> np.ndarray:
    """The actions of the plan with this seed for the observation with this sequence: [HORIZON, ACTION] in [-1, 1]."""
    actions: np.ndarray = np.random.RandomState([seed % 2**32, sequence]).uniform(-1, 1, (HORIZON, ACTION))
    return actions.astype(np.float32)


class Service:
    """All five services over one memory."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.goals: dict = {}
        self.sessions: dict = {}
        self.replies: dict = {}
        self.lock = threading.Lock()

    def enter(self, method: str, request: Any, context: Any) -> Refusal | None:
        """Notes the call and refuses it if told so; a refusal that comes after the work is returned."""
        behaviour = self.behaviour
        with self.lock:
            behaviour.calls.append(method)
            behaviour.metadata.append(dict(context.invocation_metadata()))
            behaviour.requests.append(request)
            refusal = behaviour.refusals.pop(0) if behaviour.refusals else None
        if refusal is not None and not behaviour.refuse_after_work:
            abort(context, refusal)
        return refusal

    def model(self) -> models_pb2.Model:
        return models_pb2.Model(
            name="echo",
            family="compact",
            weights_digest="00ff",
            image=models_pb2.ImageSpec(height=SIZE, width=SIZE, crop_policy="exact", cameras=1),
            action=models_pb2.ActionSpec(
                names=["a", "b"], units=["rad/s", "rad/s"], low=[-1, -1], high=[1, 1], rate_hz=50, block=2
            ),
            latent_shape=[4],
            planner=models_pb2.PlannerSettings(samples=16, iterations=3, elites=4, horizon=3),
            limits=models_pb2.Limits(message_bytes=1 << 24, clip_bytes=1 << 26),
            card="# echo",
            execute=2,
            server_version="0.0-test",
        )

    def check_images(self, images: Any, context: Any) -> None:
        for at, image in enumerate(images):
            raw = image.raw
            if image.WhichOneof("source") == "raw" and (raw.height, raw.width) != (SIZE, SIZE):
                message = f"observation.images[{at}] must be {SIZE}x{SIZE} pixels, got {raw.width}x{raw.height}"
                abort(context, Refusal("INVALID_ARGUMENT", "IMAGE_SIZE", message, f"observation.images[{at}]"))

    def check_goal(self, goal_id: str, context: Any) -> None:
        if goal_id not in self.goals:
            abort(context, Refusal("NOT_FOUND", "UNKNOWN_GOAL", f"goal_id must be known, got {goal_id}", "goal_id"))

    def find_session(self, session_id: str, context: Any) -> sessions_pb2.Session:
        if session_id not in self.sessions:
            abort(
                context, Refusal("NOT_FOUND", "UNKNOWN_SESSION", "session_id must name an open session", "session_id")
            )
        session: sessions_pb2.Session = self.sessions[session_id]
        return session

    def make_plan(self, session: Any, message: Any, goal_id: str, seed: int) -> planning_pb2.Plan:
        observation = message.observation
        with self.lock:
            self.behaviour.plans_made += 1
            sequence = observation.sequence
            if session is not None:
                sequence = sequence or session.last_sequence + 1
                session.last_sequence = max(session.last_sequence, sequence)
                session.plans += 1
        plan = planning_pb2.Plan(
            actions=tensor(expected_actions(seed, sequence)),
            step_costs=[3.0, 2.0, 1.0],
            cost=6.0,
            goal_distance=4.0,
            iteration_costs=[9.0, 6.0],
            elite_spread=[0.5, 0.25],
            iterations_done=2,
            stop_reason=planning_pb2.STOP_REASON_BUDGET,
            seed=seed,
            warm_started=message.executed > 0,
            observation_sequence=sequence,
            epoch=session.epoch if session is not None else 0,
            timings=planning_pb2.Timings(queue_ms=1, decode_ms=2, encode_ms=3, plan_ms=4, total_ms=10),
            provenance=planning_pb2.Provenance(model="echo", goal_id=goal_id, device="none"),
            warnings=["made up"],
        )
        if observation.HasField("capture_time"):
            plan.capture_time.CopyFrom(observation.capture_time)
        return plan


class Models(models_pb2_grpc.ModelsServicer):
    def __init__(self, service: Service) -> None:
        self.service = service

    def List(self, request: Any, context: Any) -> Any:
        self.service.enter("Models.List", request, context)
        return models_pb2.ModelsListResponse(models=[self.service.model()])

    def Get(self, request: Any, context: Any) -> Any:
        self.service.enter("Models.Get", request, context)
        if request.name not in ("", "echo"):
            abort(context, Refusal("NOT_FOUND", "UNKNOWN_MODEL", f"model must be echo, got {request.name}", "model"))
        return models_pb2.ModelsGetResponse(model=self.service.model())


class Goals(goals_pb2_grpc.GoalsServicer):
    def __init__(self, service: Service) -> None:
        self.service = service

    def Create(self, request: Any, context: Any) -> Any:
        self.service.enter("Goals.Create", request, context)
        name = hashlib.sha256(request.SerializeToString()).hexdigest()
        goal = goals_pb2.Goal(goal_id=name, model="echo", cached=name in self.service.goals)
        self.service.goals[name] = goal
        return goals_pb2.GoalsCreateResponse(goal=goal)

    def Get(self, request: Any, context: Any) -> Any:
        self.service.enter("Goals.Get", request, context)
        self.service.check_goal(request.goal_id, context)
        return goals_pb2.GoalsGetResponse(goal=self.service.goals[request.goal_id])

    def Delete(self, request: Any, context: Any) -> Any:
        self.service.enter("Goals.Delete", request, context)
        self.service.check_goal(request.goal_id, context)
        del self.service.goals[request.goal_id]
        return goals_pb2.GoalsDeleteResponse()


class Sessions(sessions_pb2_grpc.SessionsServicer):
    def __init__(self, service: Service) -> None:
        self.service = service

    def Create(self, request: Any, context: Any) -> Any:
        self.service.enter("Sessions.Create", request, context)
        name = f"session-{len(self.service.behaviour.calls)}"
        session = sessions_pb2.Session(
            session_id=name, model="echo", goal_id=request.goal_id, ttl_s=request.ttl_s or 60
        )
        self.service.sessions[name] = session
        return sessions_pb2.SessionsCreateResponse(session=session)

    def Get(self, request: Any, context: Any) -> Any:
        self.service.enter("Sessions.Get", request, context)
        return sessions_pb2.SessionsGetResponse(session=self.service.find_session(request.session_id, context))

    def Reset(self, request: Any, context: Any) -> Any:
        self.service.enter("Sessions.Reset", request, context)
        session = self.service.find_session(request.session_id, context)
        session.epoch, session.plans, session.last_sequence = session.epoch + 1, 0, 0
        return sessions_pb2.SessionsResetResponse(session=session)

    def Delete(self, request: Any, context: Any) -> Any:
        self.service.enter("Sessions.Delete", request, context)
        self.service.find_session(request.session_id, context)
        del self.service.sessions[request.session_id]
        return sessions_pb2.SessionsDeleteResponse()


class Embeddings(embeddings_pb2_grpc.EmbeddingsServicer):
    def __init__(self, service: Service) -> None:
        self.service = service

    def EmbedImages(self, request: Any, context: Any) -> Any:
        self.service.enter("Embeddings.EmbedImages", request, context)
        self.service.check_images(request.images, context)
        means = [np.frombuffer(image.raw.data or image.encoded, np.uint8).mean() for image in request.images]
        distances = means if request.goal_id else []
        return embeddings_pb2.EmbedImagesResponse(
            embedding=tensor(np.repeat(np.array(means)[:, None], 4, 1)), goal_distances=distances, model="echo"
        )

    def EmbedClip(self, request_iterator: Any, context: Any) -> Any:
        header = next(request_iterator).header
        refusal = self.service.enter("Embeddings.EmbedClip", header, context)
        digest, received = hashlib.sha256(), 0
        for message in request_iterator:
            assert message.WhichOneof("part") == "chunk"
            self.service.behaviour.chunks.append(len(message.chunk))
            digest.update(message.chunk)
            received += len(message.chunk)
        if (received, digest.digest()) != (header.total_bytes, header.sha256):
            abort(context, Refusal("INVALID_ARGUMENT", "CLIP_MISMATCH", "chunk must add up", "chunk"))
        if refusal is not None:
            abort(context, refusal)
        return embeddings_pb2.EmbedClipResponse(
            embedding=tensor(np.full(4, received)), frame_times_s=[0.0, 0.5], step_distances=[1.5], model="echo"
        )


class Planning(planning_pb2_grpc.PlanningServicer):
    def __init__(self, service: Service) -> None:
        self.service = service

    def Plan(self, request: Any, context: Any) -> Any:
        refusal = self.service.enter("Planning.Plan", request, context)
        self.service.check_images(request.observation.images, context)
        session = self.service.find_session(request.session_id, context) if request.session_id else None
        goal_id = request.goal_id or (session.goal_id if session is not None else "")
        self.service.check_goal(goal_id, context)
        while not self.service.behaviour.planning.wait(0.01):
            if not context.is_active():
                return planning_pb2.PlanResponse()
        key = (request.session_id, request.request_id)
        if key not in self.service.replies:
            self.service.replies[key] = self.service.make_plan(session, request, goal_id, request.seed)
        if refusal is not None:
            abort(context, refusal)
        return planning_pb2.PlanResponse(plan=self.service.replies[key])

    def Control(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        behaviour = self.service.behaviour
        start = next(request_iterator).start
        self.service.enter("Planning.Control", start, context)
        session = self.service.find_session(start.session_id, context)
        behaviour.starts.append(start)
        goal_id = start.goal_id or session.goal_id
        for request in request_iterator:
            kind = request.WhichOneof("message")
            if behaviour.muted:
                continue
            if kind == "heartbeat":
                yield planning_pb2.ControlResponse(heartbeat=request.heartbeat)
            elif kind == "goal":
                goal_id = request.goal.goal_id
            elif kind == "observation":
                observation = request.observation
                behaviour.observations.append(observation)
                if behaviour.drop_streams:
                    behaviour.drop_streams -= 1
                    abort(context, Refusal("UNAVAILABLE", "ENGINE_LOST", "the engine stopped"))
                if behaviour.refused_observations:
                    refusal = behaviour.refused_observations.pop(0)
                    sequence = observation.observation.sequence
                    error = planning_pb2.ControlError(
                        reason=refusal.reason, message=refusal.message, observation_sequence=sequence
                    )
                    yield planning_pb2.ControlResponse(error=error)
                    continue
                while not behaviour.planning.wait(0.01):
                    if not context.is_active():
                        return
                plan = self.service.make_plan(session, observation, goal_id, observation.seed)
                yield planning_pb2.ControlResponse(plan=planning_pb2.ControlPlan(plan=plan))

    def Rollout(self, request: Any, context: Any) -> Any:
        self.service.enter("Planning.Rollout", request, context)
        steps = request.actions.shape[0] // 2
        latents = tensor(np.arange(steps * 4).reshape(steps, 4))
        return planning_pb2.RolloutResponse(latents=latents, goal_distances=[1.0] * steps if request.goal_id else [])

    def Distance(self, request: Any, context: Any) -> Any:
        self.service.enter("Planning.Distance", request, context)
        means = [np.frombuffer(image.raw.data or image.encoded, np.uint8).mean() for image in request.images]
        return planning_pb2.DistanceResponse(distances=means)

    def Surprise(self, request: Any, context: Any) -> Any:
        self.service.enter("Planning.Surprise", request, context)
        errors = [0.5] * (len(request.observations) - 1)
        scores = [2.0] * len(errors) if request.session_id else []
        return planning_pb2.SurpriseResponse(errors=errors, scores=scores, steps_known=9)

    def Score(self, request: Any, context: Any) -> Any:
        self.service.enter("Planning.Score", request, context)
        candidates = np.frombuffer(request.candidates.data, "<f4").reshape(tuple(request.candidates.shape))
        costs = np.abs(candidates).sum(-1)
        return planning_pb2.ScoreResponse(costs=costs.sum(-1).tolist(), step_costs=tensor(costs))


def health_handler(behaviour: Behaviour) -> grpc.GenericRpcHandler:
    """grpc.health.v1 by hand, so that it needs no package that old Pythons lack."""

    def check(request: bytes, context: Any) -> bytes:
        return b"\x08\x01" if behaviour.serving else b"\x08\x02"

    handler = grpc.unary_unary_rpc_method_handler(check)
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})


@dataclass(frozen=True)
class Running:
    """A server in this process."""

    address: str
    behaviour: Behaviour
    service: Service


@contextmanager
def running(port: int = 0, service: Service | None = None, credentials: Any = None) -> Iterator[Running]:
    """Serves on a free port, or on `port`, with the memory of an earlier server where one is given."""
    service = service or Service(Behaviour())
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=[("grpc.so_reuseport", 0)])
    models_pb2_grpc.add_ModelsServicer_to_server(Models(service), server)
    goals_pb2_grpc.add_GoalsServicer_to_server(Goals(service), server)
    sessions_pb2_grpc.add_SessionsServicer_to_server(Sessions(service), server)
    embeddings_pb2_grpc.add_EmbeddingsServicer_to_server(Embeddings(service), server)
    planning_pb2_grpc.add_PlanningServicer_to_server(Planning(service), server)
    server.add_generic_rpc_handlers((health_handler(service.behaviour),))
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    assert bound, f"port {port} must be free"
    server.start()
    try:
        yield Running(f"127.0.0.1:{bound}", service.behaviour, service)
    finally:
        service.behaviour.planning.set()
        server.stop(None).wait(5)
