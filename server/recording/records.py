"""What is kept of a plan, as bytes and back: enough to make it again, and readable as JSON by any tool.

Nothing is pickled: what an engine was asked and what it found are written as on the way to it and back (see wire).
Where records are kept is the recorder's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from presage.user_error import UserError
from presage.values import Plan

from server.engine import serialization
from server.engine.messages import Done, FromEngine, PlanDone, PlanJob, Submit, ToEngine
from server.engine.serialization import WireError
from server.values.caller import calling
from server.values.calls import PlanRequest

VERSION = 2
TOPIC = "/presage/plan"
SCHEMA = {
    "title": "presage.plan",
    "description": "One plan: the request, what the engine searched for and found, and the reply.",
    "type": "object",
    "required": ["version", "time_ns", "request", "reply"],
    "properties": {
        "version": {"const": VERSION},
        "time_ns": {"type": "integer", "description": "When the reply was made, on the server's clock"},
        "request": {"type": "object", "description": "What was asked, without the observation; session is a hash"},
        "reply": {"type": "object", "description": "What the robot was told; actions are [time, action]"},
        "job": {"type": ["object", "null"], "description": "What the engine was given; null: nothing was searched for"},
        "done": {"type": ["object", "null"], "description": "What the engine found"},
    },
}


class RecordError(UserError, ValueError):
    """A record or a file of records that cannot be read; the message is one line."""


@dataclass(frozen=True)
class PlanRecord:
    """One plan as it happened. `job` and `done` are None where the reply was what was left of an earlier plan."""

    time_ns: int
    request: PlanRequest
    reply: Plan
    job: PlanJob | None
    done: PlanDone | None
    trace: str = ""  # W3C traceparent of the call
    caller: str = field(default_factory=lambda: calling().owner)  # whose plan it is: a key's name or its digest

    @property
    def nbytes(self) -> int:
        """About how much memory the record holds on to."""
        if self.job is None or self.done is None:
            return 4096
        start = self.job.start
        latents = (*start.history, self.job.goal, self.done.latent)
        return (
            4096
            + sum(frame.nbytes for frame in (*start.frames, *start.past_frames))
            + sum(latent.nbytes for latent in latents)
        )


@dataclass(frozen=True)
class Recorded:
    """A record read back: the request and the reply as JSON, the engine's part whole."""

    time_ns: int
    request: dict[str, Any]
    reply: dict[str, Any]
    job: PlanJob | None
    done: PlanDone | None


def encode(record: PlanRecord, images: bool) -> bytes:
    """The record as JSON. Without `images` the pictures are left out; the observation's latent stays."""
    job = record.job
    if job is not None and not images:
        job = replace(job, start=replace(job.start, frames=(), past_frames=()))
    content = {
        "version": VERSION,
        "time_ns": record.time_ns,
        "request": _asked(record),
        "reply": {**asdict(record.reply), "actions": record.reply.actions.tolist()},
        "job": None if job is None else _written(Submit(0, job)),
        "done": None if record.done is None else _written(Done(0, record.done)),
    }
    return json.dumps(content, separators=(",", ":")).encode()


def decode(content: bytes) -> Recorded:
    """Raises RecordError."""
    try:
        record = json.loads(content)
        if record["version"] != VERSION:
            raise RecordError(f"a record has version {record['version']}, this reads {VERSION}")
        submitted, answered = record["job"], record["done"]
        job = None if submitted is None else _read(submitted)
        done = None if answered is None else _read(answered)
        recorded = Recorded(int(record["time_ns"]), dict(record["request"]), dict(record["reply"]), None, None)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"a record cannot be read: {type(error).__name__}: {error}") from error
    if job is None or done is None:
        return recorded
    if not (isinstance(job, Submit) and isinstance(job.job, PlanJob)):
        raise RecordError("a record's job is no plan")
    if not (isinstance(done, Done) and isinstance(done.result, PlanDone)):
        raise RecordError("a record's result is no plan")
    return replace(recorded, job=job.job, done=done.result)


def _asked(record: PlanRecord) -> dict[str, Any]:
    """The request without its observation. A session's id opens the session, so only its hash is kept."""
    asked = {name: value for name, value in vars(record.request).items() if name not in ("observation", "session_id")}
    session = record.request.session_id
    hashed = hashlib.sha256(session.encode()).hexdigest()[:16] if session else ""
    limits = None if record.request.limits is None else asdict(record.request.limits)
    about = {"limits": limits, "traceparent": record.trace, "caller": record.caller}
    return {"session": hashed, **asked, "planner": asdict(record.request.planner), **about}


def _written(message: ToEngine | FromEngine) -> dict[str, Any]:
    text, *arrays = serialization.pieces(message)
    return {"message": json.loads(bytes(text)), "arrays": [base64.b64encode(array).decode() for array in arrays]}


def _read(value: dict[str, Any]) -> ToEngine | FromEngine:
    try:
        arrays = [memoryview(base64.b64decode(text, validate=True)) for text in value["arrays"]]
    except binascii.Error as error:
        raise WireError(f"an array is not base64: {error}") from error
    text = memoryview(json.dumps(value["message"]).encode())
    return serialization.unpack(bytearray(b"".join(serialization.framed([text, *arrays]))))
