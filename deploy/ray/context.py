"""The part of a gRPC context that the service's code uses, on top of the copy that Ray hands to a replica.

Ray's copy knows no deadline and cannot abort: a deadline comes as `x-timeout-ms`, and an error is set on the copy
(code, message and rich details as trailing metadata) before the call returns, the one way on which Ray keeps it all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn, TypeAlias

import grpc

TIMEOUT_MS = "x-timeout-ms"
WAY_BACK_S = 0.02  # of a deadline, for an answer's way through Ray's proxy

Metadata: TypeAlias = "Iterable[tuple[str, str | bytes]]"


class Aborted(Exception):
    """The error is on the context; the call has nothing more to say."""


class ReplicaContext:
    """One call's context. `told` is Ray's copy; `write` sends one answer."""

    def __init__(self, told: Any, write: Callable[[Any], Awaitable[None]] | None = None) -> None:
        self._told, self._write = told, write
        self._until = _until(dict(told.invocation_metadata()).get(TIMEOUT_MS))

    def invocation_metadata(self) -> Any:
        return self._told.invocation_metadata()

    def peer(self) -> str:
        """Empty: the caller speaks to Ray's proxy, and a replica does not learn its address."""
        return ""

    def trailing_metadata(self) -> Any:
        return tuple((name, value) for name, value in self._told.trailing_metadata())

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        self._told.set_trailing_metadata(list(metadata))

    def time_remaining(self) -> float | None:
        """Seconds until an answer must leave to meet the caller's deadline; None if it named none."""
        return None if self._until is None else max(0.0, self._until - WAY_BACK_S - time.monotonic())

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Raises Aborted."""
        self._told.set_code(code)
        self._told.set_details(details)
        if trailing := list(trailing_metadata):
            self.set_trailing_metadata(trailing)
        raise Aborted

    async def write(self, message: Any) -> None:
        assert self._write is not None, "this context is only read"
        await self._write(message)


def _until(timeout_ms: str | None) -> float | None:
    """The instant of time.monotonic() that a caller means; what is no time is no deadline, as gRPC itself has it."""
    try:
        wanted = math.nan if timeout_ms is None else float(timeout_ms)
    except ValueError:
        return None
    return time.monotonic() + wanted / 1e3 if 0 < wanted < math.inf else None
