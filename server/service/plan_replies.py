"""Plan replies, made from a search or from the rest of an earlier plan, and validated once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from presage.fields import from_fields
from presage.limits import ActionLimits, fault
from presage.optimizers import UNBOUNDED
from presage.values import Model, Plan, Provenance, Timings

from server.engine.messages import Floats, PlanDone, SearchSize, ServedModel
from server.engine.pool import Planned
from server.errors import Reason, ServiceError
from server.service.sessions.session import CurrentPlan
from server.service.validation import actions_of
from server.values.calls import Observation


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
    limits: ActionLimits | None = None  # what holds; None: the model's bounds alone
    previous_action: Floats | None = None  # the last action executed
    held: tuple[float, ...] | None = None  # actions for which each of its dimensions was kept


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
    short = shortage(planned.asked, done, asked.budget_ms)
    warnings = (*short.values(), *done.plan.warnings)
    plan = replace(done.plan, degraded=bool(short), shortage=tuple(short), warnings=warnings)
    return _answered(asked, plan, timings, done.size, served, version)


def shortage(asked: SearchSize, done: PlanDone, budget_ms: float | None) -> dict[str, str]:
    """What a search lacked for want of time (`Plan.shortage` of the contract), each with a warning for the robot."""
    plan = done.plan
    time = "the time to the deadline" if budget_ms is None else f"{budget_ms:g} ms"
    ran, short = done.size, dict[str, str]()
    if ran.optimizer != asked.optimizer:
        fit = f"{done.fitting} of {asked.iterations} iterations of {asked.optimizer} fit {time}"
        took = f"{ran.optimizer} took their place, {plan.iterations_done} iterations"
        short["optimizer"] = f"{fit}: {took}"
    elif ran.samples < asked.samples:
        fit = f"{done.fitting} of {asked.iterations} iterations of {asked.samples} samples fit {time}"
        short["samples"] = f"{fit}: {ran.samples} samples took their place, {plan.iterations_done} iterations"
    if plan.stop_reason in ("budget", "deadline") and plan.iterations_done < ran.needed:
        fit = f"{plan.iterations_done} of {ran.iterations} iterations fit {time}"
        short["iterations"] = f"{fit}, {ran.needed} are needed"
    if done.unimproved:
        begun = "what is left of the last plan" if plan.warm_started else "rest"
        short["unimproved"] = f"{plan.iterations_done} of {ran.iterations} iterations found nothing better than {begun}"
    return short


def reply_from_previous_plan(
    asked: RequestContext, rest: CurrentPlan, size: SearchSize, served: ServedModel, version: str, now: float
) -> Plan:
    """The reply where no time was left to search: the plan under way goes on, with the costs predicted for it then."""
    plan = from_fields(
        Plan,
        rest,
        cost=math.fsum(rest.step_costs),
        iteration_costs=(),
        elite_spread=(),
        iterations_done=0,
        stop_reason="deadline",
        seed=asked.seed,
        degraded=True,
        shortage=("unsearched",),
        warm_started=True,
        kept=True,
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
        planner=size.settings,
        device=served.device,
        dtype=served.dtype,
        server_version=version,
        unbounded_search=size.optimizer in UNBOUNDED and asked.limits is None,
        limits=asked.limits,
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
    return checked(reply, asked, model)


def limit_fault(actions: Floats, asked: RequestContext, model: Model) -> str:
    """What of a plan's actions [time, action] breaks the limits that hold; "" where nothing does."""
    action = actions_of(model)
    limits = asked.limits or ActionLimits(action.low, action.high)
    before = None if asked.previous_action is None else asked.previous_action.tolist()
    return fault(actions, action.names, limits, action.rest, before, asked.held)


def checked(reply: Plan, asked: RequestContext, model: Model) -> Plan:
    """The reply, if a robot may execute it: actions there, finite and within all limits, and numbers that are numbers.

    Raises PLAN_FAILED: nothing else may leave in a plan's place.
    """
    space, actions = actions_of(model), reply.actions.astype(np.float64)
    if actions.ndim != 2 or len(actions) == 0 or actions.shape[1] != len(space.names):
        raise _no_plan(f"actions of shape {list(actions.shape)}")
    if not np.isfinite(actions).all():
        raise _no_plan("an action that is NaN or infinite")
    if broken := limit_fault(reply.actions, asked, model):
        raise _no_plan(broken)
    totals = (reply.cost, 0.0 if reply.objective is None else reply.objective, reply.goal_distance)
    if not _finite((*totals, *reply.step_costs, *reply.iteration_costs, *reply.elite_spread)):
        raise _no_plan("a cost that is NaN or infinite")
    return reply


def _no_plan(what: str) -> ServiceError:
    return ServiceError(Reason.PLAN_FAILED, f"the search gave {what}")


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)
