"""Plan replies: made from what an engine found or from what is left of an earlier plan, and checked once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.engine.messages import PlanDone, SearchSize, ServedModel
from server.engine.pool import Planned
from server.errors import Reason, ServiceError
from server.service.session import CurrentPlan
from server.values.calls import ModelReply, Observation, PlanReply, Provenance, Shortage, Timings


@dataclass(frozen=True)
class RequestContext:
    """What a reply repeats of its request."""

    observation: Observation
    sequence: int
    epoch: int
    seed: int
    goal_id: str
    received: float  # instant
    decode_ms: float
    budget_ms: float | None
    warnings: tuple[str, ...]


def found(asked: RequestContext, planned: Planned, served: ServedModel, version: str, now: float) -> PlanReply:
    """The reply with the plan that an engine found. Raises PLAN_FAILED where it is no plan."""
    done = planned.done
    short = shortage(planned.asked, done, asked.budget_ms)
    reply = PlanReply(
        actions=done.actions,
        step_costs=done.step_costs,
        cost=done.cost,
        objective=done.objective,
        goal_distance=done.goal_distance,
        iteration_costs=done.iteration_costs,
        elite_spread=done.elite_spread,
        iterations_done=done.iterations,
        stop_reason=done.stop_reason,
        seed=asked.seed,
        degraded=bool(short),
        shortage=tuple(short),
        warm_started=done.warm_started,
        observation_sequence=asked.sequence,
        capture_time_ns=asked.observation.capture_time_ns,
        epoch=asked.epoch,
        timings=Timings(
            queue_ms=max(0.0, 1e3 * (done.began - asked.received) - asked.decode_ms),
            decode_ms=asked.decode_ms,
            encode_ms=1e3 * (done.encoded - done.began),
            plan_ms=1e3 * (done.ended - done.encoded),
            total_ms=1e3 * (now - asked.received),
        ),
        provenance=_provenance(asked, done.size, served, version),
        warnings=(*asked.warnings, *short.values(), *done.warnings),
    )
    return checked(reply, served.reply)


def shortage(asked: SearchSize, done: PlanDone, budget_ms: float | None) -> dict[Shortage, str]:
    """What a search lacked for want of time, in the order in which it went short, each with a warning for the robot."""
    time = "the time to the deadline" if budget_ms is None else f"{budget_ms:g} ms"
    ran, short = done.size, dict[Shortage, str]()
    if ran.optimizer != asked.optimizer:
        fit = f"{done.fitting} of {asked.iterations} iterations of {asked.optimizer} fit {time}"
        took = f"{ran.optimizer} with {ran.samples} samples took their place, {done.iterations} iterations"
        short["optimizer"] = f"{fit}: {took}"
    elif ran.samples < asked.samples:
        fit = f"{done.fitting} of {asked.iterations} iterations of {asked.samples} samples fit {time}"
        short["samples"] = f"{fit}: {ran.samples} samples took their place, {done.iterations} iterations"
    if done.stop_reason in ("budget", "deadline") and done.iterations < ran.needed:
        short["iterations"] = f"{done.iterations} of {ran.iterations} iterations fit {time}, {ran.needed} are needed"
    if done.unimproved:
        begun = "what is left of the last plan" if done.warm_started else "rest"
        short["unimproved"] = f"{done.iterations} of {ran.iterations} iterations found nothing better than {begun}"
    return short


def reply_from_previous_plan(
    asked: RequestContext, rest: CurrentPlan, size: SearchSize, served: ServedModel, version: str, now: float
) -> PlanReply:
    """The reply where no time was left to search: the plan under way goes on, with the costs predicted for it then."""
    reply = PlanReply(
        actions=rest.actions,
        step_costs=rest.step_costs,
        cost=math.fsum(rest.step_costs),
        objective=None,
        goal_distance=rest.goal_distance,
        iteration_costs=(),
        elite_spread=(),
        iterations_done=0,
        stop_reason="deadline",
        seed=asked.seed,
        degraded=True,
        shortage=("unsearched",),
        warm_started=True,
        observation_sequence=asked.sequence,
        capture_time_ns=asked.observation.capture_time_ns,
        epoch=asked.epoch,
        timings=Timings(
            queue_ms=max(0.0, 1e3 * (now - asked.received) - asked.decode_ms),
            decode_ms=asked.decode_ms,
            total_ms=1e3 * (now - asked.received),
        ),
        provenance=_provenance(asked, size, served, version),
        warnings=(*asked.warnings, "no time to search by the deadline: this is what is left of the last plan"),
    )
    return checked(reply, served.reply)


def checked(reply: PlanReply, model: ModelReply) -> PlanReply:
    """The reply, if a robot may execute it: actions there, finite and within bounds, and numbers that are numbers.

    Raises PLAN_FAILED: nothing else may leave in a plan's place.
    """
    actions = reply.actions.astype(np.float64)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != len(model.action_names):
        raise _no_plan(f"actions of shape {list(actions.shape)}")
    if not np.isfinite(actions).all():
        raise _no_plan("an action that is NaN or infinite")
    if (actions < np.array(model.action_low)).any() or (actions > np.array(model.action_high)).any():
        raise _no_plan("an action out of bounds")
    totals = (reply.cost, 0.0 if reply.objective is None else reply.objective, reply.goal_distance)
    if not _finite((*totals, *reply.step_costs, *reply.iteration_costs, *reply.elite_spread)):
        raise _no_plan("a cost that is NaN or infinite")
    return reply


def _provenance(asked: RequestContext, size: SearchSize, served: ServedModel, version: str) -> Provenance:
    return Provenance(
        model=served.reply.name,
        weights_digest=served.reply.weights_digest,
        crop_policy=served.reply.crop_policy,
        goal_id=asked.goal_id,
        planner=size.settings,
        device=served.device,
        dtype=served.dtype,
        server_version=version,
    )


def _no_plan(what: str) -> ServiceError:
    return ServiceError(Reason.PLAN_FAILED, f"the search gave {what}")


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)
