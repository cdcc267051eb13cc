"""How long a call's work takes at the least, and what is too long to be done for anybody; how large a reply may be.

Times are predicted from the shortest ever measured, so that a busy machine refuses nothing that an idle one would do.
The model's own search is always allowed: what a package was made for is no attack.
"""

from __future__ import annotations

import math

from presage.values import Model

from server.config import Limits
from server.engine.messages import Pace, SearchSize
from server.errors import Reason, invalid

NEWTON_STARTS = 4  # of Gauss-Newton searches, each with its own slopes
GENEROUS = 4.0  # times what the model's own search takes, which is allowed whatever the limits


def search(size: SearchSize, own: SearchSize, model: Model, pace: Pace, limits: Limits, ends: bool) -> None:
    """A search of short iterations, and of little time for all of them unless a deadline or a budget `ends` it."""
    iteration_s = pace.least_rollout_s(_rolled_out(size, model), size.horizon)
    own_s = pace.least_rollout_s(_rolled_out(own, model), own.horizon)
    most_s = max(limits.iteration_s, GENEROUS * own_s)
    if iteration_s > most_s:
        name = "horizon" if size.horizon > own.horizon else "samples"
        rule = f"must keep an iteration, which nothing interrupts, within {most_s:.3g} s; it takes {iteration_s:.3g} s"
        raise invalid(f"planner.{name}", rule, getattr(size, name), Reason.TOO_LARGE)
    work_s, most_s = size.iterations * iteration_s, max(limits.work_s, GENEROUS * own.iterations * own_s)
    if not ends and work_s > most_s:
        rule = f"must keep a search without deadline or budget within {most_s:.3g} s; this one takes {work_s:.3g} s"
        raise invalid("planner.iterations", rule, size.iterations, Reason.TOO_LARGE)


def _rolled_out(size: SearchSize, model: Model) -> int:
    """Sequences that an iteration evaluates, about: one that is also differentiated counts three."""
    if size.optimizer in ("gauss_newton", "real_time_iteration"):
        moved = size.horizon * (model.action.block * len(model.action.names) if model.action is not None else 0)
        return max(size.samples, NEWTON_STARTS * (moved + 1))  # one for every number that it nudges
    return 3 * size.samples if size.optimizer == "gradient" else size.samples


def rollouts(count: int, horizon: int, own: SearchSize, pace: Pace, limits: Limits, field: str) -> float:
    """Seconds that rolling out candidates takes at the least. Raises TOO_LARGE."""
    own_s = pace.least_rollout_s(own.samples, own.horizon)
    each_s, most_s = pace.least_rollout_s(1, horizon), max(limits.iteration_s, GENEROUS * own_s)
    if each_s > most_s:
        rule = f"must be short enough to predict within {most_s:.3g} s; these take {each_s:.3g} s"
        raise invalid(field, rule, f"{horizon} model steps", Reason.TOO_LARGE)
    work_s = count * horizon * pace.least_step_s
    return _within(
        max(each_s, work_s), max(limits.work_s, GENEROUS * own.iterations * own_s), field, count, "candidates"
    )


def frames(count: int, pace: Pace, limits: Limits, field: str) -> float:
    """Seconds that encoding frames takes at the least. Raises TOO_LARGE."""
    return _within(count * pace.least_encode_s, max(limits.work_s, pace.least_encode_s), field, count, "frames")


def reply(count: int, model: Model, limits: Limits, field: str) -> None:
    """A reply that holds so many latents. Raises TOO_LARGE."""
    size = 4 * count * math.prod(model.latent_shape)
    if size > limits.reply_bytes:
        rule = f"must be few enough for a reply of {limits.reply_bytes} bytes; {count} latents are {size} bytes"
        raise invalid(field, rule, count, Reason.TOO_LARGE)


def _within(work_s: float, most_s: float, field: str, count: int, what: str) -> float:
    if work_s > most_s:
        rule = f"must be few enough to be done within {most_s:.3g} s; these take {work_s:.3g} s"
        raise invalid(field, rule, f"{count} {what}", Reason.TOO_LARGE)
    return work_s
