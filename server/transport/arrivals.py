"""What callers send, piece by piece, with an end to waiting: nobody holds a place by saying nothing, or next to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from server.errors import Reason, ServiceError, invalid

Piece = TypeVar("Piece")
_Result = TypeVar("_Result")


class TimeIsUpError(Exception):
    """What was waited for did not come within its time."""


async def within(seconds: float, work: Awaitable[_Result]) -> _Result:
    """What the work gives. Raises TimeIsUpError. As wait_for, without a task of its own: 2 us in place of 60."""
    task, is_over = asyncio.current_task(), False
    assert task is not None

    def end() -> None:
        nonlocal is_over
        is_over = True
        task.cancel()

    alarm = asyncio.get_running_loop().call_later(max(0.0, seconds), end)
    try:
        return await work
    except asyncio.CancelledError:
        if not is_over:
            raise
        if hasattr(task, "uncancel"):  # Python 3.11
            task.uncancel()
        raise TimeIsUpError from None
    finally:
        alarm.cancel()


@dataclass
class Patience:
    """How long is waited for what one caller sends. `named` is the field at fault where it is over."""

    named: str
    idle_s: float  # for the next piece, and the length of time that the rate is looked at over
    whole_s: float = float("inf")  # for all of it
    rate: float = 0.0  # least bytes per second
    began: float = field(default_factory=time.monotonic)
    _since: float = 0.0
    _bytes: int = 0  # since then

    async def wait(self, piece: Awaitable[_Result]) -> _Result:
        """The next piece. Raises DEADLINE."""
        left_s = self.began + self.whole_s - time.monotonic()
        try:
            return await within(min(self.idle_s, left_s), piece)
        except TimeIsUpError:
            if left_s < self.idle_s:
                raise self._over(f"must arrive within {self.whole_s:g} s", "a part") from None
            raise self._over(f"must go on arriving at least every {self.idle_s:g} s", "nothing") from None

    def took(self, size: int) -> None:
        """Note what came. Raises DEADLINE where it comes too slowly."""
        now = time.monotonic()
        self._since = self._since or self.began
        self._bytes += size
        if now - self._since < self.idle_s:
            return
        rate = self._bytes / (now - self._since)
        self._since, self._bytes = now, 0
        if rate < self.rate:
            raise self._over(f"must arrive with at least {self.rate:g} bytes per second", f"{rate:.1f}")

    def _over(self, rule: str, got: str) -> ServiceError:
        return invalid(self.named, rule, got, Reason.DEADLINE)


async def timely(
    pieces: AsyncIterator[Piece], patience: Patience, size: Callable[[Piece], int] = lambda piece: 0
) -> AsyncGenerator[Piece, None]:
    """`pieces` as they come. Raises DEADLINE where the patience is over."""
    while True:
        try:
            piece = await patience.wait(pieces.__anext__())
        except StopAsyncIteration:
            return
        patience.took(size(piece))
        yield piece


async def conversation(messages: AsyncIterator[Piece], first_s: float, idle_s: float) -> AsyncGenerator[Piece, None]:
    """Messages of a stream that lasts: the first is waited for `first_s`, every other `idle_s`. Raises DEADLINE."""
    patience = Patience("message", first_s)
    while True:
        try:
            message = await patience.wait(messages.__anext__())
        except StopAsyncIteration:
            return
        yield message
        patience = Patience("message", idle_s)
