"""What can go wrong, as exceptions: one class per thing a caller can do about it. `reason` says exactly what happened.

The classes follow the server's table of reasons; the details travel as google.rpc.Status in `grpc-status-details-bin`
and are read by hand (see wire.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable

from presage.protocol.wire import fields
from presage.user_error import UserError


class PresageError(UserError):
    """A failed call. `reason` is the server's name for it ("IMAGE_SIZE"), `field` what to change, "" if nothing.

    `request_id` finds the call in the server's log. `retry_after_s` is the server's wish, in seconds; None if it has
    none.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.reason, self.field = message, reason, field
        self.request_id, self.retry_after_s = request_id, retry_after_s

    def __str__(self) -> str:
        notes = [self.reason] if self.reason else []
        notes += [f"request {self.request_id}"] if self.request_id else []
        return f"{self.message} [{', '.join(notes)}]" if notes else self.message


class InvalidRequest(PresageError):
    """The request breaks a rule: changing it helps, sending it again does not."""


class NotFound(PresageError):
    """No such model, goal, session or route; sessions and goals are also forgotten by age."""


class Overloaded(PresageError):
    """The server has no room now; `retry_after_s` says when to come back, where the server knows."""


class Unavailable(PresageError):
    """The server cannot be reached, is starting or stopping, or its engine is being restarted."""


class DeadlineExceeded(PresageError):
    """No answer in time. Never retried: a late plan is worthless."""


class Unauthenticated(PresageError):
    """The API key or certificate is missing, wrong, or not allowed to do this."""


class Cancelled(PresageError):
    """The call was given up, on this side by close() or on the server's."""


class ServerError(PresageError):
    """The server failed inside or answered nonsense; `request_id` is what its operator needs."""


BY_CODE: dict[str, type[PresageError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "FAILED_PRECONDITION": InvalidRequest,
    "NOT_FOUND": NotFound,
    "UNIMPLEMENTED": NotFound,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Unauthenticated,
    "CANCELLED": Cancelled,
}

# The reason where a status carries none: it came from gRPC itself or from a proxy, not from the service.
BARE_REASON: dict[str, str] = {"UNAVAILABLE": "UNREACHABLE", "DEADLINE_EXCEEDED": "DEADLINE"}

# Errors inside a control stream carry a reason and no code.
BY_REASON: dict[str, type[PresageError]] = {
    "INVALID_REQUEST": InvalidRequest,
    "INVALID_FIELD": InvalidRequest,
    "INVALID_TENSOR": InvalidRequest,
    "INVALID_IMAGE": InvalidRequest,
    "IMAGE_SIZE": InvalidRequest,
    "ACTION_SHAPE": InvalidRequest,
    "INVALID_CLIP": InvalidRequest,
    "CLIP_MISMATCH": InvalidRequest,
    "GOAL_REQUIRED": InvalidRequest,
    "STALE_OBSERVATION": InvalidRequest,
    "UNSUPPORTED": InvalidRequest,
    "HEAD_TOO_LARGE": InvalidRequest,
    "TOO_LARGE": InvalidRequest,
    "UNKNOWN_MODEL": NotFound,
    "UNKNOWN_GOAL": NotFound,
    "UNKNOWN_SESSION": NotFound,
    "UNKNOWN_ROUTE": NotFound,
    "METHOD_NOT_ALLOWED": NotFound,
    "TOO_MANY_SESSIONS": Overloaded,
    "TOO_MANY_GOALS": Overloaded,
    "DISK_FULL": Overloaded,
    "OVERLOADED": Overloaded,
    "UNAUTHENTICATED": Unauthenticated,
    "FORBIDDEN": Unauthenticated,
    "FOREIGN_SITE": Unauthenticated,
    "DEADLINE": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "NOT_READY": Unavailable,
    "ENGINE_LOST": Unavailable,
    "PLAN_FAILED": ServerError,
    "INTERNAL": ServerError,
}


def invalid(field: str, rule: str, value: object, reason: str = "INVALID_FIELD") -> InvalidRequest:
    """The error for an argument that breaks its rule before anything is sent."""
    shown = str(value)
    return InvalidRequest(
        f"{field} {rule}, got {shown[:77] + '...' if len(shown) > 80 else shown}", reason=reason, field=field
    )


def from_reason(reason: str, message: str) -> PresageError:
    """The error for a reason alone; a reason newer than this client is a ServerError."""
    return BY_REASON.get(reason, ServerError)(message, reason=reason)


def from_status(
    code: str,
    message: str,
    trailing: Iterable[tuple[str, str | bytes]],
    *,
    request_id: str = "",
    address: str = "",
) -> PresageError:
    """The error for a failed call: `code` is gRPC's name for it, `trailing` the trailing metadata."""
    metadata = dict(trailing)
    raw = metadata.get("grpc-status-details-bin", b"")
    details = read_status(raw if isinstance(raw, bytes) else b"")
    reason = details.reason or BARE_REASON.get(code, code)
    if code == "UNAVAILABLE" and not details.reason:
        message = f"cannot reach {address}: {message}"
    if code == "DEADLINE_EXCEEDED" and not details.reason and " through the proxy " in address:
        message = f"{message} at {address}"
    if code == "RESOURCE_EXHAUSTED" and not details.reason and "larger than max" in message:
        reason = "TOO_LARGE"  # gRPC's own message limit, on either side
    echoed = metadata.get("x-request-id", "")
    kind = BY_REASON.get(reason) if code == "RESOURCE_EXHAUSTED" else None
    return (kind or BY_CODE.get(code, ServerError))(
        message,
        reason=reason,
        field=details.field,
        request_id=details.request_id or (echoed if isinstance(echoed, str) else "") or request_id,
        retry_after_s=details.retry_after_s,
    )


@dataclass(frozen=True)
class StatusDetails:
    """What a google.rpc.Status says beyond its code and message."""

    reason: str = ""
    field: str = ""
    request_id: str = ""
    retry_after_s: float | None = None


def read_status(data: bytes) -> StatusDetails:
    """Reads a google.rpc.Status. What is unknown or damaged is left out: one error must not hide another."""
    reason = field = request_id = ""
    retry_after_s: float | None = None
    try:
        for number, packed in fields(data):
            if number != 3 or not isinstance(packed, bytes):  # Status.details
                continue
            wrapped = dict(fields(packed))  # Any
            kind, body = _text(wrapped.get(1)).rpartition("/")[2], wrapped.get(2, b"")
            if not isinstance(body, bytes):
                continue
            if kind == "google.rpc.ErrorInfo":
                reason = _text(dict(fields(body)).get(1))
            elif kind == "google.rpc.BadRequest":
                violations = [value for number, value in fields(body) if number == 1 and isinstance(value, bytes)]
                field = _text(dict(fields(violations[0])).get(1)) if violations else field
            elif kind == "google.rpc.RetryInfo":
                delay = dict(fields(body)).get(1, b"")
                retry_after_s = _seconds(delay) if isinstance(delay, bytes) else None
            elif kind == "google.rpc.RequestInfo":
                request_id = _text(dict(fields(body)).get(1))
    except ValueError:
        pass
    return StatusDetails(reason, field, request_id, retry_after_s)


def _text(value: int | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _seconds(duration: bytes) -> float | None:
    parts = dict(fields(duration))
    seconds, nanos = parts.get(1, 0), parts.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int) or seconds >= 1 << 63:
        return None
    return seconds + nanos / 1e9
