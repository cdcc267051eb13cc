"""Checks whether the machine's clock is plausible and synchronized.

Nothing but certificates and the times in logs depends on it: plans and deadlines are timed by a monotonic clock, and
robots' capture stamps are echoed as they are.
"""

from __future__ import annotations

import ctypes
import sys
import time

WRITTEN_S = 1_767_225_600  # 2026-01-01: no clock that is right can show less
_TIME_ERROR = 5  # what adjtimex(2) answers while nothing synchronizes the clock


def fault(now_s: float, synchronized: bool | None) -> str | None:
    """What is wrong with a clock that says `now_s` (seconds since 1970), if it can be told.

    Boards without a battery start in 1970 until NTP has set them. `synchronized`: as `is_synchronized` says.
    """
    if now_s < WRITTEN_S:
        shown = time.strftime("%Y-%m-%d", time.gmtime(now_s))
        return f"it says {shown}, before this release was written: is NTP running? Certificates may be refused"
    if synchronized is False:
        return "nothing synchronizes it: is NTP running? Times in logs may be off, plans are not"
    return None


def is_synchronized() -> bool | None:
    """Whether NTP or something like it keeps the clock, as the kernel knows it; None where it cannot be asked."""
    if sys.platform != "linux":
        return None
    asked = ctypes.create_string_buffer(1024)  # a struct timex of zeros, which sets nothing, with room to spare
    answer = ctypes.CDLL(None).adjtimex(asked)
    return None if answer < 0 else answer != _TIME_ERROR
