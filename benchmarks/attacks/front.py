"""Attacks on what comes before admission: heads, bodies, pictures, health, connections, deadlines, pages, edges."""

from __future__ import annotations

import base64
import io
import multiprocessing
import random
import socket
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from benchmarks.attacks import http2
from benchmarks.attacks.meter import plain_image
from benchmarks.attacks.target import Attack, Outcomes, Target

JSON = {"content-type": "application/json"}
MIB = 2**20


def _posted(target: Target, path: str, body: bytes, timeout_s: float = 60, **headers: str) -> str:
    """What a body is answered."""
    try:
        reply = httpx.post(
            target.rest + path, content=body, headers={**JSON, **target.headers, **headers}, trust_env=False,
            timeout=timeout_s,
        )  # fmt: skip
    except httpx.HTTPError as error:
        return type(error).__name__
    size = f", {len(reply.content) >> 20} MiB" if len(reply.content) >= MIB else ""
    try:
        return f"{reply.status_code} {reply.json()['code']}{size}"
    except (ValueError, KeyError):
        return f"{reply.status_code}{size}"


def _poured(target: Target, first: bytes, again: bytes, total: int) -> str:
    """A connection that says the second without end, up to so many bytes."""
    taken, answer = 0, b""
    try:
        with socket.create_connection(target.address("rest"), timeout=10) as connection:
            connection.sendall(first)
            while taken < total:
                connection.sendall(again)
                taken += len(again)
            answer = connection.recv(64)
    except OSError as error:
        return f"{type(error).__name__} within {-(-taken // MIB)} MiB"
    return f"{answer[9:12].decode('latin-1') or 'closed'} after {taken // MIB} MiB"


def endless_heads(target: Target, seconds: float) -> Outcomes:
    """200 MiB of headers, of one header, of trailers after a refusal, on a connection each, without a key."""
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
    chunked = b"POST /v1/plans HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    line = b"X-A: %s\r\n" % (b"a" * 1000)
    kinds = [(head, line * 64), (head + b"X-A: ", b"a" * 65536), (chunked, line * 64), (b"GET /", b"a" * 65536)]
    return Counter(_poured(target, first, again, 200 * MIB) for first, again in kinds)


