"""Plan replies, made from a search or from the rest of an earlier plan, and validated once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from presage.values import Model, Plan, PlannerSettings, Provenance, Timings

from server.engine.messages import SearchSize, ServedModel
from server.engine.pool import Planned
from server.errors import Reason, ServiceError
from server.service.session import CurrentPlan
from server.service.validation import actions_of
from server.values.calls import UNBOUNDED, Observation


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


def found(asked: RequestContext, planned: Planned, served: ServedModel, version: str, now: float) -> Plan:
    """The reply with the plan that an engine found. Raises PLAN_FAILED where it is no plan."""
    done = planned.done
    timings = Timings(
        queue_ms=max(0.0, 1e3 * (done.began - asked.received) - asked.decode_ms),
        decode_ms=asked.decode_ms,
        encode_ms=1e3 * (done.encoded - done.began),
        plan_ms=1e3 * (done.ended - done.encoded),
        total_ms=1e3 * (now - asked.received),
    )
    plan = replace(done.plan, degraded=planned.degraded)
    return _answered(asked, plan, timings, planned.size, served, version)


def reply_from_previous_plan(
    asked: RequestContext, rest: CurrentPlan, size: SearchSize, served: ServedModel, version: str, now: float
) -> Plan:
    """The reply where no time was left to search: the plan under way goes on, with the costs predicted for it then."""
    plan = Plan(
        actions=rest.actions,
        cost=math.fsum(rest.step_costs),
        step_costs=rest.step_costs,
        goal_distance=rest.goal_distance,
        iteration_costs=(),
        elite_spread=(),
        iterations_done=0,
        stop_reason="deadline",
        seed=asked.seed,
        degraded=True,
        warm_started=True,
        warnings=("no time to search by the deadline: this is what is left of the last plan",),
    )
    timings = Timings(
        queue_ms=max(0.0, 1e3 * (now - asked.received) - asked.decode_ms),
        decode_ms=asked.decode_ms,
        total_ms=1e3 * (now - asked.received),
    )
    return _answered(asked, plan, timings, size, served, version)


def _answered(
    asked: RequestContext, plan: Plan, timings: Timings, size: SearchSize, served: ServedModel, version: str
) -> Plan:
    """The plan with what it repeats of its request, and where it comes from."""
    model = served.reply
    provenance = Provenance(
        model=model.name,
        weights_digest=model.weights_digest,
        crop_policy=model.image.crop_policy,
        goal_id=asked.goal_id,
        planner=PlannerSettings(**vars(size)),
        device=served.device,
        dtype=served.dtype,
        server_version=version,
        unbounded_search=size.optimizer in UNBOUNDED,
    )
    reply = replace(
        plan,
        observation_sequence=asked.sequence,
        capture_time_ns=asked.observation.capture_time_ns,
        epoch=asked.epoch,
        timings=timings,
        provenance=provenance,
        warnings=(*asked.warnings, *plan.warnings),
    )
    return checked(reply, model)


def checked(reply: Plan, model: Model) -> Plan:
    """The reply, if a robot may execute it: actions there, finite and within bounds, and numbers that are numbers.

    Raises PLAN_FAILED: nothing else may leave in a plan's place.
    """
    space, actions = actions_of(model), reply.actions.astype(np.float64)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != len(space.names):
        raise _no_plan(f"actions of shape {list(actions.shape)}")
    if not np.isfinite(actions).all():
        raise _no_plan("an action that is NaN or infinite")
    if (actions < np.array(space.low)).any() or (actions > np.array(space.high)).any():
        raise _no_plan("an action out of bounds")
    if not _finite((reply.cost, reply.goal_distance, *reply.step_costs, *reply.iteration_costs, *reply.elite_spread)):
        raise _no_plan("a cost that is NaN or infinite")
    return reply


def _no_plan(what: str) -> ServiceError:
    return ServiceError(Reason.PLAN_FAILED, f"the search gave {what}")


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)
