"""Attacks of one key on what others have: engine time, slots, goals and sessions; and faults under way, 10 and 14."""

from __future__ import annotations

import asyncio
import base64
import os
import resource
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from presage.v1 import embeddings_pb2, embeddings_pb2_grpc, planning_pb2_grpc

from benchmarks.attacks.target import OTHER, Attack, Outcomes, Target
from model.built_in import BUILT_IN

AWAY_S = 15.0


def _client(target: Target, key: str | None = None) -> httpx.Client:
    headers = target.headers if key is None else {"x-api-key": key}
    return httpx.Client(base_url=target.rest, headers=headers, trust_env=False, timeout=180)


def _told(reply: httpx.Response) -> str:
    """The answer's status, and its reason or its size."""
    if reply.status_code >= 400:
        return f"{reply.status_code} {reply.json()['code']}"
    return f"{reply.status_code}" + (f", {len(reply.content) >> 20} MiB" if len(reply.content) >> 20 else "")


def _seen(client: httpx.Client, shade: int = 60) -> dict[str, Any]:
    """An observation of the model's size."""
    image = client.get("/v1/models").raise_for_status().json()["models"][0]["image"]
    pixels = np.full((image["height"], image["width"], 3), shade, np.uint8).tobytes()
    about = {"height": image["height"], "width": image["width"], "format": "rgb8"}
    return {"images": [{"raw": {**about, "data": base64.b64encode(pixels).decode()}}]}


def _goal(client: httpx.Client, shade: int = 70) -> str:
    reply = client.post("/v1/goals", json={"image": _seen(client, shade)["images"][0]})
    return str(reply.raise_for_status().json()["goal_id"])


def _tensor(shape: tuple[int, ...]) -> dict[str, Any]:
    data = base64.b64encode(np.zeros(shape, np.float32).tobytes()).decode()
    return {"dtype": "float32", "shape": list(shape), "data": data}


def long_work(target: Target, seconds: float) -> Outcomes:
    """Horizons, scores and rollouts as long as the limits of steps allow, four of them at any time."""
    with _client(target) as client:
        seen, goal_id = _seen(client), _goal(client)
        block, width = 5, len(client.get("/v1/models").json()["models"][0]["action"]["names"])
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/plans", {"planner": {"samples": 3, "horizon": 21_845, "iterations": 1, "elites": 2}}),
        ("/v1/plans", {"planner": {"samples": 3, "horizon": 300, "iterations": 1000, "elites": 2}}),
        ("/v1/plans", {"planner": {"samples": 13_000, "horizon": 5, "iterations": 30, "elites": 2}}),
        ("/v1/plans", {"planner": {"optimizer": "gradient", "samples": 500, "horizon": 100, "iterations": 40}}),
        ("/v1/scores", {"candidates": _tensor((200, 300 * block, width))}),
        ("/v1/scores", {"candidates": _tensor((10, 20_000 * block, width))}),
        ("/v1/rollouts", {"actions": _tensor((60_000 * block, width))}),
        ("/v1/landscapes", {"points": 33}),
    ]

    async def busy() -> Outcomes:
        found: Outcomes = Counter()
        until = time.monotonic() + seconds
        timeout = httpx.Timeout(seconds + 30)
        async with httpx.AsyncClient(
            base_url=target.rest, headers=target.headers, trust_env=False, timeout=timeout
        ) as client:

            async def one(start: int) -> None:
                turn = start
                while time.monotonic() < until:
                    path, about = asked[turn % len(asked)]
                    turn += 1
                    body = {"observation": seen, "goal_id": goal_id, **about}
                    try:
                        reply = await client.post(path, json=body, headers={"x-timeout-ms": str(1e3 * seconds)})
                        found[f"{path.rpartition('/')[2]} {_told(reply)}"] += 1
                    except httpx.HTTPError as error:
                        found[type(error).__name__] += 1

            await asyncio.gather(*(one(2 * number) for number in range(4)))
        return found

    return asyncio.run(busy())


