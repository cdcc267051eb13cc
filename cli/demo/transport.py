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
from presage import Client, ClipEmbedding, Model, Plan, PresageError, Session
from presage.user_error import UserError

Frame = NDArray[np.uint8]  # [height, width, 3] RGB
DEADLINE_S = 120.0
READY_S = 5.0  # the service says it is ready before a robot is started


class TransportError(UserError):
    """The service refused or could not be reached; the message is what it said."""


@dataclass(frozen=True, eq=False)
class TimedPlan:
    """A plan, and its round trip on this side."""

    plan: Plan
    round_trip_ms: float


@dataclass(frozen=True, eq=False)
class TimedClip:
    """An embedded clip, and its round trip on this side."""

    clip: ClipEmbedding
    upload_ms: float


class Transport(Protocol):
    """One way into the service. Every call raises TransportError."""

    def model(self) -> Model: ...

    def goal(self, image: Frame) -> str:
        """The id of the goal that looks like this."""
        ...

    def begin(self, goal_id: str) -> None:
        """Open a session toward a goal; the one before it is closed."""
        ...

    def plan(self, seen: Frame, proprioception: Sequence[float] | None, executed: int, seed: int) -> TimedPlan:
        """The session's next plan, after `executed` actions of the last one."""
        ...

    def distances(self, images: NDArray[np.uint8], goal_id: str) -> tuple[float, ...]:
        """How far each image [count, height, width, 3] is from the goal."""
        ...

    def clip(self, path: Path, kind: str, goal_id: str) -> TimedClip:
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

    def model(self) -> Model:
        try:
            self._client.wait_ready(READY_S)
            return self._client.model()
        except PresageError as error:
            raise TransportError(str(error)) from error

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

    def plan(self, seen: Frame, proprioception: Sequence[float] | None, executed: int, seed: int) -> TimedPlan:
        assert self._session is not None
        began = time.perf_counter()
        try:
            plan = self._session.plan(seen, proprioception=proprioception, executed=executed, seed=seed)
        except PresageError as error:
            raise TransportError(str(error)) from error
        return TimedPlan(plan, (time.perf_counter() - began) * 1000)

    def distances(self, images: NDArray[np.uint8], goal_id: str) -> tuple[float, ...]:
        try:
            return self._client.embed_images(list(images), goal=goal_id).goal_distances
        except PresageError as error:
            raise TransportError(str(error)) from error

    def clip(self, path: Path, kind: str, goal_id: str) -> TimedClip:
        began = time.perf_counter()
        try:
            found = self._client.embed_clip(path, kind, goal=goal_id)
        except PresageError as error:
            raise TransportError(str(error)) from error
        return TimedClip(found, (time.perf_counter() - began) * 1000)

    def close(self) -> None:
        with suppress(PresageError):  # whatever is wrong has been told by the call before
            self._end_session()
        self._client.close()

    def _end_session(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            session.close()
