"""Which replica a call goes to: a caller's key is hashed to one, and then keeps it for as long as that replica lives.

Ray's own router by hash moves keys whenever replicas come or go. A session lives in one replica, so here only the keys
of a replica that is gone move.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

KEPT_KEYS = 100_000


class StickyRouter(ConsistentHashRouter):
    """Ray asks each caller's router; this one is asked for every call through one proxy."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._homes: OrderedDict[str, Any] = OrderedDict()  # replica ids by key, the longest unused first

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """ProcessGroup of replicas to try. One alone for a caller with a key: there is no second best for a session."""
        key = pending_request.metadata.session_id if pending_request is not None else ""
        home = self._replicas.get(self._homes.get(key)) if key else None
        if home is None:
            group: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
            if not key or not group:
                return group
            home = group[0][0]
        pending_request.routing_context.should_backoff = True
        self._homes[key] = home.replica_id
        self._homes.move_to_end(key)
        while len(self._homes) > KEPT_KEYS:
            self._homes.popitem(last=False)
        return [[home]]
