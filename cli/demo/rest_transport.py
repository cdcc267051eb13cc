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

from cli.demo.transport import DEADLINE_S, READY_S, ClipResult, Frame, ModelFacts, PlanResult, TransportError


class RestDoor:
    """Through httpx."""

    def __init__(self, address: str) -> None:
        # trust_env: a proxy of the machine's has nothing to do with a service on loopback.
        self._http = httpx.Client(base_url=address, timeout=DEADLINE_S, trust_env=False)
        self._session = ""

    def model(self) -> ModelFacts:
        self._wait_ready()
        found = self._call("GET", "/v1/models")["models"][0]
        image, action = found["image"], found["action"] or {}
        return ModelFacts(
            name=found["name"],
            family=found["family"],
            weights_digest=found["weights_digest"],
            server_version=found["server_version"],
            height=image["height"],
            width=image["width"],
            crop_policy=image["crop_policy"],
            action_names=tuple(action.get("names", ())),
            proprioception=len(found["proprioception_names"]),
            rate_hz=action.get("rate_hz", 0.0),
            block=action.get("block", 0),
        )

    def goal(self, image: Frame) -> str:
        return str(self._call("POST", "/v1/goals", {"image": _image(image)})["goal_id"])

    def begin(self, goal_id: str) -> None:
        self._end_session()
        self._session = self._call("POST", "/v1/sessions", {"goal_id": goal_id})["session_id"]

    def plan(self, seen: Frame, proprioception: Sequence[float] | None, executed: int, seed: int) -> PlanResult:
        began = time.perf_counter()
        observation: dict[str, Any] = {"images": [_image(seen)]}
        if proprioception is not None:
            observation["proprioception"] = list(proprioception)
        body = {"session_id": self._session, "observation": observation, "executed": executed, "seed": seed}
        plan = self._call("POST", "/v1/plans", body)
        actions = _tensor(plan["actions"])
        round_trip_ms = (time.perf_counter() - began) * 1000
        provenance = plan["provenance"]
        return PlanResult(
            actions=actions,
            goal_distance=plan["goal_distance"],
            cost=plan["cost"],
            step_costs=tuple(plan["step_costs"]),
            iteration_costs=tuple(plan["iteration_costs"]),
            warm_started=plan["warm_started"],
            stop_reason=plan["stop_reason"],
            seed=plan["seed"],
            planner={name: value for name, value in provenance["planner"].items() if value is not None},
            device=provenance["device"],
            dtype=provenance["dtype"],
            **plan["timings"],
            round_trip_ms=round_trip_ms,
        )

    def distances(self, images: NDArray[np.uint8], goal_id: str) -> tuple[float, ...]:
        body = {"images": [_image(image) for image in images], "goal_id": goal_id}
        return tuple(self._call("POST", "/v1/embeddings/images", body)["goal_distances"])

    def clip(self, path: Path, kind: str, goal_id: str) -> ClipResult:
        content = path.read_bytes()
        form = {"kind": kind, "goal_id": goal_id, "sha256": hashlib.sha256(content).hexdigest()}
        began = time.perf_counter()
        files = {"clip": (path.name, content, "video/mp4")}
        found = self._answer(self._http.build_request("POST", "/v1/embeddings/clips", data=form, files=files))
        upload_ms = (time.perf_counter() - began) * 1000
        shape = tuple(found["embedding"]["shape"])
        return ClipResult(shape, tuple(found["frame_times_s"]), tuple(found["goal_distances"]), upload_ms)

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


def _tensor(tensor: dict[str, Any]) -> NDArray[np.float32]:
    """A float32 array from its bytes."""
    flat: NDArray[np.float32] = np.frombuffer(base64.b64decode(tensor["data"]), np.dtype("<f4"))
    return flat.reshape(tuple(tensor["shape"]))