def backlog(target: Target, seconds: float) -> Outcomes:
    """Sixty-four plans of the model's own size at any time."""

    async def busy() -> Outcomes:
        found: Outcomes = Counter()
        until = time.monotonic() + seconds
        with _client(target) as first:
            body = {"observation": _seen(first), "goal_id": _goal(first)}
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(
            base_url=target.rest, headers=target.headers, trust_env=False, timeout=60, limits=limits
        ) as client:

            async def one() -> None:
                while time.monotonic() < until:
                    try:
                        found[_told(await client.post("/v1/plans", json=body))] += 1
                    except httpx.HTTPError as error:
                        found[type(error).__name__] += 1

            await asyncio.gather(*(one() for _ in range(64)))
        return found

    return asyncio.run(busy())


def silent_bodies(target: Target, seconds: float) -> Outcomes:
    """300 requests over REST whose bodies never come, 300 calls over gRPC whose message never comes, 300 streams."""
    found: Outcomes = Counter()
    held = []
    for _ in range(300):
        with suppress(OSError):
            connection = socket.create_connection(target.address("rest"), timeout=5)
            head = (
                f"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {target.key}\r\nContent-Length: 99\r\n\r\n"
            )
            connection.sendall(head.encode() + b"{")
            held.append(connection)

    async def streams() -> None:
        async with grpc.aio.insecure_channel(target.grpc) as channel:
            calls = [channel.stream_unary("/presage.v1.Planning/Plan")(metadata=target.metadata) for _ in range(300)]
            stub = planning_pb2_grpc.PlanningStub(channel)  # type: ignore[no-untyped-call]
            calls += [stub.Control(metadata=target.metadata) for _ in range(300)]
            await asyncio.sleep(seconds)
            for call in calls:
                found[f"gRPC {(await call.code()).name}" if call.done() else "gRPC still open"] += 1
                call.cancel()

    asyncio.run(streams())
    for connection in held:
        connection.settimeout(0.1)
        try:
            found[f"REST {connection.recv(4096)[9:12].decode('latin-1') or 'closed'}"] += 1
        except OSError:
            found["REST still open"] += 1
        connection.close()
    return found


def dripping_uploads(target: Target, seconds: float) -> Outcomes:
    """Eight uploads of a byte a second."""

    async def drip() -> Any:
        header = embeddings_pb2.ClipHeader(total_bytes=10_000, sha256=bytes(32))
        yield embeddings_pb2.EmbedClipRequest(header=header)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            yield embeddings_pb2.EmbedClipRequest(chunk=b"0")
            await asyncio.sleep(1)

    async def uploads() -> Outcomes:
        async with grpc.aio.insecure_channel(target.grpc) as channel:
            stub = embeddings_pb2_grpc.EmbeddingsStub(channel)  # type: ignore[no-untyped-call]
            calls = [stub.EmbedClip(drip(), metadata=target.metadata) for _ in range(8)]
            await asyncio.sleep(min(2.0, seconds / 2))
            with _client(target, OTHER) as other:
                files = {"clip": ("clip", b"no clip", "video/mp4")}
                theirs = _told(other.post("/v1/embeddings/clips", files=files))
            codes = [(await call.code()).name for call in calls]
        return Counter([*codes, f"another key's upload: {theirs}"])

    return asyncio.run(uploads())


def all_sessions(target: Target, seconds: float) -> Outcomes:
    """Sessions of a day until no more are given, and then another key's."""
    found: Outcomes = Counter()
    with _client(target) as client, _client(target, OTHER) as other:
        for _ in range(1100):
            found[_told(client.post("/v1/sessions", json={"ttl_s": 86_400}))] += 1
        found[f"another key's session: {_told(other.post('/v1/sessions', json={}))}"] += 1
    return found


