"""One control stream: observations in, plans out. The newest observation wins; single failures do not end it.

Does not plan: that is the application's. Does not know gRPC: messages come from an iterator and leave through `send`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from presage.v1 import planning_pb2
from presage.values import Plan

from server.errors import Reason, ServiceError, invalid
from server.service.validation import LARGEST_SEQUENCE
from server.transport.gateway import Gateway, explain
from server.transport.grpc import codec
from server.values import calls

Send = Callable[[planning_pb2.ControlResponse], Awaitable[None]]

_REMEMBERED_SKIPS = 4096


@dataclass(frozen=True)
class _Waiting:
    """The newest observation that no plan was started for."""

    message: planning_pb2.ControlObservation
    sequence: int
    goal_id: str
    plan_sequence: int
    received: float


async def control(
    gateway: Gateway,
    requests: AsyncIterator[planning_pb2.ControlRequest],
    send: Send,
    deadline: float | None,
    request_id: str,
) -> None:
    """Run a loop until the robot is done sending. Cancelling it cancels the plan in progress.

    Raises ServiceError when it cannot start, and NOT_READY when the service shuts down.
    """
    first = await anext(requests, None)
    if first is None or first.WhichOneof("message") != "start":
        raise invalid("message", "must be start at first", _kind(first), Reason.INVALID_REQUEST)
    if not first.start.session_id:
        raise invalid("start.session_id", "must be set", "nothing")
    session = await gateway.application.get_session(first.start.session_id)
    await _Loop(gateway, first.start, session.last_sequence, send, deadline, request_id).run(requests)


class _Loop:
    def __init__(
        self,
        gateway: Gateway,
        start: planning_pb2.ControlStart,
        last_sequence: int,
        send: Send,
        deadline: float | None,
        request_id: str,
    ) -> None:
        self._gateway, self._start, self._deadline, self._request_id = gateway, start, deadline, request_id
        self._goal_id = start.goal_id
        self._sequence = last_sequence
        self._told = 0  # sequence of the last plan sent, which a robot that names none counts from
        self._waiting: _Waiting | None = None
        self._skipped: deque[int] = deque(maxlen=_REMEMBERED_SKIPS)
        self._news = asyncio.Event()
        self._closed = False
        self._raw_send = send
        self._sending = asyncio.Lock()  # the transport takes one message at a time

    async def run(self, requests: AsyncIterator[planning_pb2.ControlRequest]) -> None:
        reader = asyncio.create_task(self._read(requests))
        planner = asyncio.create_task(self._plan())
        draining = asyncio.create_task(self._gateway.lifecycle.draining.wait())
        tasks = (reader, planner, draining)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            if draining.done():
                self._waiting = None
            self._close()
            await planner
            if draining.done():
                self._gateway.lifecycle.check()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[planning_pb2.ControlRequest]) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "observation":
                self._receive(request.observation)
            elif kind == "goal":
                self._goal_id = request.goal.goal_id
            elif kind == "heartbeat":
                await self._send(planning_pb2.ControlResponse(heartbeat=request.heartbeat))
                await self._keep_alive()
            else:
                error = invalid("message", "must be observation, goal or heartbeat", _kind(request))
                await self._send(codec.encode_control_error(error, 0))

    async def _keep_alive(self) -> None:
        try:
            await self._gateway.application.get_session(self._start.session_id)
        except ServiceError as error:
            await self._send(codec.encode_control_error(error, 0))

    def _receive(self, message: planning_pb2.ControlObservation) -> None:
        """Put an observation in the only place there is; the one that was there is skipped."""
        if self._waiting is not None:
            self._skipped.append(self._waiting.sequence)
            self._gateway.telemetry.skipped_observations.inc()
        sequence = message.observation.sequence or self._sequence + 1
        if sequence <= LARGEST_SEQUENCE:  # what is refused does not count
            self._sequence = max(self._sequence, sequence)
        self._waiting = _Waiting(
            message, sequence, self._goal_id, message.plan_sequence or self._told, time.monotonic()
        )
        self._news.set()

    def _close(self) -> None:
        self._closed = True
        self._news.set()

    async def _plan(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                await self._answer(waiting)
            if self._closed and self._waiting is None:
                return

    async def _answer(self, waiting: _Waiting) -> None:
        try:
            plan = await self._planned(waiting)
        except Exception as error:
            told = explain(error, self._request_id)
            self._told = 0  # it may be the plan that is not known any more
            await self._send(codec.encode_control_error(told, waiting.sequence))
            return
        reply = planning_pb2.ControlPlan(skipped_sequences=self._skipped)
        codec.WRITER.fill(reply.plan, plan)
        self._skipped.clear()
        self._told = plan.observation_sequence
        await self._send(planning_pb2.ControlResponse(plan=reply))

    async def _planned(self, waiting: _Waiting) -> Plan:
        started = time.monotonic()
        waiting.message.observation.sequence = waiting.sequence
        about = {
            **codec.READER.fields(calls.PlanRequest, self._start),
            "goal_id": waiting.goal_id,
            "plan_sequence": waiting.plan_sequence,
        }
        asked = codec.READER.value(calls.PlanRequest, waiting.message, known=about)
        request = await self._gateway.decoded(asked, self._deadline)
        decode_ms = (time.monotonic() - started) * 1e3
        plan = await self._gateway.application.plan(request, self._deadline, waiting.received, decode_ms)
        self._gateway.telemetry.observe_plan(plan)
        return plan

    async def _send(self, response: planning_pb2.ControlResponse) -> None:
        async with self._sending:
            await self._raw_send(response)


def _kind(request: planning_pb2.ControlRequest | None) -> str:
    return "the end of the stream" if request is None else request.WhichOneof("message") or "an empty message"
