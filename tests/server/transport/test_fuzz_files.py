"""Broken files and forged bytes at both transports: each is answered rightly or refused by name, without growth."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from presage.v1 import goals_pb2, observation_pb2, planning_pb2, tensor_pb2

from server.service.application import Application
from tests.server.transport.grpc.test_service import goal
from tests.support.model import clips
from tests.support.server import fuzzing, linear
from tests.support.server.transports import (
    Service,
    clip_messages,
    grpc_refusal,
    open_service,
    proto_observation,
    rest_refusal,
)

on_the_shared_loop = pytest.mark.asyncio(loop_scope="session")
MOVING = clips.moving_square(8, 32, 48)
PATIENCE_S = 60.0
SEEN = proto_observation(linear.frame(0.2, 0.4))


# Clips


def patched(content: bytes, at: int, piece: bytes) -> bytes:
    return content[:at] + piece + content[at + len(piece) :]


def make(folder: Path, name: str) -> bytes:
    """The file of that name in the corpus."""
    whole = folder / "whole.mp4"
    if not whole.exists():
        clips.write(whole, MOVING)
    content = whole.read_bytes()
    match name:
        case "whole":
            return content
        case "empty":
            return b""
        case "truncated in its index":
            return content[: content.index(b"moov") + 20]
        case "truncated in its pictures":
            fast = clips.write(folder / "fast.mp4", clips.moving_square(40), faststart=True).read_bytes()
            return fast[: len(fast) // 2]
        case "zeros in its pictures":
            start = content.index(b"mdat") + 40
            return patched(content, start, bytes(min(400, len(content) - start)))
        case "sound alone":
            return clips.write_sound(folder / "sound.mp4").read_bytes()
        case "rotated":
            return clips.write(folder / "rotated.mp4", MOVING, rotation=90).read_bytes()
        case "variable rate":
            stamps = [0, 10, 20, 200, 210, 900, 910, 1500]
            return clips.write(folder / "variable.mkv", MOVING, stamps_ms=stamps).read_bytes()
        case "one pixel":
            return clips.write(folder / "pixel.mkv", MOVING[:, :1, :1], codec="ffv1", pixels="bgr0").read_bytes()
        case "a GIF that says 16384 x 16384":
            gif = clips.write(folder / "a.gif", MOVING, codec="gif", pixels="rgb8").read_bytes()
            return patched(gif, 6, struct.pack("<HH", 16_384, 16_384))
        case "pictures that say 16384 x 16384":
            made = clips.write(folder / "a.avi", MOVING, codec="mjpeg", pixels="yuvj420p").read_bytes()
            place, size = 0, struct.pack(">HH", 16_384, 16_384)
            while (place := made.find(b"\xff\xc0", place + 1)) > 0:
                made = patched(made, place + 5, size)
            return made
        case "a text":
            return b"Once upon a time there was no video in this file. " * 100
        case "a picture":
            return fuzzing.GOOD_JPEG
        case "a pickle":
            return b"\x80\x04cos\nsystem\n(S'true'\ntR." * 10
        case "a playlist of other files":
            return b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
        case "a list of other files":
            return b"ffconcat version 1.0\nfile /etc/passwd\n"
        case "noise":
            return bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8))
        case "noise behind a video's beginning":
            return content[:64] + bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8))
    raise AssertionError(name)


RIGHT = {"whole": 8, "rotated": 8, "variable rate": 8, "one pixel": 8}
REFUSED = (
    "empty",
    "truncated in its index",
    "sound alone",
    "a GIF that says 16384 x 16384",
    "pictures that say 16384 x 16384",
    "a text",
    "a pickle",
    "a playlist of other files",
    "a list of other files",
    "noise",
    "noise behind a video's beginning",
)
EITHER = ("truncated in its pictures", "zeros in its pictures", "a picture")
"""What was sent may be all there is: an answer for that, or a refusal."""

NAMED = {"INVALID_CLIP", "TOO_LARGE"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.mark.parametrize("name", [*RIGHT, *REFUSED, *EITHER])
@on_the_shared_loop
async def test_a_strange_clip_is_answered_or_refused_by_name_on_both_transports(
    service: Service, folder: Path, name: str
) -> None:
    content = make(folder, name)
    reply = await service.rest.post("/v1/embeddings/clips", files={"clip": ("../../x", content)}, timeout=PATIENCE_S)
    if name in RIGHT:
        assert reply.status_code == 200, reply.text
        made = await service.embeddings.EmbedClip(clip_messages(content), timeout=PATIENCE_S)
        assert len(made.frame_times_s) == RIGHT[name]
        assert list(made.frame_times_s) == reply.json()["frame_times_s"]
        assert list(made.frame_times_s) == sorted(made.frame_times_s)
        return
    if name in EITHER and reply.status_code == 200:
        assert len(reply.json()["frame_times_s"]) >= 1
        return
    problem = reply.json()
    assert problem["code"] in NAMED, problem
    assert "/" not in problem["detail"].replace("image/", ""), problem["detail"]  # no path of ours
    if content:  # an empty upload cannot be announced over gRPC
        refused = await grpc_refusal(service.embeddings.EmbedClip(clip_messages(content), timeout=PATIENCE_S))
        assert refused.reason == problem["code"]
    assert service.gateway.uploads.active == 0


# Images and tensors


BOMBS = {
    "a PNG of 65535 x 65535": fuzzing.bomb(65_535, 65_535),
    "a PNG of 16384 x 16384": fuzzing.bomb(16_384, 16_384),
    "a JPEG of 65500 x 65500": patched(
        fuzzing.GOOD_JPEG, fuzzing.GOOD_JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", 65_500, 65_500)
    ),
}


@pytest.mark.parametrize("name", BOMBS)
@on_the_shared_loop
async def test_a_decompression_bomb_is_refused_before_it_is_decoded(service: Service, name: str) -> None:
    before = fuzzing.resident_bytes(os.getpid())
    image = observation_pb2.Image(encoded=BOMBS[name])
    by_grpc = await grpc_refusal(service.goals.Create(goals_pb2.GoalsCreateRequest(image=image)))
    body = {"image": {"encoded": base64.b64encode(BOMBS[name]).decode()}}
    by_rest = await rest_refusal(service.rest.post("/v1/goals", json=body))
    assert by_grpc.reason == by_rest.reason
    assert by_grpc.reason in ("INVALID_IMAGE", "TOO_LARGE")
    assert fuzzing.resident_bytes(os.getpid()) - before < 64 * 2**20


@on_the_shared_loop
async def test_many_small_pictures_cannot_hide_one_large_one(application: Application) -> None:
    async with open_service(application, limits={"image_pixels": 16 * 16 * 3}) as service:
        pictures = [observation_pb2.Image(encoded=fuzzing.GOOD_PNG)] * 4
        ask = planning_pb2.PlanRequest(observation=observation_pb2.Observation(images=pictures))
        assert (await grpc_refusal(service.planning.Plan(ask))).reason in ("INVALID_IMAGE", "TOO_LARGE")


FORGED = {
    "a shape that overflows": tensor_pb2.Tensor(dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32, shape=[2**62, 2**62], data=b""),
    "a shape of zeros and giants": tensor_pb2.Tensor(dtype=5, shape=[0, 2**62, 2**62], data=b""),
    "a negative shape": tensor_pb2.Tensor(dtype=5, shape=[-1, -2], data=bytes(8)),
    "many dimensions": tensor_pb2.Tensor(dtype=5, shape=[1] * 1000, data=bytes(4)),
    "an unknown type": tensor_pb2.Tensor(dtype=99, shape=[2], data=bytes(8)),  # type: ignore[arg-type]
    "integers": tensor_pb2.Tensor(dtype=3, shape=[1], data=bytes(8)),
    "no number": tensor_pb2.Tensor(dtype=5, shape=[2], data=np.full(2, np.nan, np.float32).tobytes()),
    "infinity as half": tensor_pb2.Tensor(dtype=4, shape=[2], data=np.full(2, np.inf, np.float16).tobytes()),
    "more than a float32 holds": tensor_pb2.Tensor(dtype=6, shape=[2], data=np.full(2, 1e300).tobytes()),
}


@pytest.mark.parametrize("name", FORGED)
@on_the_shared_loop
async def test_a_forged_tensor_is_refused_by_name(service: Service, name: str) -> None:
    made = await goal(service, 0.5, 0.4)
    for refused in (
        await grpc_refusal(service.goals.Create(goals_pb2.GoalsCreateRequest(latent=FORGED[name]))),
        await grpc_refusal(
            service.planning.Rollout(planning_pb2.RolloutRequest(observation=SEEN, goal_id=made, actions=FORGED[name]))
        ),
    ):
        assert refused.reason in ("INVALID_TENSOR", "ACTION_SHAPE"), refused
        assert len(refused.message) < 400


@on_the_shared_loop
async def test_numbers_at_the_end_of_the_number_line_are_the_callers_fault(service: Service) -> None:
    far = np.full((2, 2), 3e38, np.float32)
    latent = tensor_pb2.Tensor(dtype=5, shape=[2], data=far[0].tobytes())
    actions = tensor_pb2.Tensor(dtype=5, shape=[2, 2], data=far.tobytes())
    for refused in (
        await grpc_refusal(service.goals.Create(goals_pb2.GoalsCreateRequest(latent=latent))),
        await grpc_refusal(service.planning.Rollout(planning_pb2.RolloutRequest(observation=SEEN, actions=actions))),
    ):
        assert refused.reason == "INVALID_TENSOR"


NAMES = ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "%00", "a" * 4000, "%E2%98%83", "..;/", "con")


@pytest.mark.parametrize("name", NAMES)
@on_the_shared_loop
async def test_names_that_look_like_paths_name_nothing(service: Service, name: str) -> None:
    for path in (f"/v1/goals/{name}", f"/v1/sessions/{name}", f"/v1/models/{name}", f"/{name}"):
        reply = await service.rest.get(path)
        assert reply.status_code in (404, 405), path
        assert reply.headers["content-type"] == "application/problem+json"
        assert len(reply.content) < 2000


# Connections


async def spoken(service: Service, content: bytes, patience_s: float = 20.0) -> bytes:
    """What the REST port answers these bytes with until it closes or falls silent."""
    host, _, port = service.addresses.rest.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        writer.write(content)
        await writer.drain()
        while piece := await asyncio.wait_for(reader.read(65_536), patience_s):
            answer += piece
            if b"\r\n\r\n" in answer:
                break
    except (asyncio.TimeoutError, ConnectionError):
        return answer
    finally:
        writer.close()
    return answer


FLOODS = {
    "many headers": b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
    "a long header": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 2**20 + b"\r\n\r\n",
    "a long path": b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "no HTTP at all": b"\x16\x03\x01\x02\x00" + bytes(300) + b"\r\n\r\n",
    "a body length that is none": b"POST /v1/plans HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "two body lengths": b"POST /v1/plans HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", FLOODS)
@on_the_shared_loop
async def test_a_flood_of_header_bytes_harms_nobody(service: Service, name: str) -> None:
    before = fuzzing.resident_bytes(os.getpid())
    answer = await spoken(service, FLOODS[name])
    assert not answer.startswith(b"HTTP/1.1 5"), answer[:300]
    assert (await service.rest.get("/readyz")).status_code == 200
    assert fuzzing.resident_bytes(os.getpid()) - before < 64 * 2**20


@on_the_shared_loop
async def test_a_flood_of_grpc_metadata_is_refused(service: Service) -> None:
    metadata = tuple((f"x-{number}", "a" * 1000) for number in range(200))
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED|larger|metadata"):
        await service.models.List(goals_pb2.GoalsGetRequest(), metadata=metadata, timeout=PATIENCE_S)
    assert (await service.rest.get("/readyz")).status_code == 200


@on_the_shared_loop
async def test_connections_left_half_open_leave_room_for_others(application: Application) -> None:
    async with open_service(application, shutdown_grace_s=0.0) as service:
        host, _, port = service.addresses.rest.removeprefix("http://").partition(":")
        idle: list[socket.socket] = []
        for _ in range(100):
            lazy = socket.create_connection((host, int(port)))
            lazy.sendall(b"POST /v1/plans HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            idle.append(lazy)
        try:
            assert (await service.rest.get("/readyz")).status_code == 200
        finally:
            for lazy in idle:
                lazy.close()
