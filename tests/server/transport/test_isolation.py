"""What one key makes, no other finds, uses, deletes or pushes out, over either transport; roles; keys read anew."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from presage.v1 import goals_pb2, models_pb2, planning_pb2, sessions_pb2

from server.config import SettingsError, load
from server.service.application import Application
from server.transport.callers.auth import KeyRing, key_warnings, load_keys, party_of
from tests.server.transport.grpc.test_control_stream import observe, read
from tests.support.server import linear
from tests.support.server.transports import (
    Service,
    grpc_refusal,
    json_image,
    json_observation,
    open_service,
    proto_image,
    proto_observation,
    rest_refusal,
)

on_the_shared_loop = pytest.mark.asyncio(loop_scope="session")

ANNA, BORIS, WATCHER, CHIEF = (f"{name}-has-a-long-key" for name in ("anna", "boris", "watcher", "chief"))
KEYS = [ANNA, f"{BORIS} name=boris", f"{WATCHER} role=viewer", f"{CHIEF} role=admin name=chief"]


def shown(key: str) -> Any:
    """As gRPC's metadata."""
    return (("x-api-key", key),)


def told(key: str) -> dict[str, str]:
    """As REST's headers."""
    return {"x-api-key": key}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(application: Application) -> AsyncIterator[Service]:
    async with open_service(application, api_keys=KEYS) as opened:
        yield opened


async def made(service: Service, key: str, right: float) -> goals_pb2.Goal:
    ask = goals_pb2.GoalsCreateRequest(image=proto_image(linear.frame(right, 0.3)))
    return (await service.goals.Create(ask, metadata=shown(key))).goal


async def opened(service: Service, key: str, goal_id: str = "") -> str:
    ask = sessions_pb2.SessionsCreateRequest(goal_id=goal_id)
    return str((await service.sessions.Create(ask, metadata=shown(key))).session.session_id)


# Goals


@on_the_shared_loop
async def test_the_same_goal_of_another_key_is_not_told(shared: Service) -> None:
    """`cached` says what the key itself made, and nothing of what others did."""
    body = {"image": json_image(linear.frame(0.11, 0.3))}
    for key in (ANNA, BORIS):
        first = await made(shared, key, 0.11)
        again = (await shared.rest.post("/v1/goals", json=body, headers=told(key))).json()
        assert (first.cached, again["cached"]) == (False, True)


@on_the_shared_loop
async def test_a_goal_of_another_key_is_not_found_whatever_is_done_with_it(shared: Service) -> None:
    goal_id = (await made(shared, ANNA, 0.13)).goal_id
    seen, json_seen = proto_observation(linear.frame(0.5, 0.5)), json_observation(linear.frame(0.5, 0.5))
    boris = shown(BORIS)
    for call in (
        shared.goals.Get(goals_pb2.GoalsGetRequest(goal_id=goal_id), metadata=boris),
        shared.goals.Delete(goals_pb2.GoalsDeleteRequest(goal_id=goal_id), metadata=boris),
        shared.sessions.Create(sessions_pb2.SessionsCreateRequest(goal_id=goal_id), metadata=boris),
        shared.planning.Plan(planning_pb2.PlanRequest(goal_id=goal_id, observation=seen), metadata=boris),
    ):
        assert (await grpc_refusal(call)).reason == "UNKNOWN_GOAL"
    for verb, path, body in (
        ("get", f"/v1/goals/{goal_id}", None),
        ("delete", f"/v1/goals/{goal_id}", None),
        ("post", "/v1/sessions", {"goal_id": goal_id}),
        ("post", "/v1/plans", {"goal_id": goal_id, "observation": json_seen}),
        ("post", "/v1/distances", {"goal_id": goal_id, "images": json_seen["images"]}),
        ("post", "/v1/landscapes", {"goal_id": goal_id, "observation": json_seen}),
        ("post", "/v1/embeddings/images", {"goal_id": goal_id, "images": json_seen["images"]}),
    ):
        refused = await rest_refusal(shared.rest.request(verb, path, json=body, headers=told(BORIS)))
        assert refused.reason == "UNKNOWN_GOAL", path
    assert (await shared.rest.get(f"/v1/goals/{goal_id}", headers=told(ANNA))).status_code == 200


