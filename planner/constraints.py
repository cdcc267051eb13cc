"""Limits on actions: bounds, frozen dimensions, a norm cap, a slew limit, a dwell, actions already under way.

Makes an action space ready for one search, and refuses what no action could obey. The projection is in `limits.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from presage.limits import ActionLimits
from torch import Tensor

from planner.limits import Dwell, Limits, on_device, project_within
from planner.types import ActionSpace, PlanningError

COMMITTED_TOLERANCE = 1e-5  # of a dimension's range: how far rounding may have carried an action already under way


def limited(space: ActionSpace, limits: ActionLimits | None) -> ActionSpace:
    """The space with a package's or an operator's limits in place of its own, which every candidate keeps to then.

    Raises PlanningError for limits that no action could keep; `presage.limits.narrowed` refuses wider ones.
    """
    if limits is None:
        return space
    low, high = limits.low or space.low, limits.high or space.high
    rest = tuple(max(least, min(most, entry)) for least, most, entry in zip(low, high, space.rest, strict=True))
    return replace(
        space,
        low=low,
        high=high,
        slew=limits.slew or None,
        frozen=tuple(entry if name in limits.frozen else None for name, entry in zip(space.names, rest, strict=True)),
        max_norm=limits.max_norm,
        norm_order=1 if limits.norm_order == 1 else 2,
        norm_of=limits.norm_of or None,
        dwell=limits.dwell or None,
        stated_rest=rest,
        strict=True,
    )


def limits_of(
    space: ActionSpace,
    time: int,
    previous: Float[Tensor, " action"] | None = None,
    committed: Float[Tensor, "steps action"] | None = None,
    held: tuple[float, ...] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Limits:
    """Make a space ready for plans of `time` actions, the first of which follows `previous`.

    There the slew limit starts, and there, kept for `held` actions in each dimension, the dwell. The first actions
    equal `committed`. Raises PlanningError where no action could obey everything.
    """
    low, high = _box(space, dtype)
    limits = Limits(
        low=low.repeat(time, 1),
        high=high.repeat(time, 1),
        slew=_slew(space, dtype),
        l1_radius=_radius(space, 1, dtype),
        l2_radius=_radius(space, 2, dtype),
        counted=None
        if space.norm_of is None
        else torch.tensor([float(name in space.norm_of) for name in space.names], dtype=dtype),
        dwell=None,
    )
    if previous is not None and (space.slew is not None or space.dwell is not None):
        _check_vector("previous_action", previous, (space.dimensions,))
        previous = previous.detach().to("cpu", dtype)
    if space.dwell is not None:
        limits = replace(limits, dwell=_dwell(space, limits, previous, held))
    if previous is not None and (space.slew is not None or space.dwell is not None):
        _narrow_first(space, limits, previous)
    if committed is not None and committed.shape[0] > 0:
        _commit(space, limits, low, high, committed.detach().to("cpu", dtype))
    return on_device(limits, device)


def project(
    space: ActionSpace,
    actions: Float[Tensor, "*batch time action"],
    previous: Float[Tensor, " action"] | None = None,
    committed: Float[Tensor, "steps action"] | None = None,
    held: tuple[float, ...] | None = None,
) -> Float[Tensor, "*batch time action"]:
    """Move actions (finite, robot units) into `space`; see `limits_of` for where they begin."""
    *_, time, dimensions = actions.shape
    if dimensions != space.dimensions:
        raise PlanningError("actions", f"must have {space.dimensions} entries each", dimensions)
    limits = limits_of(space, time, previous, committed, held, dtype=actions.dtype, device=actions.device)
    return project_within(limits, actions)


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


def _dwell(space: ActionSpace, limits: Limits, previous: Tensor | None, held: tuple[float, ...] | None) -> Dwell:
    """Where the dwell stands when the plan takes over; keeps the boxes of the actions that have to keep its value."""
    assert space.dwell is not None
    low, high = limits.low, limits.high
    least = torch.tensor(space.dwell, dtype=low.dtype)
    if previous is None:
        return Dwell(least, torch.full_like(least, torch.inf), torch.full_like(least, torch.nan))
    if held is None:
        raise PlanningError("held", "must say how long previous_action was kept, for a space with dwell", held)
    if len(held) != space.dimensions or not all(count >= 1 for count in held):
        raise PlanningError("held", f"must be {space.dimensions} numbers >= 1", held)
    so_far = torch.tensor(held, dtype=low.dtype)
    for index, name in enumerate(space.names):
        if so_far[index] >= least[index]:
            continue
        value = previous[index].clamp(low[0, index], high[0, index])
        if (value - previous[index]).abs() > COMMITTED_TOLERANCE * (space.high[index] - space.low[index]):
            rule = f"must lie in [{low[0, index]:g}, {high[0, index]:g}], as it has to be kept"
            raise PlanningError(f"previous_action.{name}", rule, previous[index].item())
        previous[index] = value
        kept = int(least[index] - so_far[index])
        low[:kept, index] = high[:kept, index] = value
    return Dwell(least, so_far, previous)


def _narrow_first(space: ActionSpace, limits: Limits, previous: Tensor) -> None:
    """Bring the first action's box within reach of the last action executed."""
    low, high = limits.low[0], limits.high[0]
    if limits.slew is not None:
        low, high = torch.maximum(low, previous - limits.slew), torch.minimum(high, previous + limits.slew)
    for index, name in enumerate(space.names):
        if low[index] > high[index]:
            rule = f"must be within one slew step of [{limits.low[0, index]:g}, {limits.high[0, index]:g}]"
            raise PlanningError(f"previous_action.{name}", rule, previous[index].item())
    least = torch.zeros_like(low).clamp(low, high)
    if limits.counted is not None:
        least = least * limits.counted
    if space.max_norm is not None and torch.linalg.vector_norm(least, ord=space.norm_order) > space.max_norm:
        raise PlanningError(
            "previous_action", f"must reach norm {space.max_norm:g} in one slew step, or one dwell", previous.tolist()
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
