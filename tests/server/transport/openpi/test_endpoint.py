"""The gateway for openpi clients: their own client drives the service unchanged, and connections end as they should."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from presage.limits import ActionLimits, fault, held_for
from starlette.datastructures import QueryParams
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server.errors import Reason, ServiceError
from server.service.application import Application
from server.transport.openpi.codec import pack, unpack
from server.transport.openpi.request import wishes
from server.values.calls import GoalRequest
from tests.support.server import linear
from tests.support.server.transports import Service, eventually, open_service

on_the_shared_loop = pytest.mark.asyncio(loop_scope="session")
HERE = linear.frame(0.2, 0.4)
KEY = "correct-horse"
as_openpi_connects = pytest.mark.filterwarnings("ignore:connect.* must be used as a context manager:DeprecationWarning")


def address(service: Service, path: str = "/v1/openpi", **query: object) -> str:
    parameters = "&".join(f"{name}={value}" for name, value in query.items())
    return service.addresses.rest.replace("http", "ws", 1) + path + (f"?{parameters}" if parameters else "")


async def goal(application: Application) -> str:
    return (await application.create_goal(GoalRequest(image=linear.frame(0.5, 0.4)))).goal_id


async def ask(socket: ClientConnection, values: dict[str, Any]) -> Any:
    await socket.send(pack(values))
    return answer(await socket.recv())


def answer(message: str | bytes) -> Any:
    """A reply's values, or the problem told."""
    return json.loads(message) if isinstance(message, str) else unpack(message)


async def refused(opening: Any) -> dict[str, Any]:
    with pytest.raises(InvalidStatus) as caught:
        async with opening:
            pass
    problem: dict[str, Any] = json.loads(caught.value.response.body)
    assert problem["status"] == caught.value.response.status_code
    return problem


# With openpi's own client


@as_openpi_connects
@on_the_shared_loop
@pytest.mark.parametrize("path", ["", "/v1/openpi"])
async def test_an_openpi_client_drives_the_service_unchanged(application: Application, path: str) -> None:
    client = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")
    async with open_service(application, api_keys=[KEY]) as service:
        uri = address(service, path)

        def drive() -> tuple[dict[str, Any], list[dict[str, Any]]]:
            policy = client.WebsocketClientPolicy(uri, api_key=KEY)
            seen = {"observation/image": HERE, "observation/state": np.zeros(3), "prompt": "push it right"}
            replies = [policy.infer({**seen, "goal": linear.frame(0.5, 0.4)}), policy.infer(seen)]
            policy.reset()
            with pytest.raises(RuntimeError, match="INVALID_IMAGE"):
                policy.infer({"prompt": "no image"})
            replies.append(policy.infer(seen))
            policy._ws.close()
            return policy.get_server_metadata(), replies

        told, replies = await asyncio.to_thread(drive)
        assert (told["model"], told["image_height"], told["action_names"]) == ("linear", 16, ["right", "down"])
        for number, reply in enumerate(replies, 1):
            assert reply["actions"].dtype == np.float32
            assert reply["actions"].shape == (6, 2)
            assert np.isfinite(reply["actions"]).all()
            assert reply["plan"]["observation_sequence"] == number
            assert reply["plan"]["warm_started"] == (number > 1)
        assert replies[0]["actions"][:, 0].mean() > 0  # the goal is to the right
        await eventually(lambda: service.gateway.lifecycle.in_flight == 0)


@on_the_shared_loop
async def test_nothing_but_the_actions_is_an_array(application: Application, service: Service) -> None:
    """openpi's ActionChunkBroker hands out row after row of every array in a reply."""
    async with connect(address(service, goal_id=await goal(application)), proxy=None) as socket:
        assert not any(isinstance(value, np.ndarray) for value in unpack(await socket.recv()).values())  # type: ignore[arg-type]
        reply = await ask(socket, {"image": HERE})
        assert [key for key, value in reply.items() if isinstance(value, np.ndarray)] == ["actions"]


