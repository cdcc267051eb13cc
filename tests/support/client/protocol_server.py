"""A server that speaks presage.v1 over real gRPC and knows no model: every call of the contract, over one memory.

It keeps the contract (repeated request ids, heartbeats) and, unlike a healthy server, misbehaves when told to: it
refuses calls, stalls, drops streams. What a real server does is test_real_server.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
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
)

from tests.support.client.protocol_behavior import Behavior, Refusal, abort
from tests.support.client.protocol_service import Service, tensor


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
        name = f"session-{len(self.service.behavior.calls)}"
        session = sessions_pb2.Session(
            session_id=name,
            model="echo",
            goal_id=request.goal_id,
            ttl_s=request.ttl_s or 60,
            execute=self.service.model().execute,
        )
        if request.stages:
            session.goal_id, session.stage = request.stages[0].goal_id, 0
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

    def Calibrate(self, request: Any, context: Any) -> Any:
        self.service.enter("Sessions.Calibrate", request, context)
        session = self.service.find_session(request.session_id, context)
        session.calibration.moves = len(request.moves)
        return sessions_pb2.SessionsCalibrateResponse(session=session)

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
            self.service.behavior.chunks.append(len(message.chunk))
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
        while not self.service.behavior.planning.wait(0.01):
            if not context.is_active():
                return planning_pb2.PlanResponse()
        key = (request.session_id, request.request_id)
        if key not in self.service.replies:
            self.service.replies[key] = self.service.make_plan(session, request, goal_id, request.seed)
        if refusal is not None:
            abort(context, refusal)
        return planning_pb2.PlanResponse(plan=self.service.replies[key])

    def Control(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        behavior = self.service.behavior
        start = next(request_iterator).start
        self.service.enter("Planning.Control", start, context)
        session = self.service.find_session(start.session_id, context)
        behavior.starts.append(start)
        goal_id = start.goal_id or session.goal_id
        for request in request_iterator:
            kind = request.WhichOneof("message")
            if behavior.muted:
                continue
            if kind == "heartbeat":
                behavior.heartbeats += 1
                yield planning_pb2.ControlResponse(heartbeat=request.heartbeat)
            elif kind == "goal":
                goal_id = request.goal.goal_id
            elif kind == "observation":
                observation = request.observation
                behavior.observations.append(observation)
                if behavior.drop_streams:
                    behavior.drop_streams -= 1
                    abort(context, Refusal("UNAVAILABLE", "ENGINE_LOST", "the engine stopped"))
                if behavior.refused_observations:
                    refusal = behavior.refused_observations.pop(0)
                    sequence = observation.observation.sequence
                    error = planning_pb2.ControlError(
                        reason=refusal.reason, message=refusal.message, observation_sequence=sequence
                    )
                    yield planning_pb2.ControlResponse(error=error)
                    continue
                while not behavior.planning.wait(0.01):
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


def health_handler(behavior: Behavior) -> grpc.GenericRpcHandler:
    """grpc.health.v1 by hand, so that it needs no package that old Pythons lack."""

    def check(request: bytes, context: Any) -> bytes:
        return b"\x08\x01" if behavior.serving else b"\x08\x02"

    handler = grpc.unary_unary_rpc_method_handler(check)
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})


@dataclass(frozen=True)
class Running:
    """A server in this process."""

    address: str
    behavior: Behavior
    service: Service


@contextmanager
def running(port: int = 0, service: Service | None = None, credentials: Any = None) -> Iterator[Running]:
    """Serves on a free port, or on `port`, with the memory of an earlier server where one is given."""
    service = service or Service(Behavior())
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=[("grpc.so_reuseport", 0)])
    models_pb2_grpc.add_ModelsServicer_to_server(Models(service), server)
    goals_pb2_grpc.add_GoalsServicer_to_server(Goals(service), server)
    sessions_pb2_grpc.add_SessionsServicer_to_server(Sessions(service), server)
    embeddings_pb2_grpc.add_EmbeddingsServicer_to_server(Embeddings(service), server)
    planning_pb2_grpc.add_PlanningServicer_to_server(Planning(service), server)
    server.add_generic_rpc_handlers((health_handler(service.behavior),))
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    assert bound, f"port {port} must be free"
    server.start()
    try:
        yield Running(f"127.0.0.1:{bound}", service.behavior, service)
    finally:
        service.behavior.planning.set()
        server.stop(None).wait(5)
