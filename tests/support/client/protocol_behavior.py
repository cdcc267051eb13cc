"""What a protocol server is told to do wrong, what it saw, and how it refuses a call."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

CODES = {code.name: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Refusal:
    """How a call is refused."""

    code: str
    reason: str = ""
    message: str = "refused by the test"
    field: str = ""
    retry_after_s: float | None = None


@dataclass
class Behavior:
    """What the server was told to do wrong, and what it saw."""

    refusals: list[Refusal] = field(default_factory=list)  # one for each of the next calls
    refuse_after_work: bool = False  # the work is done, its reply is lost
    serving: bool = True
    planning: threading.Event = field(default_factory=threading.Event)  # clear: plans wait
    muted: bool = False  # control streams hear and say nothing
    drop_streams: int = 0  # control streams that end at their next observation
    calls: list[str] = field(default_factory=list)
    metadata: list[Any] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    starts: list[Any] = field(default_factory=list)
    heartbeats: int = 0
    observations: list[Any] = field(default_factory=list)
    refused_observations: list[Refusal] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    plans_made: int = 0

    def __post_init__(self) -> None:
        self.planning.set()


def abort(context: Any, refusal: Refusal, request_id: str = "served-1") -> None:
    """Ends a call with a google.rpc.Status, or with a bare code where the refusal has no reason."""
    if not refusal.reason:
        context.abort(CODES[refusal.code], refusal.message)
    details = [
        error_details_pb2.ErrorInfo(reason=refusal.reason, domain="presage"),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if refusal.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=refusal.field, description=refusal.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if refusal.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(refusal.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=CODES[refusal.code].value[0], message=refusal.message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))
