"""Who a call comes from: whose share it uses, whose goals and sessions it may name, and what it may ask for.

The caller of the work in progress is a context variable, set by the transports; work that no transport began is
everyone's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from server.errors import Reason, ServiceError

Role = Literal["robot", "viewer", "admin"]
ROLES: tuple[Role, ...] = ("robot", "viewer", "admin")


@dataclass(frozen=True)
class Caller:
    """One party. Callers with keys of one name are the same party; without keys, all are one, but for their shares."""

    name: str = ""  # whose share a call uses: a key's, or an address
    owner: str = ""  # whose goals, sessions and records it makes; empty where there are no keys
    role: Role = "robot"
    weight: float = 1.0  # of its turns in an engine, where several callers want it

    def may_see(self, owner: str) -> bool:
        """Whether it may read what belongs to this owner."""
        return self.may_change(owner) or self.role == "viewer"

    def may_change(self, owner: str) -> bool:
        """Whether it may use, change and delete what belongs to this owner."""
        return owner == self.owner or self.role == "admin"


EVERYONE = Caller()
_calling: ContextVar[Caller] = ContextVar("presage_caller", default=EVERYONE)


def calling() -> Caller:
    """The caller that this task works for."""
    return _calling.get()


@contextmanager
def working_for(caller: Caller) -> Iterator[None]:
    """What is done inside is done for this caller, tasks begun inside too."""
    token = _calling.set(caller)
    try:
        yield
    finally:
        _calling.reset(token)


def require_robot() -> None:
    """Raises FORBIDDEN for a caller that may only look."""
    if calling().role == "viewer":
        rule = "must have the role robot or admin for this call"
        raise ServiceError(Reason.FORBIDDEN, f"the API key {rule}", field="authorization", rule=rule, value="viewer")