def anothers_goals(target: Target, seconds: float) -> Outcomes:
    """Another key's goal guessed at, named, deleted and pushed out."""
    found: Outcomes = Counter()
    with _client(target) as client, _client(target, OTHER) as other:
        goal_id = _goal(other, 123)
        session = other.post("/v1/sessions", json={"goal_id": goal_id}).json()["session_id"]
        guessed = client.post("/v1/goals", json={"image": _seen(client, 123)["images"][0]}).json()
        found[f"cached: {guessed['cached']}"] += 1
        client.delete(f"/v1/goals/{guessed['goal_id']}")
        found[f"named: {_told(client.post('/v1/sessions', json={'goal_id': goal_id}))}"] += 1
        found[f"deleted: {_told(client.delete(f'/v1/goals/{goal_id}'))}"] += 1
        found[f"session read: {_told(client.get(f'/v1/sessions/{session}'))}"] += 1
        found[f"session deleted: {_told(client.delete(f'/v1/sessions/{session}'))}"] += 1
        until = time.monotonic() + seconds
        shape = tuple(client.get("/v1/models").json()["models"][0]["latent_shape"])
        number = 0
        while time.monotonic() < until:
            number += 1
            latent = {**_tensor(shape), "data": base64.b64encode(np.full(shape, number, np.float32).tobytes()).decode()}
            client.post("/v1/goals", json={"latent": latent})
        found[f"after {number} goals, the other's: {_told(other.get(f'/v1/goals/{goal_id}'))}"] += 1
    return found


def package_away(target: Target, seconds: float) -> Outcomes:
    """The engine killed while its package is away for 15 s, and then put back half written, and then whole."""
    package, away = target.log.parent / "package", target.log.parent / "away"
    found: Outcomes = Counter()
    package.rename(away)
    for pid in _children(target.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with _client(target) as client:
        until = time.monotonic() + AWAY_S
        while time.monotonic() < until:
            found[f"away: readyz {client.get('/readyz').status_code}, livez {client.get('/livez').status_code}"] += 1
            time.sleep(1)
        away.rename(package)
        back = time.monotonic()
        while client.get("/readyz").status_code != 200 and time.monotonic() - back < 90:
            time.sleep(0.5)
        found[f"back: readyz {client.get('/readyz').status_code}"] += 1
    return found


def full_disk(target: Target, seconds: float) -> Outcomes:
    """Files that cannot grow past 200 KB while plans are recorded and a clip is uploaded, and then can again."""
    from server.worker.replay import read  # now: importing it takes longer than counting below may

    folder = target.log.parent / "records"
    before = resource.prlimit(target.pid, resource.RLIMIT_FSIZE)
    found: Outcomes = Counter()
    with _client(target) as client:
        body = {"observation": _seen(client), "goal_id": _goal(client), "planner": {"samples": 16, "iterations": 1}}
        resource.prlimit(target.pid, resource.RLIMIT_FSIZE, (200_000, before[1]))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found[f"plan {_told(client.post('/v1/plans', json=body))}"] += 1
        files = {"clip": ("clip", bytes(2**21), "video/mp4")}
        found[f"upload {_told(client.post('/v1/embeddings/clips', files=files))}"] += 1
        resource.prlimit(target.pid, resource.RLIMIT_FSIZE, before)
        time.sleep(3)
        lines = client.get("/metrics").text.splitlines()
        written = next(float(line.split()[1]) for line in lines if line.startswith("presage_records_total"))
    kept = sorted(folder.rglob("*.mcap"))
    there = sum(len(read(path).records) for path in kept if path.stat().st_size)
    found[f"counted {written:.0f}, on disk {there}, empty files {sum(not path.stat().st_size for path in kept)}"] += 1
    return found


def _children(pid: int) -> list[int]:
    """The processes that a process has started and that are of this interpreter: engines among them."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(folder.name))
    return found


def _with_package(folder: Path) -> dict[str, str]:
    shutil.copytree(BUILT_IN / "arm", folder / "package")
    return {"MODELS": str(folder / "package")}


def _with_records(folder: Path) -> dict[str, str]:
    return {"RECORD__FOLDER": str(folder / "records"), "RECORD__MAX_BYTES": str(2**26)}


_ROWS: tuple[tuple[str, Callable[[Target, float], Outcomes]], ...] = (
    ("8", long_work), ("8b", backlog), ("9", silent_bodies), ("9b", dripping_uploads), ("9c", all_sessions),
    ("12", anothers_goals),
)  # fmt: skip
ATTACKS = (
    *(Attack(row, run.__name__.replace("_", " "), run) for row, run in _ROWS),
    Attack("10", "package away", package_away, prepare=_with_package),
    Attack("14", "full disk", full_disk, prepare=_with_records),
)