@on_the_shared_loop
async def test_the_address_narrows_what_actions_keep_to(application: Application, service: Service) -> None:
    made = await goal(application)
    stated = {"limit_slew": "0.05,0.1", "limit_frozen": "down", "limit_max_norm": "0.5", "limit_dwell": "2,1"}
    limits = ActionLimits(slew=(0.05, 0.1), frozen=("down",), max_norm=0.5, dwell=(2, 1))
    async with connect(address(service, goal_id=made, **stated), proxy=None) as socket:
        metadata = unpack(await socket.recv())  # type: ignore[arg-type]
        assert (metadata["limits/slew"], metadata["limits/frozen"]) == ([0.05, 0.1], ["down"])
        before, held = None, None
        done: list[list[float]] = []
        for executed in (0, 2, 2):
            actions = (await ask(socket, {"image": HERE, "executed": executed}))["actions"]
            if executed:
                before, held = done[-1], held_for(done, before, held)
            assert fault(actions, linear.ACTION.names, limits, (0.0, 0.0), before, held) == ""
            done = actions[:2].tolist()
    for name, value, field in (("limit_slew", "9", "limits.slew"), ("limit_slew", "a,b", "limit_slew")):
        problem = await refused(connect(address(service, goal_id=made, **{name: value}), proxy=None))
        assert problem["errors"][0]["field"] == field


@on_the_shared_loop
async def test_the_address_says_how_many_actions_are_taken_of_a_plan(
    application: Application, service: Service
) -> None:
    made, plans = await goal(application), {}
    for executed in (0, 4):
        async with connect(address(service, goal_id=made, executed=executed), proxy=None) as socket:
            assert unpack(await socket.recv())["executed"] == executed
            first = await ask(socket, {"image": HERE, "seed": 3})
            plans[executed] = await ask(socket, {"image": HERE, "seed": 4})
            assert plans[executed]["plan/warm_started"]
            assert first["plan/warm_started"] is False
    assert plans[0]["actions"].tolist() != plans[4]["actions"].tolist()


# What a dictionary says


@on_the_shared_loop
async def test_the_goal_stays_until_another_comes_and_a_reset_keeps_it(
    application: Application, service: Service
) -> None:
    made = await goal(application)
    async with connect(address(service), proxy=None) as socket:
        unpack(await socket.recv())
        assert (await ask(socket, {"image": HERE}))["code"] == "GOAL_REQUIRED"
        first = await ask(socket, {"image": HERE, "goal_id": made, "seed": 5})
        again = await ask(socket, {"image": HERE, "reset": True, "seed": 5, "budget_ms": 60_000.0})
        assert [reply["plan/goal_id"] for reply in (first, again)] == [made, made]
        assert [reply["plan/epoch"] for reply in (first, again)] == [0, 1]
        assert first["actions"].tolist() == again["actions"].tolist()
        shown = await ask(socket, {"image": HERE, "goal": linear.frame(0.1, 0.4)})
        assert shown["plan/goal_id"] != made


@on_the_shared_loop
async def test_channels_first_and_nested_images_are_the_same_picture(
    application: Application, service: Service
) -> None:
    made = await goal(application)
    pictures = [{"image": HERE}, {"images": {"top": np.moveaxis(HERE, 2, 0)}}]
    plans = []
    for picture in pictures:
        async with connect(address(service, goal_id=made), proxy=None) as socket:
            await socket.recv()
            plans.append(await ask(socket, {**picture, "seed": 7}))
    assert plans[0]["actions"].tolist() == plans[1]["actions"].tolist()


