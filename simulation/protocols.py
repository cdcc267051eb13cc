"""Evaluation protocols by name, and how actions of published models are given to the robots here.

A protocol says how far ahead goals are, how long a try may last, how much of a plan is executed, and which of the rules
in ``simulation.rules`` its success rate is about. ``lewm`` is how LeWM was published (arXiv 2603.19312); ``moderate``
and ``strict`` are the CLEAR-LeWM evaluation's. Pairs are those of the manifests here, so rates do not compare with the
published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from presage.user_error import UserError

from simulation.manifest import Pair
from simulation.robots import pusht
from simulation.rules import Rule, rules


class ProtocolError(UserError, ValueError):
    """A protocol or an action that a task does not know; the message says which it does."""


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation. ``rule`` is "" for the task's own, which counts the first hit."""

    name: str
    rule: str
    execute_blocks: int  # model steps of a plan that are executed before the next
    starts_at_rest: bool  # hidden velocities of the start are zeroed
    offset: int = 25
    budget_steps: int = 50

    def success_rule(self, task: str) -> Rule | None:
        """The rule that the rate is about; None for the task's own. ProtocolError for a task without such a rule."""
        if not self.rule:
            return None
        known = {rule.name: rule for rule in rules(task)}
        if self.rule not in known:
            held = ", ".join(["lewm", *known])
            raise ProtocolError(f"protocol: {task} must be judged by one of {held}, got {self.name!r}")
        return known[self.rule]

    def prepared(self, task: str, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs as this protocol starts them; those that are at their goal already by its rule are left out."""
        rule = self.success_rule(task)
        started = [replace(pair, start_state=at_rest(task, pair.start_state)) for pair in pairs]
        started = started if self.starts_at_rest else list(pairs)
        return [
            pair for pair in started if rule is None or not rule.holds(pair.start_state[None], pair.goal_state[None])[0]
        ]


PROTOCOLS = {
    "lewm": Protocol("lewm", "", execute_blocks=5, starts_at_rest=False),
    "moderate": Protocol("moderate", "moderate", execute_blocks=1, starts_at_rest=True),
    "strict": Protocol("strict", "strict", execute_blocks=1, starts_at_rest=True),
}


def protocol(name: str) -> Protocol:
    """The protocol of this name; ProtocolError for another."""
    if name not in PROTOCOLS:
        raise ProtocolError(f"protocol: must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]


_VELOCITIES = {"pusht": slice(5, 7), "reacher": slice(2, 4)}


def at_rest(task: str, state: NDArray[np.float64]) -> NDArray[np.float64]:
    """The state with its robot at rest. ProtocolError for a task whose velocities are not known here."""
    if task in ("arm", "arm-push", "tworoom"):
        return state.copy()  # has no velocities
    if task not in _VELOCITIES:
        raise ProtocolError(f"protocol: starts of {task} cannot be put at rest; must be lewm")
    still = state.copy()
    still[_VELOCITIES[task]] = 0.0
    return still


def action_scale(task: str, own: Sequence[str], names: Sequence[str], units: Sequence[str], model: str) -> float:
    """What a model's actions are multiplied by to be the robot's (``own`` are the robot's names).

    1 where the names are the same. Published Push-T models act in displacements of the pusher as shares of 100 px,
    called ``x`` and ``y`` and without a unit. ProtocolError, in one line, for all others.
    """
    if tuple(names) == tuple(own):
        return 1.0
    if task == "pusht" and tuple(names) == ("x", "y") and set(units) == {"1"}:
        return pusht.MAX_DISPLACEMENT
    acts, wanted = ", ".join(names) or "no actions", ", ".join(own)
    raise ProtocolError(f"model {model} acts in {acts}, but robot {task} in {wanted}")