def wrong_everywhere(target: Target, seconds: float) -> Outcomes:
    """Lists of 1 and 4 MiB with the wrong type in every entry, and other shapes of the same."""
    bodies = [
        b'{"observation":{"images":[%s1]},"goal_id":"x"}' % (b"1," * (MIB // 2)),
        b'{"observation":{"images":[%s1]},"goal_id":"x"}' % (b"1," * (2 * MIB)),
        b'{"observation":{"images":[%s{}]},"goal_id":"x"}' % (b"{}," * (MIB // 3)),
        b"{%s}" % b",".join(b'"%d":0' % n for n in range(100_000)),
        b'{"actions":%s}' % (b"[" * MIB),
        b'{"actions":[%s1]}' % (b'"a",' * (MIB // 4)),
    ]
    return _for(seconds, lambda: Counter(_posted(target, "/v1/plans", body) for body in bodies))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(before: bytes = b"", behind: bytes = b"") -> bytes:
    """One pixel, and chunks around it."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + behind + _chunk(b"IEND", b"")


def inflated_texts(target: Target, seconds: float) -> Outcomes:
    """16 pictures of one pixel with 60 MB of text in each, packed into 1 MiB together."""
    text = zlib.compress(b"a" * 1_000_000)
    texts = b"".join(_chunk(b"zTXt", b"k%d\0\0" % number + text) for number in range(60))
    profiles = _chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(60_000_000)))
    many = b"".join(_chunk(b"tEXt", b"a\0") for _ in range(70_000))
    pictures = [
        [png(texts)] * 16,
        [png(behind=texts)] * 16,
        [png(profiles)] * 16,
        [png(many + texts)],
        [png(texts)] * 9,
    ]

    def once() -> Outcomes:
        found: Outcomes = Counter()
        for each in pictures:
            encoded = b",".join(b'{"encoded":"%s"}' % base64.b64encode(picture) for picture in each)
            body = b'{"observation":{"images":[%s]},"goal_id":"x"}' % encoded
            found[_posted(target, "/v1/plans", body)] += 1
            found[_posted(target, "/v1/embeddings/images", b'{"images":[%s]}' % encoded)] += 1
        return found

    return _for(seconds, once)


def health_without_a_key(target: Target, seconds: float) -> Outcomes:
    """600 watchers, 30 requests for health announced as 30 MiB and half sent, and bytes that are no message."""
    found: Outcomes = Counter()
    request = health_pb2.HealthCheckRequest()
    channels = [grpc.insecure_channel(target.grpc, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
    watching = [health_pb2_grpc.HealthStub(channels[n % 8]).Watch(request, timeout=seconds + 5) for n in range(600)]
    with ThreadPoolExecutor(30) as threads:
        work = [threads.submit(_half_check, target) for _ in range(30)]
        for content in (b"\xff\xff\xff", b"\x0a\xff", b"\x0a" + bytes(100_000)):
            for _ in range(20):
                try:
                    channels[0].unary_unary("/grpc.health.v1.Health/Check")(content, timeout=5)
                    found["an answer to nonsense"] += 1
                except grpc.RpcError as error:
                    found[f"nonsense: {error.code().name}"] += 1
        time.sleep(seconds)
        for done in work:
            found[done.result()] += 1
    for watcher in watching:
        try:
            found[f"watch: {len(list(watcher))} statuses"] += 1
        except grpc.RpcError as error:
            found[f"watch: {error.code().name}"] += 1
    for channel in channels:
        channel.close()
    return found


def _half_check(target: Target) -> str:
    try:
        with http2.opened(target.address("grpc")) as connection:
            taken = http2.half_sent(connection, "/grpc.health.v1.Health/Check", 30 * MIB, 29 * MIB)
    except OSError as error:
        return f"half sent: {type(error).__name__}"
    return f"half sent: {'more than' if taken > 20 * MIB else 'less than'} 20 MiB taken"


def silent_connections(target: Target, seconds: float) -> Outcomes:
    """1100 connections that say nothing, half a head, or hello in HTTP/2 and no more, to each port."""
    held: list[socket.socket] = []
    found: Outcomes = Counter()
    said = [b"", b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"]
    for number in range(2200):
        try:
            made = socket.create_connection(target.address("grpc" if number % 2 else "rest"), timeout=5)
            made.sendall(said[number % 3])
            held.append(made)
        except OSError as error:
            found[type(error).__name__] += 1
    time.sleep(max(seconds, 15.0))
    for each in held:
        each.setblocking(False)
        try:
            while each.recv(65_536):
                pass
            found["ended by the service"] += 1
        except BlockingIOError:
            found["still open"] += 1
        except OSError:
            found["ended by the service"] += 1
        each.close()
    return found


def countless_scans(target: Target, seconds: float) -> Outcomes:
    """Progressive JPEGs of 20,000 scans, of 64, and pictures of 16 megapixels, to be answered within a second."""
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    progressive = _saved(pixels[:64, :64], "JPEG", progressive=True, quality=10)
    large = _saved(pixels // 8 * 8, "JPEG", progressive=True, quality=5)
    huge = _saved(np.tile(pixels[:, :, :1] // 64, (4, 4, 3))[:4000, :4000], "PNG", compress_level=1)
    pictures = [_rescanned(progressive, 20_000), _rescanned(large, 20_000), _rescanned(large, 60), huge]
    bodies = [b'{"image":{"encoded":"%s"}}' % base64.b64encode(each) for each in pictures if len(each) < 12 * MIB]

    def once() -> Outcomes:
        found: Outcomes = Counter()
        with ThreadPoolExecutor(4) as threads:
            for answer, took in threads.map(lambda body: _timed(target, body), bodies):
                found[f"{answer}{' LATE' if took > 1.25 else ''}"] += 1
        return found

    return _for(seconds, once)


def _timed(target: Target, body: bytes) -> tuple[str, float]:
    began = time.perf_counter()
    answer = _posted(target, "/v1/goals", body, **{"x-timeout-ms": "1000"})
    return answer, time.perf_counter() - began


def _saved(pixels: np.ndarray[Any, Any], container: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, container, **options)
    return buffer.getvalue()


def _rescanned(jpeg: bytes, scans: int) -> bytes:
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2][:48] * (scans - jpeg.count(b"\xff\xda")) + b"\xff\xd9"


def late_answers(target: Target, seconds: float) -> Outcomes:
    """Megabytes of JSON beside small requests with a deadline: no answer may be a success after it."""
    large = b'{"observation":{"images":[{"encoded":"x"}]},"actions":[%s[0.5,0.5]],"goal_id":"x"}' % (
        b"[0.5,0.5]," * 150_000  # 1.5 MB
    )
    processes = multiprocessing.get_context("spawn")
    pouring = [processes.Process(target=_pour, args=(target, large, seconds), daemon=True) for _ in range(3)]
    for each in pouring:
        each.start()
    found = _asked_in_time(target, seconds + 1)
    for each in pouring:
        each.join()
    return found


def _pour(target: Target, body: bytes, seconds: float) -> None:
    _for(seconds, lambda: Counter([_posted(target, "/v1/rollouts", body, **{"x-timeout-ms": "500"})]))


def _asked_in_time(target: Target, seconds: float) -> Outcomes:
    """Small requests with a deadline of 100 ms on one connection, and how many successes came after it."""
    found: Outcomes = Counter()
    until = time.monotonic() + seconds
    with httpx.Client(base_url=target.rest, headers={**JSON, **target.headers}, trust_env=False, timeout=10) as client:
        image = plain_image(client)
        while time.monotonic() < until:
            began = time.perf_counter()
            reply = client.post("/v1/goals", json={"image": image}, headers={"x-timeout-ms": "100"})
            took = time.perf_counter() - began
            found[f"small: {reply.status_code}{' LATE' if reply.status_code < 300 and took > 0.12 else ''}"] += 1
            time.sleep(0.02)
    return found


def pages_in_browsers(target: Target, seconds: float) -> Outcomes:
    """Other names in Host, and forms from pages elsewhere, to a service on loopback without keys."""
    found: Outcomes = Counter()
    files = {"clip": ("clip.mp4", b"\0" * 100_000)}
    with httpx.Client(base_url=target.rest, trust_env=False, timeout=10) as client:
        for path in ("/livez", "/v1/models", "/metrics", "/openapi.json", "/v1/sessions/x"):
            for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
                found[f"GET {client.get(path, headers=headers).status_code}"] += 1
        for path in ("/v1/embeddings/clips", "/v1/classifications/clips"):
            reply = client.post(path, files=files, headers={"origin": "https://evil.example"})
            found[f"form {reply.status_code} {reply.json()['code']}"] += 1
    return found


def strange_requests(target: Target, seconds: float) -> Outcomes:
    """Lone surrogates, wrong methods, wrong bytes, odd headers: everything is answered, nothing is INTERNAL."""
    draw = random.Random(0)
    found: Outcomes = Counter()
    paths = [
        "/openapi.json",
        "/livez",
        "/metrics",
        "/v1/plans",
        "/v1/goals",
        "/v1/sessions",
        "/v1/scores",
        "/v1/%ff",
        "/",
    ]
    texts = [b'"\\ud800"', b'"\\udfff\\ud800"', b"1e999", b"-0", b"null", b"[]", b'{"a":{}}', b'"\\u0000"', b"1" * 5000]
    names = [b"goal_id", b"model", b"observation", b"seed", b"planner", b"image", b"ttl_s", b"\\ud800", b"session_id"]
    with httpx.Client(base_url=target.rest, headers=target.headers, trust_env=False, timeout=10) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            method = draw.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE", "HEAD"])
            body = b"{%s}" % b",".join(b'"%s":%s' % (draw.choice(names), draw.choice(texts)) for _ in range(3))
            headers = {
                draw.choice(["x-timeout-ms", "x-request-id", "traceparent", "accept"]): draw.choice(
                    ["-1", "x" * 300, "1"]
                )
            }
            try:
                reply = client.request(method, draw.choice(paths), content=body, headers={**JSON, **headers})
                found["INTERNAL" if reply.status_code == 500 else f"{reply.status_code // 100}xx"] += 1
            except httpx.HTTPError as error:
                found[type(error).__name__] += 1
    with grpc.insecure_channel(target.grpc) as channel:
        for number in range(200):
            call = channel.unary_unary(draw.choice(["/grpc.health.v1.Health/Check", "/presage.v1.Planning/Plan"]))
            try:
                call(draw.randbytes(number), metadata=target.metadata, timeout=5)
                found["gRPC OK"] += 1
            except grpc.RpcError as error:
                found[f"gRPC {error.code().name}"] += 1
    return found


def _for(seconds: float, once: Any) -> Outcomes:
    """As often as fits, at least once."""
    found: Outcomes = Counter()
    until = time.monotonic() + seconds
    while True:
        found += once()
        if time.monotonic() >= until:
            return found


ATTACKS = (
    Attack("1", "endless headers and trailers", endless_heads),
    Attack("2", "the wrong type in every entry", wrong_everywhere),
    Attack("3", "inflated texts in pictures", inflated_texts),
    Attack("4", "health without a key", health_without_a_key),
    Attack("5", "silent connections", silent_connections),
    Attack("6", "countless scans", countless_scans),
    Attack("7", "answers beside megabytes of JSON", late_answers),
    Attack("13", "pages in browsers", pages_in_browsers, keyless=True),
    Attack("15", "strange requests", strange_requests),
)
