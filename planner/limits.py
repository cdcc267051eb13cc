"""Limits on actions as tensors, and the projection into them. `constraints.py` derives them from an action space.

Not a penalty: costs live in `cost.py`, and no projected action is ever outside, not by one float32 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from planner.transfer import to_device


@dataclass(frozen=True, eq=False)
class Dwell:
    """How long values are kept, and where the plan takes over (with axes `batch 1` in front for a batch of searches).

    In every dimension, a value once taken is kept for at least `least` actions before it changes: runs of equal values
    are that long, but for the last one, which the plan's end cuts off. A run that began before the plan counts what was
    executed of it.
    """

    least: Float[Tensor, "*batch action"]  # 1 where values may change with every action
    held: Float[Tensor, "*batch action"]  # actions for which `previous` has been kept; infinite without one
    previous: Float[Tensor, "*batch action"]  # the last action executed; NaN, which equals nothing, without one


@dataclass(frozen=True, eq=False)
class Limits:
    """The box, ball, slew limit and dwell of one search, or of a batch of them (then with axes `batch 1` in front)."""

    low: Float[Tensor, "*batch time action"]
    high: Float[Tensor, "*batch time action"]
    slew: Float[Tensor, "*batch action"] | None
    l1_radius: Float[Tensor, "*batch 1"] | None
    l2_radius: Float[Tensor, "*batch 1"] | None
    counted: Float[Tensor, "*batch action"] | None  # 1 where the ball counts a dimension, 0 elsewhere; None: all
    dwell: Dwell | None


def stack_limits(limits: Sequence[Limits]) -> Limits:
    """Limits of several searches as one batch: projects actions [batch, samples, time, action]."""
    dwells = [each.dwell for each in limits]
    least = _stack_optional([None if each is None else each.least for each in dwells], absent=1.0)
    held = _stack_optional([None if each is None else each.held for each in dwells], absent=math.inf)
    previous = _stack_optional([None if each is None else each.previous for each in dwells], absent=math.nan)
    return Limits(
        low=torch.stack([each.low for each in limits]).unsqueeze(1),
        high=torch.stack([each.high for each in limits]).unsqueeze(1),
        slew=_stack_optional([each.slew for each in limits], absent=math.inf),
        l1_radius=_stack_optional([each.l1_radius for each in limits], absent=math.inf),
        l2_radius=_stack_optional([each.l2_radius for each in limits], absent=math.inf),
        counted=_stack_optional([each.counted for each in limits], absent=1.0),
        dwell=None if least is None or held is None or previous is None else Dwell(least, held, previous),
    )


def without_bounds(limits: Limits) -> Limits:
    """Limits that leave free what could move at all, and hold what is frozen or committed."""
    free = limits.low < limits.high
    return Limits(
        low=limits.low.masked_fill(free, -torch.inf),
        high=limits.high.masked_fill(free, torch.inf),
        slew=None,
        l1_radius=None,
        l2_radius=None,
        counted=None,
        dwell=None,
    )


def on_device(limits: Limits, device: torch.device | str) -> Limits:
    """The same limits, on a device."""
    dwell = limits.dwell
    return Limits(
        low=to_device(limits.low, device),
        high=to_device(limits.high, device),
        slew=None if limits.slew is None else to_device(limits.slew, device),
        l1_radius=None if limits.l1_radius is None else to_device(limits.l1_radius, device),
        l2_radius=None if limits.l2_radius is None else to_device(limits.l2_radius, device),
        counted=None if limits.counted is None else to_device(limits.counted, device),
        dwell=None
        if dwell is None
        else Dwell(to_device(dwell.least, device), to_device(dwell.held, device), to_device(dwell.previous, device)),
    )


def project_within(limits: Limits, actions: Float[Tensor, "*batch time action"]) -> Float[Tensor, "*batch time action"]:
    """Move every action into the box, then along the line to the box's point of least norm until the ball holds it.

    With a slew limit or a dwell, time is walked in order: each action's box also lies within reach of the action before
    it, and is that action's own value where that has to be kept. Idempotent to the last bit: what obeys the limits is
    returned unchanged.
    """
    radii = [(order, radius) for order, radius in ((1, limits.l1_radius), (2, limits.l2_radius)) if radius is not None]
    if limits.slew is None and limits.dwell is None:
        actions = actions.clamp(limits.low, limits.high)
        for order, radius in radii:
            counted = None if limits.counted is None else limits.counted.unsqueeze(-2)
            actions = _within_ball(actions, limits.low, limits.high, radius, order, counted)
        return actions
    lows, highs = limits.low.unbind(-2), limits.high.unbind(-2)
    kept: list[Tensor] = []
    before = None if limits.dwell is None else limits.dwell.previous
    held = None if limits.dwell is None else limits.dwell.held
    for wanted, low, high in zip(actions.unbind(-2), lows, highs, strict=True):
        near_low, near_high = low, high
        if limits.slew is not None and kept:
            near_low = torch.maximum(low, kept[-1] - limits.slew)
            near_high = torch.minimum(high, kept[-1] + limits.slew)
        holding = None
        if limits.dwell is not None and before is not None and held is not None:
            holding = held < limits.dwell.least
            near_low, near_high = torch.where(holding, before, near_low), torch.where(holding, before, near_high)
        action = wanted.clamp(near_low, near_high)
        for order, radius in radii:
            action = _within_ball(action, near_low, near_high, radius[..., 0], order, limits.counted)
        # Reach, kept value and committed action may disagree in the last bit: the committed action wins.
        kept.append(action.clamp(low, high))
        if before is not None and held is not None:
            before, held = kept[-1], torch.where(kept[-1] == before, held, 0.0) + 1
    return torch.stack(kept, dim=-2)


def tied(dwell: Dwell, actions: Float[Tensor, "*batch time action"]) -> Float[Tensor, "*batch time action"]:
    """Actions that obey a dwell, unchanged; but the slope of a value that is kept goes to the action that began it."""
    before, held = dwell.previous, dwell.held
    kept: list[Tensor] = []
    for action in actions.unbind(-2):
        kept.append(torch.where(held < dwell.least, before, action))
        before, held = kept[-1], torch.where(kept[-1] == before, held, 0.0) + 1
    return torch.stack(kept, dim=-2)


def _within_ball(
    actions: Tensor, low: Tensor, high: Tensor, radius: Tensor, order: int, counted: Tensor | None
) -> Tensor:
    """Pull actions, already inside the box, into the L1 or L2 ball without leaving the box."""
    # The ball is taken smaller by a few roundings of a norm, so that the true norm of a result never exceeds it, and
    # results are aimed a little further in than what is let through, so that a second projection changes nothing.
    margin = (actions.shape[-1] + 8) * torch.finfo(actions.dtype).eps
    inner, least = (
        actions,
        torch.zeros_like(actions).clamp(low, high),
    )  # the box's point of least norm, whatever the norm
    if counted is not None:
        inner, least = actions * counted, least * counted
    norms = torch.linalg.vector_norm(inner, ord=order, dim=-1)
    inside = (norms <= radius * (1 - margin)).unsqueeze(-1)
    target = radius * (1 - 2 * margin)
    outward = inner - least
    least_norm = torch.linalg.vector_norm(least, ord=order, dim=-1)
    room = (target - least_norm).clamp(min=0)
    if order == 1:  # every coordinate of `outward` has the sign of `least`, so norms add along the line
        share = room / (norms - least_norm)
    else:  # |least + share * outward| = target, solved without cancellation
        along = (least * outward).sum(-1)
        missing = room * (target + least_norm)
        share = missing / (along + (along.square() + outward.square().sum(-1) * missing).sqrt())
    share = share.nan_to_num(nan=0.0, posinf=1.0).clamp(0, 1).unsqueeze(-1)
    pulled = least + share * outward
    if counted is not None:
        pulled = torch.where(counted > 0, pulled, actions)
    return torch.where(inside, actions, pulled.clamp(low, high))


def _stack_optional(values: Sequence[Tensor | None], absent: float) -> Tensor | None:
    """Stack what some of a batch may lack; `absent` stands for no limit."""
    present = next((value for value in values if value is not None), None)
    if present is None:
        return None
    filled = [torch.full_like(present, absent) if value is None else value for value in values]
    return torch.stack(filled).unsqueeze(1)
