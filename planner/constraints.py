"""What an action may be, held exactly: bounds, frozen dimensions, a norm cap, a slew limit, actions already under way.

`Limits` is an action space made ready for one search (tensors, and a box per action); `project` moves actions into it.
Not a penalty: costs live in `cost.py`, and no projected action is ever outside, not by one float32 rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from planner.types import ActionSpace, PlanningError

COMMITTED_TOLERANCE = 1e-5  # of a dimension's range: how far rounding may have carried an action already under way


@dataclass(frozen=True, eq=False)
class Limits:
    """The box, ball and slew limit of one search, or of a batch of them (then with axes `batch 1` in front)."""

    low: Float[Tensor, "*batch time action"]
    high: Float[Tensor, "*batch time action"]
    slew: Float[Tensor, "*batch action"] | None
    l1_radius: Float[Tensor, "*batch 1"] | None
    l2_radius: Float[Tensor, "*batch 1"] | None


def limits_of(
    space: ActionSpace,
    time: int,
    previous: Float[Tensor, " action"] | None = None,
    committed: Float[Tensor, "steps action"] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Limits:
    """Make a space ready for plans of `time` actions, the first of which follows `previous` (the slew limit's start).

    The first actions equal `committed`. Raises PlanningError where no action could obey everything.
    """
    low, high = _box(space, dtype)
    slew = _slew(space, dtype)
    on_host = Limits(
        low=low.repeat(time, 1),
        high=high.repeat(time, 1),
        slew=slew,
        l1_radius=_radius(space, 1, dtype),
        l2_radius=_radius(space, 2, dtype),
    )
    if previous is not None and slew is not None:
        _check_vector("previous_action", previous, (space.dimensions,))
        _narrow_first(space, on_host, previous.detach().to("cpu", dtype))
    if committed is not None and committed.shape[0] > 0:
        _commit(space, on_host, low, high, committed.detach().to("cpu", dtype))
    return Limits(
        low=on_host.low.to(device),
        high=on_host.high.to(device),
        slew=None if on_host.slew is None else on_host.slew.to(device),
        l1_radius=None if on_host.l1_radius is None else on_host.l1_radius.to(device),
        l2_radius=None if on_host.l2_radius is None else on_host.l2_radius.to(device),
    )


def stack_limits(limits: Sequence[Limits]) -> Limits:
    """Limits of several searches as one batch: projects actions [batch, samples, time, action]."""
    return Limits(
        low=torch.stack([each.low for each in limits]).unsqueeze(1),
        high=torch.stack([each.high for each in limits]).unsqueeze(1),
        slew=_stack_optional([each.slew for each in limits]),
        l1_radius=_stack_optional([each.l1_radius for each in limits]),
        l2_radius=_stack_optional([each.l2_radius for each in limits]),
    )


def project(
    space: ActionSpace,
    actions: Float[Tensor, "*batch time action"],
    previous: Float[Tensor, " action"] | None = None,
    committed: Float[Tensor, "steps action"] | None = None,
) -> Float[Tensor, "*batch time action"]:
    """Move actions (finite, robot units) into `space`; see `project_within`."""
    *_, time, dimensions = actions.shape
    if dimensions != space.dimensions:
        raise PlanningError("actions", f"must have {space.dimensions} entries each", dimensions)
    limits = limits_of(space, time, previous, committed, dtype=actions.dtype, device=actions.device)
    return project_within(limits, actions)


def project_within(limits: Limits, actions: Float[Tensor, "*batch time action"]) -> Float[Tensor, "*batch time action"]:
    """Move every action into the box, then along the line to the box's point of least norm until the ball holds it.

    With a slew limit, time is walked in order and each action's box also lies within reach of the action before it.
    Idempotent to the last bit: what obeys the limits is returned unchanged.
    """
    radii = [(order, radius) for order, radius in ((1, limits.l1_radius), (2, limits.l2_radius)) if radius is not None]
    if limits.slew is None:
        actions = actions.clamp(limits.low, limits.high)
        for order, radius in radii:
            actions = _within_ball(actions, limits.low, limits.high, radius, order)
        return actions
    lows, highs = limits.low.unbind(-2), limits.high.unbind(-2)
    kept: list[Tensor] = []
    for wanted, low, high in zip(actions.unbind(-2), lows, highs, strict=True):
        near_low, near_high = low, high
        if kept:
            near_low = torch.maximum(low, kept[-1] - limits.slew)
            near_high = torch.minimum(high, kept[-1] + limits.slew)
        action = wanted.clamp(near_low, near_high)
        for order, radius in radii:
            action = _within_ball(action, near_low, near_high, radius[..., 0], order)
        # Reach and committed action may disagree in the last bit: the committed action wins.
        kept.append(action.clamp(low, high))
    return torch.stack(kept, dim=-2)


def _within_ball(actions: Tensor, low: Tensor, high: Tensor, radius: Tensor, order: int) -> Tensor:
    """Pull actions, already inside the box, into the L1 or L2 ball without leaving the box."""
    # The ball is taken smaller by a few roundings of a norm, so that the true norm of a result never exceeds it, and
    # results are aimed a little further in than what is let through, so that a second projection changes nothing.
    margin = (actions.shape[-1] + 8) * torch.finfo(actions.dtype).eps
    norms = torch.linalg.vector_norm(actions, ord=order, dim=-1)
    inside = (norms <= radius * (1 - margin)).unsqueeze(-1)
    target = radius * (1 - 2 * margin)
    least = torch.zeros_like(actions).clamp(low, high)  # the box's point of least norm, whatever the norm
    outward = actions - least
    least_norm = torch.linalg.vector_norm(least, ord=order, dim=-1)
    room = (target - least_norm).clamp(min=0)
    if order == 1:  # every coordinate of `outward` has the sign of `least`, so norms add along the line
        share = room / (norms - least_norm)
    else:  # |least + share * outward| = target, solved without cancellation
        along = (least * outward).sum(-1)
        missing = room * (target + least_norm)
        share = missing / (along + (along.square() + outward.square().sum(-1) * missing).sqrt())
    share = share.nan_to_num(nan=0.0, posinf=1.0).clamp(0, 1).unsqueeze(-1)
    return torch.where(inside, actions, (least + share * outward).clamp(low, high))


def _box(space: ActionSpace, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Bounds rounded inwards to `dtype`, frozen dimensions as boxes of one point."""
    low, high = _rounded_up(space.low, dtype), -_rounded_up(tuple(-edge for edge in space.high), dtype)
    for index, name in enumerate(space.names):
        if low[index] > high[index]:
            raise PlanningError(f"action_space.{name}", f"must span at least one {dtype}", (low, high))
    if space.frozen is not None:
        for index, held in enumerate(space.frozen):
            if held is not None:
                low[index] = high[index] = torch.tensor(held, dtype=dtype).clamp(low[index], high[index])
    return low, high


def _rounded_up(values: Sequence[float], dtype: torch.dtype) -> Tensor:
    exact = torch.tensor(values, dtype=torch.float64)
    rounded = exact.to(dtype)
    return torch.where(rounded.double() < exact, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)), rounded)


