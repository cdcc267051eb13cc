"""Replies over gRPC, each within a time: whoever takes nothing of one loses the connection.

A caller whose windows are of zero bytes, or grow by a byte at a time, takes no reply, and holds it in the server. gRPC
ends no stream of which a message is still to be sent: a status would wait behind it. So the connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from server.errors import Reason, invalid
from server.transport.arrivals import TimeIsUpError, within
from server.transport.gateway import LARGE_REPLY_BYTES, Gateway
from server.values.caller import calling


@dataclass(frozen=True)
class Replies:
    """Those of one call. `stalled_s`: seconds until one that nobody takes is given up; None: as the limits say."""

    gateway: Gateway
    context: Any
    serialize: Callable[[Any], bytes]
    stalled_s: float | None = None

    async def write(self, reply: Any) -> None:
        """Send one. Raises DEADLINE once the caller has taken too long, and OVERLOADED beyond its share of bytes."""
        await self.send(self.serialize(reply))

    async def send(self, content: bytes) -> None:
        """As `write`, for a reply that is bytes already."""
        limits, size = self.gateway.limits, len(content)
        stalled_s = limits.stalled_s if self.stalled_s is None else self.stalled_s
        longest_s = stalled_s + size / limits.reply_bytes_per_s
        is_large = size >= LARGE_REPLY_BYTES  # and there are two of it, here and inside gRPC
        held = self.gateway.shares.holding("bytes", calling().name, 2 * size) if is_large else nullcontext()
        try:
            with held:
                await within(longest_s, self.context.write(content))
        except TimeIsUpError:
            if self.gateway.relay is not None:
                self.gateway.relay.end(self.context.peer())
            rule = f"must be taken within {longest_s:.3g} s"
            raise invalid("reply", rule, f"a part of {size} bytes", Reason.DEADLINE) from None
