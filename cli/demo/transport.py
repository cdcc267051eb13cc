"""The service as the demo's robot reaches it: through the `presage` client over gRPC, or through plain HTTP.

Nothing of the service's own code is imported here. Arrays go as raw pixels on both transports, so both see the
same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from presage import Client, PresageError, Session
from presage.user_error import UserError

Frame = NDArray[np.uint8]  # [height, width, 3] RGB
DEADLINE_S = 120.0
READY_S = 5.0  # the service says it is ready before a robot is started


class TransportError(UserError):
    """The service refused or could not be reached; the message is what it said."""


@dataclass(frozen=True)
class ModelFacts:
    """What a robot must know of the model it is going to ask."""

    name: str
    family: str
    weights_digest: str
    server_version: str
    height: int
    width: int
    crop_policy: str
    action_names: tuple[str, ...]
    proprioception: int  # numbers a plan wants to be told of the robot itself
    rate_hz: float
    block: int


@dataclass(frozen=True, eq=False)
class PlanResult:
    """A plan, and how long it took: the round trip on this side, the rest as the service says, in milliseconds."""

    actions: NDArray[np.float32]  # [time, action]
    goal_distance: float
    cost: float
    step_costs: tuple[float, ...]
    iteration_costs: tuple[float, ...]
    warm_started: bool
    stop_reason: str
    seed: int
    planner: dict[str, int]
    device: str
    dtype: str
    queue_ms: float
    decode_ms: float
    encode_ms: float
    plan_ms: float
    total_ms: float
    round_trip_ms: float


@dataclass(frozen=True, eq=False)
class ClipResult:
    """An embedded clip."""

    shape: tuple[int, ...]
    frame_times_s: tuple[float, ...]
    goal_distances: tuple[float, ...]
    upload_ms: float


class Transport(Protocol):
    """One way into the service. Every call raises TransportError."""

    def model(self) -> ModelFacts: ...

    def goal(self, image: Frame) -> str:
        """The id of the goal that looks like this."""
        ...

    def begin(self, goal_id: str) -> None:
        """Open a session toward a goal; the one before it is closed."""
        ...

    def plan(self, seen: Frame, proprioception: Sequence[float] | None, executed: int, seed: int) -> PlanResult:
        """The session's next plan, after `executed` actions of the last one."""
        ...

    def distances(self, images: NDArray[np.uint8], goal_id: str) -> tuple[float, ...]:
        """How far each image [count, height, width, 3] is from the goal."""
        ...

    def clip(self, path: Path, kind: str, goal_id: str) -> ClipResult:
        """Send a video file and get its embedding: kind is "pooled" or "per_frame"."""
        ...

    def close(self) -> None: ...


def open_transport(transport: str, address: str) -> Transport:
    """The transport for a transport: "grpc" at host:port, or "rest" at http://host:port."""
    if transport == "grpc":
        return GrpcDoor(address)
    from cli.demo.rest_transport import RestDoor

    return RestDoor(address)


class GrpcDoor:
    """Through the `presage` client."""

    def __init__(self, address: str) -> None:
        self._client = Client(address, timeout_s=DEADLINE_S)
        self._session: Session | None = None

    def model(self) -> ModelFacts:
        try:
            self._client.wait_ready(READY_S)
            found = self._client.model()
        except PresageError as error:
            raise TransportError(str(error)) from error
        action = found.action
        return ModelFacts(
            name=found.name,
            family=found.family,
            weights_digest=found.weights_digest,
            server_version=found.server_version,
            height=found.image.height,
            width=found.image.width,
            crop_policy=found.image.crop_policy,
            action_names=action.names if action else (),
            proprioception=len(found.proprioception_names),
            rate_hz=action.rate_hz if action else 0.0,
            block=action.block if action else 0,
        )

    def goal(self, image: Frame) -> str:
        try:
            return self._client.goal(image).goal_id
        except PresageError as error:
            raise TransportError(str(error)) from error

    def begin(self, goal_id: str) -> None:
        try:
            self._end_session()
            self._session = self._client.session(goal=goal_id)
        except PresageError as error:
            raise TransportError(str(error)) from error

    def plan(self, seen: Frame, proprioception: Sequence[float] | None, executed: int, seed: int) -> PlanResult:
        assert self._session is not None
        began = time.perf_counter()
        try:
            plan = self._session.plan(seen, proprioception=proprioception, executed=executed, seed=seed)
        except PresageError as error:
            raise TransportError(str(error)) from error
        round_trip_ms = (time.perf_counter() - began) * 1000
        settings, times = plan.provenance.planner, plan.timings
        planner = {name: getattr(settings, name) for name in ("samples", "iterations", "elites", "horizon")}
        return PlanResult(
            actions=plan.actions,
            goal_distance=plan.goal_distance,
            cost=plan.cost,
            step_costs=plan.step_costs,
            iteration_costs=plan.iteration_costs,
            warm_started=plan.warm_started,
            stop_reason=plan.stop_reason,
            seed=plan.seed,
            planner={name: value for name, value in planner.items() if value is not None},
            device=plan.provenance.device,
            dtype=plan.provenance.dtype,
            queue_ms=times.queue_ms,
            decode_ms=times.decode_ms,
            encode_ms=times.encode_ms,
            plan_ms=times.plan_ms,
            total_ms=times.total_ms,
            round_trip_ms=round_trip_ms,
        )

    def distances(self, images: NDArray[np.uint8], goal_id: str) -> tuple[float, ...]:
        try:
            return self._client.embed_images(list(images), goal=goal_id).goal_distances
        except PresageError as error:
            raise TransportError(str(error)) from error

    def clip(self, path: Path, kind: str, goal_id: str) -> ClipResult:
        began = time.perf_counter()
        try:
            found = self._client.embed_clip(path, kind, goal=goal_id)
        except PresageError as error:
            raise TransportError(str(error)) from error
        upload_ms = (time.perf_counter() - began) * 1000
        return ClipResult(tuple(found.embedding.shape), found.frame_times_s, found.goal_distances, upload_ms)

    def close(self) -> None:
        with suppress(PresageError):  # whatever is wrong has been told by the call before
            self._end_session()
        self._client.close()

    def _end_session(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            session.close()
