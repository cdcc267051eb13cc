"""The service over plain HTTP and JSON, for robots without gRPC."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from presage import ClipEmbedding, Model, Plan

from cli.demo.json_values import from_json
from cli.demo.transport import DEADLINE_S, READY_S, Frame, TimedClip, TimedPlan, TransportError


class RestDoor:
    """Through httpx."""

    def __init__(self, address: str) -> None:
        # trust_env: a proxy of the machine's has nothing to do with a service on loopback.
        self._http = httpx.Client(base_url=address, timeout=DEADLINE_S, trust_env=False)
        self._session = ""

    def model(self) -> Model:
        self._wait_ready()
        return from_json(Model, self._call("GET", "/v1/models")["models"][0])

    def goal(self, image: Frame) -> str:
        return str(self._call("POST", "/v1/goals", {"image": _image(image)})["goal_id"])

    def begin(self, goal_id: str) -> None:
        self._end_session()
        self._session = self._call("POST", "/v1/sessions", {"goal_id": goal_id})["session_id"]

    def plan(self, seen: Frame, proprioception: Sequence[float] | None, executed: int, seed: int) -> TimedPlan:
        began = time.perf_counter()
        observation: dict[str, Any] = {"images": [_image(seen)]}
        if proprioception is not None:
            observation["proprioception"] = list(proprioception)
        body = {"session_id": self._session, "observation": observation, "executed": executed, "seed": seed}
        plan = from_json(Plan, self._call("POST", "/v1/plans", body))
        return TimedPlan(plan, (time.perf_counter() - began) * 1000)

    def distances(self, images: NDArray[np.uint8], goal_id: str) -> tuple[float, ...]:
        body = {"images": [_image(image) for image in images], "goal_id": goal_id}
        return tuple(self._call("POST", "/v1/embeddings/images", body)["goal_distances"])

    def clip(self, path: Path, kind: str, goal_id: str) -> TimedClip:
        content = path.read_bytes()
        form = {"kind": kind, "goal_id": goal_id, "sha256": hashlib.sha256(content).hexdigest()}
        began = time.perf_counter()
        files = {"clip": (path.name, content, "video/mp4")}
        found = self._answer(self._http.build_request("POST", "/v1/embeddings/clips", data=form, files=files))
        clip = from_json(ClipEmbedding, found, known={"kind": kind})
        return TimedClip(clip, (time.perf_counter() - began) * 1000)

    def close(self) -> None:
        with suppress(TransportError):  # whatever is wrong has been told by the call before
            self._end_session()
        self._http.close()

    def _end_session(self) -> None:
        if self._session:
            session, self._session = self._session, ""
            self._call("DELETE", f"/v1/sessions/{session}")

    def _wait_ready(self) -> None:
        until = time.monotonic() + READY_S
        while True:
            try:
                self._call("GET", "/readyz")
                return
            except TransportError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._answer(self._http.build_request(method, path, json=body))

    def _answer(self, request: httpx.Request) -> dict[str, Any]:
        try:
            reply = self._http.send(request)
        except httpx.HTTPError as error:
            raise TransportError(f"cannot reach {request.url}: {error}") from error
        if reply.is_success:
            return dict(reply.json()) if reply.content else {}
        if reply.headers.get("content-type", "").startswith("application/problem+json"):
            problem = reply.json()
            raise TransportError(f"{problem['detail']} [{problem['code']}, request {problem['request_id']}]")
        raise TransportError(f"{request.url} answered {reply.status_code}")


def _image(image: Frame) -> dict[str, Any]:
    height, width = image.shape[:2]
    content = base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()
    return {"raw": {"height": height, "width": width, "format": "rgb8", "data": content}}