@on_the_shared_loop
async def test_the_address_names_cameras_and_state(application: Application, service: Service) -> None:
    made = (await application.create_goal(GoalRequest("historian", linear.frame(0.5, 0.4)))).goal_id
    seen = {"top": HERE, "wrist": linear.frame(0.9, 0.9), "joints": np.zeros(1), "gripper": 0.5, "goal_id": made}
    async with connect(address(service, model="historian", state="joints"), proxy=None) as socket:
        await socket.recv()
        both = await ask(socket, seen)
        assert (both["code"], both["errors"][0]["value"]) == ("INVALID_IMAGE", "top, wrist")
    async with connect(address(service, model="historian", camera="top", state="joints"), proxy=None) as socket:
        await socket.recv()
        assert (await ask(socket, seen))["plan/model"] == "historian"
        assert (await ask(socket, {"wrist": HERE, "joints": np.zeros(1)}))["errors"][0]["field"] == "top"
        assert "joints" in (await ask(socket, {"top": HERE}))["detail"]
    async with connect(
        address(service, model="historian", camera="top") + "&state=joints&state=gripper", proxy=None
    ) as socket:
        await socket.recv()
        assert (await ask(socket, seen))["errors"][0]["value"] == "shape [2]"


BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "floats as an image": ({"state": np.zeros(3), "camera": HERE.astype(np.float32)}, "camera"),
    "colors and opacity": ({"camera": np.zeros((64, 64, 4), np.uint8)}, "camera"),
    "a file nobody named": ({"camera": b"\x89PNG"}, "camera"),
    "no image": ({"state": np.zeros(3)}, "images"),
    "two images": ({"a": HERE, "b": HERE}, "images"),
    "an image of another size": ({"a": np.zeros((8, 8, 3), np.uint8)}, "a"),
    "a goal that is a number": ({"a": HERE, "goal": 3}, "goal"),
    "a goal id that is a number": ({"a": HERE, "goal_id": 3}, "goal_id"),
    "a goal twice": ({"a": HERE, "goal": HERE, "goal_id": "x"}, "goal"),
    "a goal nobody made": ({"a": HERE, "goal_id": "../../etc/passwd"}, "goal_id"),
    "half an action executed": ({"a": HERE, "executed": 0.5}, "executed"),
    "a negative count": ({"a": HERE, "executed": -1}, "executed"),
    "a budget of NaN": ({"a": HERE, "budget_ms": float("nan")}, "budget_ms"),
    "a seed of text": ({"a": HERE, "seed": "1"}, "seed"),
    "a reset of 1": ({"a": HERE, "reset": 1}, "reset"),
    "no time": ({"a": HERE, "timeout_ms": 0}, "timeout_ms"),
}


@on_the_shared_loop
@pytest.mark.parametrize("name", BAD_VALUES)
async def test_a_bad_value_is_refused_by_name_and_the_connection_goes_on(
    application: Application, service: Service, name: str
) -> None:
    values, field = BAD_VALUES[name]
    async with connect(address(service, goal_id=await goal(application)), proxy=None) as socket:
        await socket.recv()
        problem = await ask(socket, values)
        assert problem["status"] in (404, 422), problem
        assert problem["errors"][0]["field"] == field
        assert (await ask(socket, {"a": HERE, "goal_id": await goal(application)}))["plan/model"] == "linear"


@pytest.mark.parametrize("query", ["camera=a&color=red", "executed=-1", "executed=many", "budget_ms=inf"])
def test_a_bad_address_is_refused_by_name(query: str) -> None:
    with pytest.raises(ServiceError) as caught:
        wishes(QueryParams(query))
    assert caught.value.reason is Reason.INVALID_FIELD
    assert caught.value.field in ("color", "executed", "budget_ms")


# Who may come in, and how connections end


@on_the_shared_loop
async def test_a_connection_without_a_key_is_denied(application: Application) -> None:
    async with open_service(application, api_keys=[KEY]) as service:
        for path in ("/", "/v1/openpi"):
            for shown in ({}, {"Authorization": "Api-Key wrong"}):
                problem = await refused(connect(address(service, path), additional_headers=shown, proxy=None))
                assert problem["code"] == "UNAUTHENTICATED"
                assert "wrong" not in json.dumps(problem)
        with pytest.raises(InvalidStatus) as caught:
            async with connect(address(service, "/v1/else"), proxy=None):
                pass
        assert caught.value.response.status_code in (401, 403, 404)
        async with connect(address(service), additional_headers={"X-Api-Key": KEY}, proxy=None) as socket:
            assert unpack(await socket.recv())["model"] == "linear"