def _slew(space: ActionSpace, dtype: torch.dtype) -> Tensor | None:
    """The slew limit less one rounding at the bounds' size, so that `previous + slew` never rounds past it."""
    if space.slew is None:
        return None
    largest = torch.tensor([max(abs(a), abs(b)) for a, b in zip(space.low, space.high, strict=True)], dtype=dtype)
    exact = torch.tensor(space.slew, dtype=torch.float64)
    rounding = 2 * torch.finfo(dtype).eps * (largest.double() + exact.clamp(max=1e30))
    slew = exact - rounding
    for name, limit, safe in zip(space.names, space.slew, slew.tolist(), strict=True):
        if safe <= 0:
            raise PlanningError(
                f"action_space.slew.{name}", f"must exceed the rounding of {dtype} at its bounds", limit
            )
    return slew.to(dtype)


def _radius(space: ActionSpace, order: int, dtype: torch.dtype) -> Tensor | None:
    if space.max_norm is None or space.norm_order != order:
        return None
    return torch.tensor([space.max_norm], dtype=dtype)


def _narrow_first(space: ActionSpace, limits: Limits, previous: Tensor) -> None:
    """Bring the first action's box within reach of the last action executed."""
    assert limits.slew is not None
    low = torch.maximum(limits.low[0], previous - limits.slew)
    high = torch.minimum(limits.high[0], previous + limits.slew)
    for index, name in enumerate(space.names):
        if low[index] > high[index]:
            rule = f"must be within one slew step of [{limits.low[0, index]:g}, {limits.high[0, index]:g}]"
            raise PlanningError(f"previous_action.{name}", rule, previous[index].item())
    least = torch.zeros_like(low).clamp(low, high)
    if space.max_norm is not None and torch.linalg.vector_norm(least, ord=space.norm_order) > space.max_norm:
        raise PlanningError(
            "previous_action", f"must reach norm {space.max_norm:g} in one slew step", previous.tolist()
        )
    limits.low[0], limits.high[0] = low, high


def _commit(space: ActionSpace, limits: Limits, low: Tensor, high: Tensor, committed: Tensor) -> None:
    """Hold the first actions where the robot is already executing them."""
    time, dimensions = limits.low.shape
    if committed.ndim != 2 or committed.shape[0] > time or committed.shape[1] != dimensions:
        raise PlanningError("committed", f"must be [at most {time}, {dimensions}]", tuple(committed.shape))
    steps = committed.shape[0]
    _check_vector("committed", committed, (steps, dimensions))
    head = replace(limits, low=limits.low[:steps], high=limits.high[:steps])
    off = (project_within(head, committed) - committed).abs()
    scale = torch.tensor(space.high) - torch.tensor(space.low)
    wrong = (off > COMMITTED_TOLERANCE * scale).nonzero()
    if len(wrong):
        step, index = wrong[0].tolist()
        raise PlanningError(
            f"committed[{step}].{space.names[index]}", "must obey the action space", committed[step, index].item()
        )
    held = committed.clamp(low, high)  # itself, unless rounding has carried it out of its bounds
    limits.low[:steps] = held
    limits.high[:steps] = held


def _check_vector(field: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise PlanningError(field, f"must have shape {shape}", tuple(value.shape))
    if not bool(value.isfinite().all()):
        raise PlanningError(field, "must be finite", value.tolist())


def _stack_optional(values: Sequence[Tensor | None]) -> Tensor | None:
    """Stack what some of a batch may lack: an absent limit is an infinite one."""
    present = next((value for value in values if value is not None), None)
    if present is None:
        return None
    filled = [torch.full_like(present, torch.inf) if value is None else value for value in values]
    return torch.stack(filled).unsqueeze(1)