@on_the_shared_loop
async def test_a_session_of_another_key_is_not_found_whatever_is_done_with_it(shared: Service) -> None:
    goal_id = (await made(shared, ANNA, 0.15)).goal_id
    name = await opened(shared, ANNA, goal_id)
    seen, json_seen = proto_observation(linear.frame(0.5, 0.5)), json_observation(linear.frame(0.5, 0.5))
    boris = shown(BORIS)
    for call in (
        shared.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=name), metadata=boris),
        shared.sessions.Reset(sessions_pb2.SessionsResetRequest(session_id=name), metadata=boris),
        shared.sessions.Delete(sessions_pb2.SessionsDeleteRequest(session_id=name), metadata=boris),
        shared.planning.Plan(planning_pb2.PlanRequest(session_id=name, observation=seen), metadata=boris),
    ):
        assert (await grpc_refusal(call)).reason == "UNKNOWN_SESSION"
    for verb, path, body in (
        ("get", f"/v1/sessions/{name}", None),
        ("post", f"/v1/sessions/{name}:reset", None),
        ("delete", f"/v1/sessions/{name}", None),
        ("post", "/v1/plans", {"session_id": name, "observation": json_seen}),
        ("post", "/v1/scores", {"session_id": name, "observation": json_seen, "candidates": [[[0.0, 0.0]] * 2]}),
    ):
        refused = await rest_refusal(shared.rest.request(verb, path, json=body, headers=told(BORIS)))
        assert refused.reason == "UNKNOWN_SESSION", path
    stream = shared.planning.Control(metadata=boris)
    await stream.write(planning_pb2.ControlRequest(start=planning_pb2.ControlStart(session_id=name)))
    assert (await grpc_refusal(stream.read())).reason == "UNKNOWN_SESSION"
    plan = await shared.planning.Plan(planning_pb2.PlanRequest(session_id=name, observation=seen), metadata=shown(ANNA))
    assert plan.plan.provenance.goal_id == goal_id


@on_the_shared_loop
async def test_a_session_keeps_its_goal_when_it_is_deleted(shared: Service) -> None:
    goal_id = (await made(shared, ANNA, 0.17)).goal_id
    name = await opened(shared, ANNA, goal_id)
    await shared.goals.Delete(goals_pb2.GoalsDeleteRequest(goal_id=goal_id), metadata=shown(ANNA))
    body = {"session_id": name, "observation": json_observation(linear.frame(0.5, 0.5))}
    for _ in range(2):
        reply = await shared.rest.post("/v1/plans", json=body, headers=told(ANNA))
        assert reply.json()["provenance"]["goal_id"] == goal_id
    assert (await shared.rest.delete(f"/v1/sessions/{name}", headers=told(ANNA))).status_code == 204
    gone = await rest_refusal(shared.rest.get(f"/v1/goals/{goal_id}", headers=told(ANNA)))
    assert gone.reason == "UNKNOWN_GOAL"


# Roles


