"""Admission control: which calls an engine accepts, at what size, and which are refused at once.

The clock is an argument. An engine shares its time among all its searches, one iteration each in turn, so a call waits
for one pass over the searches in progress. The engine runs them; this module only predicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from server.engine.messages import Pace, SearchSize
from server.errors import Reason, ServiceError
from server.values.caller import EVERYONE, Caller

SHRINKAGES = (1, 2, 4)  # a search short of time gets a half or a quarter of its samples before it is refused
WANTED_ITERATIONS = 3  # with fewer, a smaller search makes better use of the same time
FEWEST_SAMPLES = 16  # no search is made smaller than this
PIECE_S = 0.05  # about as much of a call that is no plan is done for every pass over the searches
TRUST_AFTER = 16  # refusals in a row, after which one call is tried: what is never tried is never measured again


@dataclass(frozen=True)
class Ticket:
    """A call that was taken on. It must be given back."""

    number: int


@dataclass(frozen=True)
class PlanTicket(Ticket):
    """A plan that was taken on, and the search it gets."""

    size: SearchSize
    degraded: bool
    on_trust: bool  # taken on although no time is predicted for it


class AdmissionController:
    """What one engine has in hand, and what that means for the next call."""

    def __init__(self, limit: int) -> None:
        """At most `limit` calls of one caller are taken on at a time."""
        self._limit = limit
        self._paces: dict[str, Pace] = {}
        self._pass_s: dict[int, float] = {}  # by ticket: its share of one pass over all searches
        self._callers: dict[int, Caller] = {}  # by ticket
        self._plan_s = 0.0  # a moving mean of how long plans take
        self._numbers = 0
        self._late: dict[str, int] = {}  # by model: calls refused since one was answered, for want of time alone

    @property
    def in_hand(self) -> int:
        """Calls taken on and not given back."""
        return len(self._pass_s)

    @property
    def pass_s(self) -> float:
        """Predicted seconds of one iteration for every search in hand."""
        return math.fsum(self._pass_s.values())

    def pace(self, model: str) -> Pace:
        """What the engine measured of a model; nothing takes any time while nothing was."""
        return self._paces.get(model, Pace(0.0, 0.0))

    def learn(self, paces: Mapping[str, Pace]) -> None:
        """Take over what the engine measured, by model."""
        self._paces.update(paces)
        for model in paces:
            self._late.pop(model, None)

    def learn_late(self, model: str) -> None:
        """Take note of a plan that was refused, here or by the engine, for want of time."""
        self._late[model] = self._late.get(model, 0) + 1

    def learn_duration(self, seconds: float) -> None:
        """Take note of how long a plan took, from its admission to its end."""
        self._plan_s += (seconds - self._plan_s) / 8 if self._plan_s else seconds

    def admit(self, now: float, deadline: float | None, caller: Caller = EVERYONE, work_s: float = 0.0) -> Ticket:
        """Take on a call that is no plan, of `work_s` seconds at the least. Raises OVERLOADED and DEADLINE.

        Its work is done in pieces, one for every pass over the searches.
        """
        self._require_room(caller)
        if deadline is not None and now >= deadline:
            raise too_late("the deadline has passed")
        if deadline is not None and now + work_s >= deadline:
            raise too_late(f"the work takes at least {1e3 * work_s:.0f} ms")
        return Ticket(self._issue(min(work_s, PIECE_S), caller))

    def admit_plan(
        self, model: str, size: SearchSize, now: float, deadline: float | None, caller: Caller = EVERYONE
    ) -> PlanTicket:
        """Take on a caller's plan, smaller where time or room is short.

        `deadline` is when it must leave the engine. Raises OVERLOADED where there is no room, or where others are the
        reason that not even a small search would end in time; DEADLINE where it would not even alone.
        """
        own = self._require_room(caller)
        pace = self.pace(model)
        sizes = [shrunk(size, by) for by in SHRINKAGES]
        crowded = 0 if own < self._limit // 2 else 1 if own < self._limit * 3 // 4 else 2
        on_trust = deadline is not None and now < deadline and self._late.get(model, 0) >= TRUST_AFTER
        if on_trust:
            self._late[model], chosen = 0, sizes[-1]
        elif deadline is not None:
            chosen = self._in_time(pace, sizes[crowded:], deadline - now, caller)
        else:
            chosen = sizes[crowded]
        number = self._issue(_alone(pace, chosen), caller)
        return PlanTicket(number, chosen, chosen.samples < size.samples, on_trust)

    def give_back(self, ticket: Ticket) -> None:
        """The call has ended, however."""
        self._pass_s.pop(ticket.number, None)
        self._callers.pop(ticket.number, None)

    def _in_time(self, pace: Pace, sizes: Sequence[SearchSize], left_s: float, caller: Caller) -> SearchSize:
        """The largest of the sizes that has a few iterations in the time left, or else the smallest if it has one."""
        left_s -= pace.encode_s
        smallest, wanted = sizes[-1], min(WANTED_ITERATIONS, sizes[-1].iterations)
        for size in sizes:
            if self._passes(pace, size, wanted, caller) <= left_s:
                return size
        if self._passes(pace, smallest, 1, caller) <= left_s:
            return smallest
        if _alone(pace, smallest) <= left_s:
            raise self._overloaded("the wait would pass the deadline")
        raise too_late(f"one iteration takes about {1e3 * (pace.encode_s + _alone(pace, smallest)):.0f} ms")

    def _passes(self, pace: Pace, size: SearchSize, count: int, caller: Caller) -> float:
        """Seconds until a search has had so many iterations, beside what the caller and others have in hand.

        However much others have, they get no more of the engine than their weights say (`worker.fair_queue`).
        """
        mine = _alone(pace, size)
        weights: dict[str, float] = {}
        others = 0.0
        for number, of in self._callers.items():
            if of.name == caller.name:
                mine += self._pass_s[number]
            else:
                others += self._pass_s[number]
                weights[of.name] = of.weight
        return count * (mine + min(others, mine * math.fsum(weights.values()) / caller.weight))

    def _issue(self, pass_s: float, caller: Caller) -> int:
        self._numbers += 1
        self._pass_s[self._numbers], self._callers[self._numbers] = pass_s, caller
        return self._numbers

    def _require_room(self, caller: Caller) -> int:
        """How many calls the caller has in hand. Raises OVERLOADED where those are all it may have."""
        own = sum(of.name == caller.name for of in self._callers.values())
        if own >= self._limit:
            raise self._overloaded(f"{own} calls are in progress")
        return own

    def _overloaded(self, why: str) -> ServiceError:
        retry_after_s = min(max(self._plan_s / max(self.in_hand, 1), 0.05), 30.0)
        return ServiceError(Reason.OVERLOADED, f"the engine is overloaded: {why}", retry_after_s=retry_after_s)


def shrunk(size: SearchSize, by: int) -> SearchSize:
    """The same search with a part of its samples and of its elites."""
    samples = min(size.samples, max(size.samples // by, FEWEST_SAMPLES))
    elites = max(2, size.elites * samples // size.samples)
    return replace(size, samples=samples, elites=min(elites, samples))


def too_late(why: str) -> ServiceError:
    """The error for a call that cannot be answered by its deadline."""
    return ServiceError(Reason.DEADLINE, f"there is no time to plan by the deadline: {why}")


def _alone(pace: Pace, size: SearchSize) -> float:
    return size.steps_per_iteration * pace.step_s


class ReplyMargin:
    """How long before its deadline a plan must leave the engine, so that the reply is not late.

    Follows the slowest way back to the front of late, and takes it twice: the way on to the caller waits for its turns
    as the way back did. A slower one counts at once, and half of it is forgotten every few seconds. It never takes more
    than a third of the time there is: after one long pause of the machine, nobody would get a plan.
    """

    def __init__(self, least_s: float, half_life_s: float = 2.0) -> None:
        self._least_s, self._half_life_s = least_s, half_life_s
        self._slowest_s = self._seen_at = 0.0

    def seconds(self, now: float, deadline: float) -> float:
        return self._least_s + min(2 * self.slowest_s(now), max(0.0, deadline - now) / 3)

    def observe(self, way_back_s: float, now: float) -> None:
        """Learn from one plan, seconds from the end of its search to its reply; or from an alarm that came late."""
        self._slowest_s, self._seen_at = max(way_back_s, self.slowest_s(now)), now

    def slowest_s(self, now: float) -> float:
        """What is remembered of the slowest."""
        return self._slowest_s * math.exp((self._seen_at - now) * math.log(2) / self._half_life_s)
