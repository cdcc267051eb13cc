"""The memory behind a protocol server's services: goals, sessions, and plans that follow from seed and sequence alone.

It keeps the contract (unknown goals and sessions, image sizes); the calls themselves are protocol_server.py's.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from presage.v1 import models_pb2, planning_pb2, sessions_pb2, tensor_pb2

from tests.support.client.protocol_behavior import Behavior, Refusal, abort

SIZE = 8  # pixels, square
HORIZON, ACTION = 6, 2


def tensor(array: np.ndarray) -> tensor_pb2.Tensor:
    data = np.ascontiguousarray(array, "<f4")
    return tensor_pb2.Tensor(dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32, shape=data.shape, data=data.tobytes())


def expected_actions(seed: int, sequence: int) -> np.ndarray:
    """The actions of the plan with this seed for the observation with this sequence: [HORIZON, ACTION] in [-1, 1]."""
    actions: np.ndarray = np.random.RandomState([seed % 2**32, sequence]).uniform(-1, 1, (HORIZON, ACTION))
    return actions.astype(np.float32)


class Service:
    """All five services over one memory."""

    def __init__(self, behavior: Behavior) -> None:
        self.behavior = behavior
        self.goals: dict = {}
        self.sessions: dict = {}
        self.replies: dict = {}
        self.lock = threading.Lock()

    def enter(self, method: str, request: Any, context: Any) -> Refusal | None:
        """Notes the call and refuses it if told so; a refusal that comes after the work is returned."""
        behavior = self.behavior
        with self.lock:
            behavior.calls.append(method)
            behavior.metadata.append(dict(context.invocation_metadata()))
            behavior.requests.append(request)
            refusal = behavior.refusals.pop(0) if behavior.refusals else None
        if refusal is not None and not behavior.refuse_after_work:
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
            self.behavior.plans_made += 1
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