@on_the_shared_loop
async def test_a_viewer_looks_at_what_others_have_and_changes_nothing(shared: Service) -> None:
    goal_id = (await made(shared, ANNA, 0.19)).goal_id
    name = await opened(shared, ANNA, goal_id)
    for path in ("/v1/models", f"/v1/goals/{goal_id}", f"/v1/sessions/{name}", "/metrics"):
        assert (await shared.rest.get(path, headers=told(WATCHER))).status_code == 200, path
    session = await shared.sessions.Get(sessions_pb2.SessionsGetRequest(session_id=name), metadata=shown(WATCHER))
    assert session.session.goal_id == goal_id
    seen = json_observation(linear.frame(0.5, 0.5))
    for verb, path, body in (
        ("post", "/v1/goals", {"image": seen["images"][0]}),
        ("delete", f"/v1/goals/{goal_id}", None),
        ("post", "/v1/sessions", {}),
        ("delete", f"/v1/sessions/{name}", None),
        ("post", "/v1/plans", {"session_id": name, "observation": seen}),
        ("post", "/v1/embeddings/images", {"images": seen["images"]}),
        ("post", "/v1/embeddings/clips", None),
    ):
        refused = await rest_refusal(shared.rest.request(verb, path, json=body, headers=told(WATCHER)))
        assert (refused.status, refused.reason, refused.value) == (403, "FORBIDDEN", "viewer"), path
    denied = await grpc_refusal(
        shared.goals.Delete(goals_pb2.GoalsDeleteRequest(goal_id=goal_id), metadata=shown(WATCHER))
    )
    assert (denied.status, denied.reason) == (grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")
    stream = shared.planning.Control(metadata=shown(WATCHER))
    assert (await grpc_refusal(stream.read())).reason == "FORBIDDEN"


@on_the_shared_loop
async def test_an_admin_sees_and_deletes_what_belongs_to_others(shared: Service) -> None:
    goal_id = (await made(shared, ANNA, 0.23)).goal_id
    name = await opened(shared, ANNA)
    assert (await shared.rest.get(f"/v1/goals/{goal_id}", headers=told(CHIEF))).status_code == 200
    for path in (f"/v1/goals/{goal_id}", f"/v1/sessions/{name}"):
        assert (await shared.rest.delete(path, headers=told(CHIEF))).status_code == 204
        assert (await shared.rest.get(path, headers=told(ANNA))).status_code == 404


# Keys read again


@on_the_shared_loop
async def test_a_key_that_is_taken_out_of_the_file_ends_its_streams_and_a_new_one_is_let_in(
    application: Application, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{ANNA}\n{BORIS} name=boris\n")
    file.chmod(0o600)
    async with open_service(application, api_keys_file=file) as service:
        names = {key: await opened(service, key, (await made(service, key, 0.27)).goal_id) for key in (ANNA, BORIS)}
        streams = {key: service.planning.Control(metadata=shown(key)) for key in names}
        for key, stream in streams.items():
            start = planning_pb2.ControlStart(session_id=names[key])
            await stream.write(planning_pb2.ControlRequest(start=start))
            await observe(stream, linear.frame(0.5, 0.5))
            await read(stream, "plan")
        file.write_text(f"{ANNA}x\n{BORIS}-renewed name=boris\n{WATCHER} role=viewer\n")
        ended = await grpc_refusal(streams[ANNA].read())  # within a second or so, and nobody asked for it
        assert ended.reason == "UNAUTHENTICATED"
        assert "revoked" in ended.message
        listing = models_pb2.ModelsListRequest()
        refused = await grpc_refusal(service.models.List(listing, metadata=shown(ANNA)))
        assert refused.reason == "UNAUTHENTICATED"
        assert (await service.rest.get("/v1/models", headers=told(WATCHER))).status_code == 200
        # A key renewed under its name is the same party: its stream goes on, and its session is its own.
        await observe(streams[BORIS], linear.frame(0.5, 0.5))
        await read(streams[BORIS], "plan")
        renewed = told(f"{BORIS}-renewed")
        assert (await service.rest.get(f"/v1/sessions/{names[BORIS]}", headers=renewed)).status_code == 200
        watched = await service.rest.get(f"/v1/sessions/{names[ANNA]}", headers=told(WATCHER))
        assert watched.status_code == 404, "what a revoked key had is gone"
        file.write_text("sha256:cut-off\n")
        await asyncio.sleep(1.5)
        assert (await service.rest.get("/v1/models", headers=renewed)).status_code == 200
        streams[BORIS].cancel()


@on_the_shared_loop
async def test_a_revoked_key_closes_openpi_connections(application: Application, tmp_path: Path) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    file = tmp_path / "keys"
    file.write_text(f"{ANNA}\n{BORIS}\n")
    async with open_service(application, api_keys_file=file) as service:
        uri = service.addresses.rest.replace("http", "ws") + "/v1/openpi"
        async with connect(uri, additional_headers=told(ANNA), proxy=None) as socket:
            await socket.recv()
            file.write_text(f"{BORIS}\n")
            with pytest.raises(ConnectionClosed) as caught:
                await asyncio.wait_for(socket.recv(), 30)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1008
            assert "revoked" in caught.value.rcvd.reason


# How keys are written


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sha256:abc", "64 hexadecimal digits"),
        ("SHA256:" + "0" * 64, "64 hexadecimal digits"),
        ("sha256:" + "g" * 64, "64 hexadecimal digits"),
        ("sha256:" + "0" * 65, "64 hexadecimal digits"),
        ("x", "at least 8 characters"),
        (f"{ANNA} role=king", "roles robot, viewer, admin"),
        (f"{ANNA} name=", "name of 1 to 64"),
        (f"{ANNA} name=a/b", "name of 1 to 64"),
        (f"{ANNA} role=robot role=robot", "once each"),
        (f"{ANNA} and more", "nothing else"),
    ],
)
def test_a_key_that_is_written_wrongly_is_refused_by_its_line_and_never_repeated(
    tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{BORIS}\n{line}\n")
    with pytest.raises(SettingsError, match=f"keys line 3 .*{said}") as caught:
        load_keys(load(flags={"api_keys_file": file}))
    with pytest.raises(SettingsError, match=r"api_keys\[0\]"):
        load_keys(load(flags={"api_keys": [line]}))
    assert ANNA not in str(caught.value)


def test_keys_that_can_be_guessed_or_read_are_warned_of_and_those_that_anyone_can_write_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"eight-ch\nsha256:{hashlib.sha256(b'x').hexdigest()}\n{ANNA}\n")
    settings = load(flags={"api_keys_file": file})
    for mode, words in ((0o600, ["1 of 3 keys"]), (0o644, ["1 of 3 keys", "can be read by every user"])):
        file.chmod(mode)
        warned = key_warnings(settings, load_keys(settings))
        assert len(warned) == len(words)
        for warning, word in zip(warned, words, strict=True):
            assert word in warning
            assert "eight-ch" not in warning
    file.chmod(0o602)
    with pytest.raises(SettingsError, match="must not be writable by every user"):
        load_keys(settings)


