"""Plan replies, made from a search or from the rest of an earlier plan, and validated once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from server.engine.messages import SearchSize, ServedModel
from server.engine.pool import Planned
from server.errors import Reason, ServiceError
from server.service.session import CurrentPlan
from server.values.calls import ModelReply, Observation, PlannerSettings, PlanReply, Provenance, Timings


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
    warnings: tuple[str, ...]


def found(asked: RequestContext, planned: Planned, served: ServedModel, version: str, now: float) -> PlanReply:
    """The reply with the plan that an engine found. Raises PLAN_FAILED where it is no plan."""
    done = planned.done
    reply = PlanReply(
        actions=done.actions,
        step_costs=done.step_costs,
        cost=done.cost,
        goal_distance=done.goal_distance,
        iteration_costs=done.iteration_costs,
        elite_spread=done.elite_spread,
        iterations_done=done.iterations,
        stop_reason=done.stop_reason,
        seed=asked.seed,
        degraded=planned.degraded,
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
        provenance=_provenance(asked, planned.size, served, version),
        warnings=(*asked.warnings, *done.warnings),
    )
    return checked(reply, served.reply)


def reply_from_previous_plan(
    asked: RequestContext, rest: CurrentPlan, size: SearchSize, served: ServedModel, version: str, now: float
) -> PlanReply:
    """The reply where no time was left to search: the plan under way goes on, with the costs predicted for it then."""
    reply = PlanReply(
        actions=rest.actions,
        step_costs=rest.step_costs,
        cost=math.fsum(rest.step_costs),
        goal_distance=rest.goal_distance,
        iteration_costs=(),
        elite_spread=(),
        iterations_done=0,
        stop_reason="deadline",
        seed=asked.seed,
        degraded=True,
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
    if not _finite((reply.cost, reply.goal_distance, *reply.step_costs, *reply.iteration_costs, *reply.elite_spread)):
        raise _no_plan("a cost that is NaN or infinite")
    return reply


def _provenance(asked: RequestContext, size: SearchSize, served: ServedModel, version: str) -> Provenance:
    return Provenance(
        model=served.reply.name,
        weights_digest=served.reply.weights_digest,
        crop_policy=served.reply.crop_policy,
        goal_id=asked.goal_id,
        planner=PlannerSettings(**asdict(size)),
        device=served.device,
        dtype=served.dtype,
        server_version=version,
    )


def _no_plan(what: str) -> ServiceError:
    return ServiceError(Reason.PLAN_FAILED, f"the search gave {what}")


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)
