"""The table of errors, rendered by both transports. Messages name the field, the rule and the value.

Not a place for tracebacks: what is unexpected leaves as INTERNAL with a request id alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import grpc
from presage.user_error import UserError


@dataclass(frozen=True)
class Fault:
    """How one kind of failure looks from outside."""

    grpc_code: grpc.StatusCode
    http_status: int
    title: str


class Reason(Enum):
    """Every failure a caller can meet. The name is the machine-readable reason on both transports."""

    INVALID_REQUEST = Fault(grpc.StatusCode.INVALID_ARGUMENT, 400, "The request cannot be read")
    INVALID_FIELD = Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "A field breaks its rule")
    INVALID_TENSOR = Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "A tensor does not add up")
    INVALID_IMAGE = Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "An image cannot be used")
    IMAGE_SIZE = Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "An image has the wrong size")
    ACTION_SHAPE = Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "Actions have the wrong shape")
    INVALID_CLIP = Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "A clip cannot be decoded")
    CLIP_MISMATCH = Fault(grpc.StatusCode.INVALID_ARGUMENT, 422, "A clip is not what its header announced")
    UNKNOWN_MODEL = Fault(grpc.StatusCode.NOT_FOUND, 404, "No such model")
    UNKNOWN_GOAL = Fault(grpc.StatusCode.NOT_FOUND, 404, "No such goal")
    UNKNOWN_SESSION = Fault(grpc.StatusCode.NOT_FOUND, 404, "No such session")
    UNKNOWN_ROUTE = Fault(grpc.StatusCode.UNIMPLEMENTED, 404, "No such route")
    METHOD_NOT_ALLOWED = Fault(grpc.StatusCode.UNIMPLEMENTED, 405, "The route does not take this method")
    GOAL_REQUIRED = Fault(grpc.StatusCode.FAILED_PRECONDITION, 409, "There is no goal yet")
    STALE_OBSERVATION = Fault(grpc.StatusCode.FAILED_PRECONDITION, 409, "A newer observation was already used")
    UNSUPPORTED = Fault(grpc.StatusCode.FAILED_PRECONDITION, 409, "The model cannot do this")
    FOREIGN_SITE = Fault(grpc.StatusCode.PERMISSION_DENIED, 403, "A page or a name that is not served")
    HEAD_TOO_LARGE = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 431, "The request's headers are larger than the limit")
    TOO_LARGE = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 413, "The request is larger than the limit")
    TOO_MANY_SESSIONS = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "All sessions are taken")
    TOO_MANY_GOALS = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "Open sessions hold all goals there is room for")
    DISK_FULL = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 507, "The service has no room on its disk")
    OVERLOADED = Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "The queue is full")
    UNAUTHENTICATED = Fault(grpc.StatusCode.UNAUTHENTICATED, 401, "An API key is needed")
    FORBIDDEN = Fault(grpc.StatusCode.PERMISSION_DENIED, 403, "The API key may not do this")
    DEADLINE = Fault(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "No plan by the deadline")
    CANCELLED = Fault(grpc.StatusCode.CANCELLED, 499, "The caller went away")
    NOT_READY = Fault(grpc.StatusCode.UNAVAILABLE, 503, "The service is not ready")
    ENGINE_LOST = Fault(grpc.StatusCode.UNAVAILABLE, 503, "The engine stopped and is being restarted")
    PLAN_FAILED = Fault(grpc.StatusCode.INTERNAL, 500, "The model predicted nothing usable")
    INTERNAL = Fault(grpc.StatusCode.INTERNAL, 500, "Something failed inside")

    @property
    def fault(self) -> Fault:
        return self.value


class ServiceError(UserError):
    """A failure with a name. `field`, `rule` and `value` say what to change where the caller can change something."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        rule: str = "",
        value: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        message = _plain(message, _LONGEST)
        super().__init__(message)
        self.reason, self.message, self.rule = reason, message, _plain(rule, _LONGEST)
        self.field, self.value = _plain(field, _FIELD), _plain(value, _VALUE)
        self.retry_after_s = retry_after_s


MOST_FAULTS = 20


class Faults(UserError):
    """Everything that is told of one request that breaks rules: at least one fault, at most `MOST_FAULTS`."""

    def __init__(self, faults: Sequence[ServiceError]) -> None:
        super().__init__(faults[0].message)
        self.faults = tuple(faults)[:MOST_FAULTS]


_LONGEST, _FIELD, _VALUE = 2000, 200, 80  # characters of a message or rule, of a field's name, of a value


def _plain(text: str, longest: int) -> str:
    """Text that every transport can carry: of this length at most, and without lone surrogates."""
    if len(text) > longest:
        text = text[: longest - 3] + "..."
    return text.encode("utf-8", "replace").decode("utf-8")


def invalid(field: str, rule: str, value: object, reason: Reason = Reason.INVALID_FIELD) -> ServiceError:
    """The error for a field that breaks its rule; long values are cut so that no request echoes back whole."""
    try:
        shown = _plain(str(value), _VALUE)
    except ValueError:  # Python writes no number of more than 4300 digits
        shown = f"a very long {type(value).__name__}"
    field = _plain(field, _FIELD)
    return ServiceError(reason, f"{field} {rule}, got {shown}", field=field, rule=rule, value=shown)


def refuse(field: str, rule: str, value: object, reason: str) -> ServiceError:
    """`invalid` as the codecs that clients share call it: with the reason's name."""
    return invalid(field, rule, value, Reason[reason])


def let_go(error: BaseException) -> None:
    """Free what the frames hold that an error came through, once it is told: a body of 16 MiB, say.

    Errors and frames refer to each other, so that they would wait for a collection, which may be minutes away.
    """
    waiting, known = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in known:
            continue
        known.add(id(each))
        traceback.clear_frames(each.__traceback__)
        waiting += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
