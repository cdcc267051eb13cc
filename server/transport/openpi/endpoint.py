"""WebSocket endpoint for openpi clients, on the REST port: one message in and one out, a session per connection.

Robots that speak to an openpi policy server are served unchanged: they send a dictionary of arrays, and take the
`actions` of what comes back. What their dictionaries leave open (which array is which camera, what the goal is) is
said in the address: ws://host:port/v1/openpi?camera=observation/image&goal_id=... `docs/protocol.md` lists it all.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Mapping
from dataclasses import asdict

from presage.limits import ActionLimits
from presage.values import Model, Plan
from starlette.websockets import WebSocket

from server.errors import Reason, ServiceError, invalid, let_go
from server.service.validation import actions_of
from server.transport.arrivals import Patience, TimeIsUpError, within
from server.transport.error_replies import to_problem
from server.transport.gateway import Call, Gateway, admitted, checked_request_id, instrumented_call, share_of_caller
from server.transport.openpi.codec import Value, pack, unpack
from server.transport.openpi.request import Wishes, count, decoded, flag, frames, positive, proprioception, wishes
from server.transport.rest.middleware import peer_of, problem
from server.values import calls
from server.values.caller import require_robot

PATHS = ("/", "/v1/openpi")
GOING_AWAY, REFUSED = 1001, 1008  # a WebSocket's closing codes
REASON_BYTES = 120  # of the words beside it


async def openpi(websocket: WebSocket) -> None:
    """One connection, from the handshake to the end."""
    gateway: Gateway = websocket.app.state.gateway
    peer = peer_of(websocket.scope)
    call = Call(checked_request_id(websocket.headers.get("x-request-id")), "OpenPI.Connect", peer=peer)
    try:
        with instrumented_call(gateway, "openpi", call, is_public=False):
            caller = gateway.keys.check(websocket.headers.get, peer)
            with admitted(gateway, call, caller), share_of_caller(gateway, "streams"):
                robot = await _admit(gateway, websocket)
                try:
                    await robot.run()
                finally:
                    await robot.leave()
    except ServiceError as error:
        if websocket.application_state.name == "CONNECTING":
            await websocket.send_denial_response(problem(error, call))
        elif websocket.application_state.name == "CONNECTED":
            await websocket.close(REFUSED, error.message[:REASON_BYTES])


async def _admit(gateway: Gateway, websocket: WebSocket) -> _Robot:
    """Accept the connection, if it may come in, and say whom it reached."""
    require_robot()
    gateway.sites.check(websocket.headers.get)  # a page in somebody's browser could otherwise reach one on loopback
    gateway.lifecycle.check()
    asked = wishes(websocket.query_params)
    robot = _Robot(gateway, websocket, asked, gateway.application.model(asked.model))
    await robot.open_session()
    await websocket.accept()
    await websocket.send_bytes(pack(robot.metadata()))
    return robot


class _Robot:
    """The other end of a connection, and its session."""

    def __init__(self, gateway: Gateway, websocket: WebSocket, asked: Wishes, model: Model) -> None:
        self._gateway, self._websocket, self._asked, self._model = gateway, websocket, asked, model
        self._session_id, self._goal_id = "", asked.goal_id
        self._limits: ActionLimits | None = None
        self._has_plan = False

    async def open_session(self) -> None:
        request = calls.SessionRequest(self._model.name, self._goal_id, limits=self._asked.limits)
        session = await self._gateway.application.create_session(request)
        self._session_id, self._limits = session.session_id, session.limits
        self._has_plan = False

    async def leave(self) -> None:
        try:
            await self._gateway.application.delete_session(self._session_id)
        except ServiceError:
            return  # it expired before

    def metadata(self) -> dict[str, object]:
        """What a robot is told on connecting."""
        model, action = self._model, actions_of(self._model)
        return {
            "server": "presage",
            "server_version": self._gateway.server_version,
            "model": model.name,
            "weights_digest": model.weights_digest,
            "image_height": model.image.height,
            "image_width": model.image.width,
            "cameras": model.image.cameras,
            "crop_policy": model.image.crop_policy,
            "action_names": list(action.names),
            "action_units": list(action.units),
            "action_low": list(action.low),
            "action_high": list(action.high),
            "rate_hz": action.rate_hz,
            "proprioception_names": list(model.proprioception_names),
            "limits": None if self._limits is None else asdict(self._limits),
            "executed": self._executed_each_time,
            "session_id": self._session_id,
        }

    async def run(self) -> None:
        """Answer one message after another until the robot leaves or the service does."""
        draining = asyncio.create_task(self._gateway.lifecycle.draining.wait())
        receiving = asyncio.create_task(self._received())
        answering: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.wait((receiving, draining), return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():
                    await self._websocket.close(GOING_AWAY, "the service is shutting down")
                    return
                content = receiving.result()
                if content is None:
                    return
                receiving = asyncio.create_task(self._received())
                answering = asyncio.create_task(self._answer(content))
                await asyncio.wait((answering, receiving), return_when=asyncio.FIRST_COMPLETED)
                if receiving.done() and receiving.result() is None:
                    return  # nobody waits for the answer: the engine is freed
                await answering
        finally:
            tasks = [task for task in (draining, receiving, answering) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _received(self) -> bytes | None:
        """The next message; None once the robot is gone."""
        message = await Patience("message", self._gateway.limits.stream_idle_s).wait(self._websocket.receive())
        if message["type"] == "websocket.disconnect":
            return None
        content: bytes = message.get("bytes") or str(message.get("text", "")).encode()
        return content

    async def _answer(self, content: bytes) -> None:
        call = Call(checked_request_id(None), "OpenPI.Infer")
        try:
            with instrumented_call(self._gateway, "openpi", call, is_public=False):
                self._gateway.lifecycle.check()
                reply = pack(await self._inferred(content, call))
        except ServiceError as error:
            told = json.dumps(to_problem(error, call.request_id))
            let_go(error)
            await self._taken(self._websocket.send_text(told))  # text is an error to them
            return
        await self._taken(self._websocket.send_bytes(reply))

    async def _taken(self, sending: Awaitable[None]) -> None:
        """Send an answer. Ends the connection, and raises DEADLINE, where the robot does not take it."""
        stalled_s = self._gateway.limits.stalled_s
        try:
            await within(stalled_s, sending)
        except TimeIsUpError:
            self._gateway.connections.end(peer_of(self._websocket.scope))
            raise invalid("reply", f"must be taken within {stalled_s:g} s", "a part", Reason.DEADLINE) from None

    async def _inferred(self, content: bytes, call: Call) -> dict[str, object]:
        values = unpack(content)
        if flag(values, "reset"):
            await self._gateway.application.reset_session(self._session_id)
            self._has_plan = False
        timeout_ms = positive(values, "timeout_ms", self._asked.timeout_ms)
        call.deadline = None if timeout_ms is None else call.received + timeout_ms / 1e3
        self._goal_id = await self._goal(values, call.deadline)
        pixels, elsewhere = self._gateway.limits.image_pixels, self._gateway.decoder(call.deadline)
        seen = await frames(values, self._asked, self._model, pixels, elsewhere)
        request = calls.PlanRequest(
            calls.Observation(seen, proprioception(values, self._asked, self._model)),
            session_id=self._session_id,
            goal_id=self._goal_id,
            seed=None if "seed" not in values else count("seed", values["seed"]),
            budget_ms=positive(values, "budget_ms", self._asked.budget_ms),
            executed=self._executed(values),
        )
        decode_ms = (time.monotonic() - call.received) * 1e3
        plan = await self._planned(request, call, decode_ms)
        self._gateway.telemetry.observe_plan(plan)
        self._has_plan = True
        return _reply(plan)

    async def _planned(self, request: calls.PlanRequest, call: Call, decode_ms: float) -> Plan:
        """The plan; where the robot was silent for longer than its session lived, the first one of a new session."""
        application = self._gateway.application
        try:
            return await application.plan(request, call.deadline, call.received, decode_ms)
        except ServiceError as error:
            if error.reason is not Reason.UNKNOWN_SESSION:
                raise
        await self.open_session()
        first = calls.PlanRequest(
            request.observation, self._session_id, goal_id=request.goal_id, seed=request.seed,
            budget_ms=request.budget_ms,
        )  # fmt: skip
        return await application.plan(first, call.deadline, call.received, decode_ms)

    async def _goal(self, values: Mapping[str, Value], deadline: float | None) -> str:
        """The goal from now on: the one of this message, by image or by id, else the one there was."""
        named, shown = values.get("goal_id"), values.get("goal")
        if named is not None and shown is not None:
            raise invalid("goal", "must be left out where goal_id is set", "both")
        if named is not None:
            if not isinstance(named, str):
                raise invalid("goal_id", "must be text", f"a {type(named).__name__}")
            return named
        if shown is None:
            return self._goal_id
        pixels, elsewhere = self._gateway.limits.image_pixels, self._gateway.decoder(deadline)
        (frame,) = await decoded({"goal": shown}, self._model, pixels, elsewhere)
        made = await self._gateway.application.create_goal(calls.GoalRequest(self._model.name, frame), deadline)
        return made.goal_id

    def _executed(self, values: Mapping[str, Value]) -> int:
        if "executed" in values:
            return count("executed", values["executed"])
        return self._executed_each_time if self._has_plan else 0

    @property
    def _executed_each_time(self) -> int:
        return self._model.execute if self._asked.executed is None else self._asked.executed


def _reply(plan: Plan) -> dict[str, object]:
    """Only the actions are an array: clients that hand out one action at a time take a row of every array."""
    timings = plan.timings
    return {
        "actions": plan.actions,
        "server_timing": {
            "infer_ms": timings.total_ms,
            "queue_ms": timings.queue_ms,
            "decode_ms": timings.decode_ms,
            "encode_ms": timings.encode_ms,
            "plan_ms": timings.plan_ms,
        },
        "plan": {
            "cost": plan.cost,
            "goal_distance": plan.goal_distance,
            "step_costs": list(plan.step_costs),
            "iterations_done": plan.iterations_done,
            "stop_reason": plan.stop_reason,
            "seed": plan.seed,
            "degraded": plan.degraded,
            "objective": plan.objective,
            "shortage": list(plan.shortage),
            "warm_started": plan.warm_started,
            "observation_sequence": plan.observation_sequence,
            "epoch": plan.epoch,
            "goal_id": plan.provenance.goal_id,
            "model": plan.provenance.model,
            "weights_digest": plan.provenance.weights_digest,
            "warnings": list(plan.warnings),
        },
    }
