"""Goal cache by content: each goal image is embedded once per model and owner. The engine does the encoding.

What one owner made, no other finds, deletes or pushes out. Sessions hold their goals: those are never pushed out, and
one that is deleted stays for the sessions that hold it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from server.engine.messages import Floats
from server.errors import Reason, ServiceError, invalid
from server.values.calls import Array

OWNERS = 4  # whose budgets fit into the cache at the same time, unless it is told otherwise


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


@dataclass(eq=False)
class _Kept:
    """A goal in the cache. One that is deleted is here only for its holders."""

    goal: Goal
    holders: set[str] = field(default_factory=set)
    deleted: bool = False


class GoalCache:
    """The goals used last, within a number of bytes for each owner and one for all; one of each owner is always kept.

    An owner that has no more than its equal part of all bytes loses nothing to others.
    """

    def __init__(self, max_bytes: int, total_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._total_bytes = OWNERS * max_bytes if total_bytes is None else total_bytes
        self._goals: OrderedDict[tuple[str, str], _Kept] = OrderedDict()  # by owner and id
        self._held: dict[str, set[tuple[str, str]]] = {}  # by holder
        self._bytes: Counter[str] = Counter()  # by owner

    def __len__(self) -> int:
        return len(self._goals)

    @property
    def bytes(self) -> int:
        """Bytes of latents held."""
        return self._bytes.total()

    def find(self, goal_id: str, owner: str = "", holder: str = "") -> Goal | None:
        """An owner's goal, now the most recently used one; None if it is not held, or deleted but for other holders."""
        kept = self._goals.get((owner, goal_id))
        if kept is None or (kept.deleted and holder not in kept.holders):
            return None
        self._goals.move_to_end((owner, goal_id))
        return kept.goal

    def get(self, goal_id: str, owner: str = "") -> Goal:
        """Like `find`, but raises UNKNOWN_GOAL."""
        goal = self.find(goal_id, owner)
        if goal is None:
            raise _unknown(goal_id)
        return goal

    def seen(self, goal_id: str) -> Goal:
        """A goal of whoever has it, for those who may look at everyone's. Raises UNKNOWN_GOAL."""
        for (_, known), kept in self._goals.items():
            if known == goal_id and not kept.deleted:
                return kept.goal
        raise _unknown(goal_id)

    def toward(self, goal_id: str, model: str, field: str = "goal_id", owner: str = "", holder: str = "") -> Goal:
        """The goal a call to this model names. Raises GOAL_REQUIRED, UNKNOWN_GOAL, and INVALID_FIELD for another's."""
        if not goal_id:
            raise invalid(field, "must name a goal, here or in the session", "nothing", Reason.GOAL_REQUIRED)
        goal = self.find(goal_id, owner, holder)
        if goal is None:
            raise _unknown(goal_id, field)
        if goal.model != model:
            raise invalid(field, f"must name a goal of model {model}", f"one of {goal.model}")
        return goal

    def put(self, goal: Goal, owner: str = "") -> None:
        """Keep a goal, and let go of those unused for longest where it takes too much room.

        Raises TOO_MANY_GOALS where the room is taken by goals that open sessions hold.
        """
        key, size = (owner, goal.goal_id), goal.latent.nbytes
        replaced = self._goals.get(key)
        if replaced is not None:  # the same content: what is held of it stays held
            self._goals[key] = _Kept(goal, replaced.holders)
            self._goals.move_to_end(key)
            self._bytes[owner] += size - replaced.goal.latent.nbytes
            return
        while self._bytes[owner] and self._bytes[owner] + size > self._max_bytes:
            self._push_out(owner, size)
        while self._bytes[owner] and self.bytes + size > self._total_bytes:
            self._push_out(self._most_beyond_its_part(owner, size), size)
        self._goals[key] = _Kept(goal)
        self._bytes[owner] += size

    def delete(self, goal_id: str, owner: str = "") -> None:
        """Let go of an owner's goal; sessions that hold it keep it. Raises UNKNOWN_GOAL."""
        kept = self._goals.get((owner, goal_id))
        if kept is None or kept.deleted:
            raise _unknown(goal_id)
        kept.deleted = True
        if not kept.holders:
            self._drop((owner, goal_id))

    def delete_seen(self, goal_id: str) -> None:
        """Let go of a goal, whosever it is. Raises UNKNOWN_GOAL."""
        self.seen(goal_id)
        for owner in [owner for (owner, known), kept in self._goals.items() if known == goal_id and not kept.deleted]:
            self.delete(goal_id, owner)

    def hold(self, holder: str, owner: str, goal_ids: Collection[str]) -> None:
        """From now on the holder holds these goals, as far as they are here, and no others."""
        wanted = {(owner, goal_id) for goal_id in goal_ids if (owner, goal_id) in self._goals}
        for key in wanted:
            self._goals[key].holders.add(holder)
        let_go = self._held.pop(holder, set()) - wanted
        if wanted:
            self._held[holder] = wanted
        for key in let_go:
            kept = self._goals[key]
            kept.holders.discard(holder)
            if kept.deleted and not kept.holders:
                self._drop(key)

    def release(self, holder: str) -> None:
        """The holder holds nothing any more."""
        self.hold(holder, "", ())

    def forget(self, owner: str) -> None:
        """Let go of all goals of an owner, whoever holds them."""
        for key in [key for key in self._goals if key[0] == owner]:
            for holder in self._goals[key].holders:
                self._held.get(holder, set()).discard(key)
            self._drop(key)

    def _most_beyond_its_part(self, maker: str, size: int) -> str:
        """The owner that could let go of a goal and has most, where that is more than its equal part of all bytes.

        The maker of a new goal of this size has it, as it were; it is asked to let go where nobody else is beyond.
        """
        wanted = Counter({**self._bytes, maker: self._bytes[maker] + size})
        part = self._total_bytes / len(wanted)
        could = {owner for (owner, _), kept in self._goals.items() if not kept.holders and wanted[owner] > part}
        return max(could, key=wanted.__getitem__, default=maker)

    def _push_out(self, owner: str, size: int) -> None:
        """Let go of the goal that the owner has not used for longest. Raises TOO_MANY_GOALS where all are held."""
        oldest = next((key for key, kept in self._goals.items() if key[0] == owner and not kept.holders), None)
        if oldest is None:
            rule = f"must leave open sessions' goals within {self._max_bytes} bytes; close a session or wait for one"
            raise ServiceError(
                Reason.TOO_MANY_GOALS, f"a goal of {size} bytes {rule}", field="goal", rule=rule, value=str(size)
            )
        self._drop(oldest)

    def _drop(self, key: tuple[str, str]) -> None:
        self._bytes[key[0]] -= self._goals.pop(key).goal.latent.nbytes
        if not self._bytes[key[0]]:
            del self._bytes[key[0]]


def _unknown(goal_id: str, field: str = "goal_id") -> ServiceError:
    shown = goal_id[:40]
    rule = "must name a goal that was created and is still cached"
    return ServiceError(Reason.UNKNOWN_GOAL, f"{field} {rule}, got {shown}", field=field, rule=rule, value=shown)
