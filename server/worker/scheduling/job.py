"""Work item that a background job yields before each step, for cancellation and time prediction."""

from __future__ import annotations

from collections.abc import Generator, Hashable
from dataclasses import dataclass

from server.engine.messages import Result


@dataclass(frozen=True)
class WorkItem:
    """A piece of work to come: what kind, and how much of it."""

    kind: Hashable
    count: int


BackgroundJob = Generator[WorkItem, None, Result]