def test_keys_that_cannot_be_read_again_stay_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{ANNA}\n")
    settings = load(flags={"api_keys_file": file})
    gone: list[str] = []
    ring = KeyRing(load_keys(settings), lambda: load_keys(settings), gone.append)
    file.unlink()
    ring.reload()
    caller = ring.check(told(ANNA).get)
    file.write_text(f"{BORIS}\n")
    ring.reload()
    assert gone == [caller.owner]


@pytest.mark.parametrize(
    ("peer", "party"),
    [
        ("ipv4:10.1.2.3:4567", "10.1.2.3"),
        ("10.1.2.3:4567", "10.1.2.3"),
        ("ipv6:%5B2001:db8:1:2::3%5D:99", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::4:99", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:99", "10.1.2.3"),
        ("unix:/run/presage", "unix"),
        ("", ""),
    ],
)
def test_without_keys_an_address_is_a_party_and_ipv6_a_whole_site(peer: str, party: str) -> None:
    assert party_of(peer) == party


def test_a_record_says_whose_plan_it_is() -> None:
    from server.recording import records
    from server.values.caller import Caller, working_for
    from tests.support.server import recording

    job = recording.job()
    done = recording.done(job, {"linear": linear.load("linear", "cpu")})
    with working_for(Caller("name:anna", "name:anna")):
        content = json.loads(records.encode(recording.record(job, done), images=False))
    assert content["request"]["caller"] == "name:anna"
