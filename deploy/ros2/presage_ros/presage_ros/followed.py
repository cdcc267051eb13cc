"""The plan that a robot follows, and its position in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import presage

SERVICE_REMEMBERS = 16  # plans of a session that an observation may count its actions from


@dataclass
class Followed:
    """The plan that went out last. Times are of the bridge's clock."""

    plan: presage.ControlPlan
    seen_at: float  # when its image came in
    fresh_until: float
    rate_hz: float
    stopped_after_s: float | None = None  # how far into it, once it was stopped

    def progress(self, now: float) -> tuple[int, int]:
        """Actions executed by now, and those that will be while the next plan is made."""
        length = len(self.plan.plan.actions)
        if self.stopped_after_s is not None:
            return min(length, int(self.stopped_after_s * self.rate_hz)), 0
        executed = min(length, int((now - self.seen_at) * self.rate_hz))
        meanwhile = int(np.ceil(self.plan.round_trip_s * self.rate_hz))
        return executed, min(length - executed, meanwhile)

    def forgotten(self, newest: presage.ControlPlan | None) -> bool:
        """Whether so many plans were made since, up to `newest`, that the service may not know this one any more."""
        if newest is None:
            return False
        since = newest.plan.observation_sequence - self.plan.plan.observation_sequence
        return since >= SERVICE_REMEMBERS // 2  # others are on their way
