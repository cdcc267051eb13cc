"""Goal cache by content: each goal image is embedded once per model. The engine does the encoding."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from server.engine.messages import Floats
from server.errors import Reason, ServiceError, invalid
from server.values.calls import Array


@dataclass(frozen=True)
class Goal:
    """A latent to reach."""

    goal_id: str
    model: str
    latent: Floats  # [*latent]
    create_time_ns: int


def content_id(
    content: Array, model: str, weights_digest: str, crop_policy: str, measured: Floats | None = None
) -> str:
    """The id of an image (uint8) or a latent (float32) as a goal of one model: the hash of everything that matters.

    `measured` is what the robot should measure there.
    """
    digest = hashlib.sha256()
    for part in (model, weights_digest, crop_policy, content.dtype.str, str(content.shape)):
        digest.update(part.encode() + b"\0")
    digest.update(content.tobytes())
    if measured is not None:
        digest.update(b"measured\0" + measured.tobytes())
    return digest.hexdigest()[:32]


class GoalCache:
    """The goals used last, within a number of bytes; one goal is always kept, however large."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._goals: OrderedDict[str, Goal] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._goals)

    @property
    def bytes(self) -> int:
        """Bytes of latents held."""
        return self._bytes

    def find(self, goal_id: str) -> Goal | None:
        """A goal, now the most recently used one; None if it is not held."""
        goal = self._goals.get(goal_id)
        if goal is not None:
            self._goals.move_to_end(goal_id)
        return goal

    def get(self, goal_id: str) -> Goal:
        """Like `find`, but raises UNKNOWN_GOAL."""
        goal = self.find(goal_id)
        if goal is None:
            raise _unknown(goal_id)
        return goal

    def toward(self, goal_id: str, model: str, field: str = "goal_id") -> Goal:
        """The goal a call to this model names. Raises GOAL_REQUIRED, UNKNOWN_GOAL, and INVALID_FIELD for another's."""
        if not goal_id:
            raise invalid(field, "must name a goal, here or in the session", "nothing", Reason.GOAL_REQUIRED)
        goal = self.find(goal_id)
        if goal is None:
            raise _unknown(goal_id, field)
        if goal.model != model:
            raise invalid(field, f"must name a goal of model {model}", f"one of {goal.model}")
        return goal

    def put(self, goal: Goal) -> None:
        """Hold a goal, and let go of those unused for longest where it takes too much room."""
        replaced = self._goals.pop(goal.goal_id, None)
        self._bytes += goal.latent.nbytes - (replaced.latent.nbytes if replaced is not None else 0)
        self._goals[goal.goal_id] = goal
        while self._bytes > self._max_bytes and len(self._goals) > 1:
            _, oldest = self._goals.popitem(last=False)
            self._bytes -= oldest.latent.nbytes

    def delete(self, goal_id: str) -> None:
        """Let go of a goal. Raises UNKNOWN_GOAL."""
        goal = self._goals.pop(goal_id, None)
        if goal is None:
            raise _unknown(goal_id)
        self._bytes -= goal.latent.nbytes


def _unknown(goal_id: str, field: str = "goal_id") -> ServiceError:
    shown = goal_id[:40]
    rule = "must name a goal that was created and is still cached"
    return ServiceError(Reason.UNKNOWN_GOAL, f"{field} {rule}, got {shown}", field=field, rule=rule, value=shown)