@on_the_shared_loop
async def test_a_page_in_a_browser_is_denied(service: Service) -> None:
    problem = await refused(connect(address(service), origin="https://example.org", proxy=None))  # type: ignore[arg-type]
    assert problem["errors"][0]["field"] == "Origin"


@on_the_shared_loop
async def test_an_unknown_model_is_refused_on_connecting(service: Service) -> None:
    assert (await refused(connect(address(service, model="nobody"), proxy=None)))["code"] == "UNKNOWN_MODEL"


@on_the_shared_loop
async def test_the_transport_can_be_closed(application: Application) -> None:
    async with open_service(application, openpi=False) as service:
        with pytest.raises(InvalidStatus):
            async with connect(address(service), proxy=None):
                pass


@on_the_shared_loop
async def test_a_message_past_the_limit_ends_the_connection(application: Application) -> None:
    async with (
        open_service(application, limits={"message_bytes": 2048}) as service,
        connect(address(service), proxy=None) as socket,
    ):
        await socket.recv()
        await socket.send(bytes(4096))
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009


@on_the_shared_loop
@pytest.mark.parametrize("leave", ["close", "drop"])
async def test_a_robot_that_leaves_frees_the_engine_and_its_session(
    application: Application, service: Service, leave: str
) -> None:
    sessions = application.sessions_open
    made = (await application.create_goal(GoalRequest("slow", linear.frame(0.5, 0.4)))).goal_id
    socket = await connect(address(service, model="slow", goal_id=made), proxy=None)
    await socket.recv()
    await socket.send(pack({"image": HERE, "budget_ms": 60_000.0}))
    await eventually(lambda: application.calls_in_hand == 1)
    if leave == "close":
        await socket.close()
    else:
        socket.transport.abort()
    await eventually(lambda: application.calls_in_hand == 0 and application.sessions_open == sessions)


@on_the_shared_loop
async def test_a_robot_that_outlived_its_session_goes_on_in_a_new_one(
    application: Application, service: Service
) -> None:
    async with connect(address(service, goal_id=await goal(application)), proxy=None) as socket:
        session_id = unpack(await socket.recv())["session_id"]
        await ask(socket, {"image": HERE})
        await application.delete_session(str(session_id))
        after = await ask(socket, {"image": HERE})
        assert after["plan/warm_started"] is False


@on_the_shared_loop
async def test_draining_lets_the_plan_out_and_closes(application: Application) -> None:
    made = (await application.create_goal(GoalRequest("slow", linear.frame(0.5, 0.4)))).goal_id
    leaving: Callable[[], Any]
    async with open_service(application, shutdown_grace_s=30.0) as service:
        socket = await connect(address(service, model="slow", goal_id=made), proxy=None)
        await socket.recv()
        await socket.send(pack({"image": HERE}))
        await eventually(lambda: application.calls_in_hand == 1)
        service.gateway.lifecycle.draining.set()
        leaving = socket.recv
        assert "actions" in answer(await leaving())
        with pytest.raises(ConnectionClosed) as caught:
            await leaving()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001


@on_the_shared_loop
async def test_a_message_in_countless_fragments_ends_its_connection_alone(
    application: Application, service: Service
) -> None:
    where = address(service, goal_id=await goal(application))
    async with connect(where, proxy=None) as other, connect(where, proxy=None) as socket:
        await other.recv()
        await socket.recv()

        async def fragments() -> AsyncIterator[bytes]:
            for _ in range(5000):
                yield b"a"

        async def sent_and_answered() -> None:
            await socket.send(fragments())
            await socket.recv()

        with pytest.raises(ConnectionClosed):
            await sent_and_answered()
        assert (await ask(other, {"a": HERE}))["actions"].shape[1] == 2
