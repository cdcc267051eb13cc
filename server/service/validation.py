"""Validation of requests before an engine is asked. Each refusal names field, rule and value.

What only a transport can get wrong (bytes, encodings) is checked by the transports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from presage.limits import ActionLimits, narrowed
from presage.optimizers import (
    LAST_STEP_ALONE,
    PROPOSER_ALONE,
    SAMPLING,
    check_cost,
    check_metric,
    check_optimizer,
)
from presage.values import ActionSpec, Model, PlannerSettings

from server.config import Limits
from server.engine.messages import ITERATION_STEPS, Floats, SearchSize, ServedModel, needed_iterations
from server.errors import Reason, ServiceError, invalid, refuse
from server.service.sessions.stages import MOST_STAGES
from server.values.calls import (
    Array,
    CalibrationMove,
    Frame,
    Observation,
    PlanRequest,
    SessionRequest,
)

MOST_MOVES = 64
LEAST_ACROSS = 0.1
"""How far, as a share of their longest direction, exploratory moves must go across it."""

LARGEST_SEQUENCE = 2**63 - 1  # those that the service counts on from it still fit the 64 bits of the contract
LARGEST_NUMBER = 1e9  # of latents, actions and proprioception


def frame(image: Frame, model: Model, field: str) -> None:
    """An RGB frame of the model's size, or of any size where its crop policy makes one of it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        got = f"{image.dtype} {list(image.shape)}"
        raise invalid(field, "must be uint8 [height, width, 3]", got, Reason.INVALID_IMAGE)
    image_size(image.shape[0], image.shape[1], model, field)


def image_size(height: int, width: int, model: Model, field: str) -> None:
    """A size in pixels that the model takes."""
    if height == 0 or width == 0:
        raise invalid(field, "must have at least one pixel", f"{height} x {width}", Reason.INVALID_IMAGE)
    wanted = (model.image.height, model.image.width)
    if model.image.crop_policy == "exact" and (height, width) != wanted:
        rule = f"must be {wanted[0]} x {wanted[1]} (height x width) for model {model.name}"
        raise invalid(field, rule, f"{height} x {width}", Reason.IMAGE_SIZE)


def cameras(seen: Observation, model: Model, name: str = "observation") -> None:
    """One image per camera."""
    if len(seen.images) != model.image.cameras:
        rule = f"must be one per camera of model {model.name}, {model.image.cameras}"
        raise invalid(f"{name}.images", rule, len(seen.images), Reason.INVALID_IMAGE)


def images_ahead(request: object, model: Model, limits: Limits) -> Callable[[str, int, int], None]:
    """Judge the images of a request before they are decoded: their number now, each one's size by what is returned.

    That takes the name of a field, a height and a width, and raises what `frame` would.
    """
    seen, images = getattr(request, "observation", None), getattr(request, "images", None)
    if isinstance(seen, Observation):
        cameras(seen, model)
    if images is not None:
        image_count(images, limits.images)
    return lambda field, height, width: image_size(height, width, model, field)


def observation(seen: Observation, model: Model, name: str = "observation") -> None:
    """One frame per camera, and proprioception of the model's width where it uses any."""
    cameras(seen, model, name)
    for index, image in enumerate(seen.images):
        frame(image, model, f"{name}.images[{index}]")
    sequence(seen.sequence, f"{name}.sequence")
    given, width = seen.proprioception, len(model.proprioception_names)
    field = f"{name}.proprioception"
    if given is None or given.size == 0:
        if width:
            raise invalid(field, f"must have {width} entries for model {model.name}", "none")
        return
    if not width:
        raise invalid(field, f"must be empty: model {model.name} uses none", f"shape {list(given.shape)}")
    if given.shape != (width,):
        raise invalid(field, f"must be [{width}] for model {model.name}", f"shape {list(given.shape)}")
    finite(given, field)


def sequence(number: int, field: str) -> None:
    """A place in the order of observations that leaves room for later ones."""
    if not 0 <= number <= LARGEST_SEQUENCE:
        raise invalid(field, "must be at least 0 and below 2^63", number)


def past(seen: Observation, served: ServedModel, in_session: bool, name: str = "observation") -> None:
    """Earlier images a model step apart and the actions between, for models that look back on both."""
    frames, executed = seen.past_images, seen.past_actions
    if not frames and (executed is None or not executed.size):
        return
    field, model = f"{name}.past_images", served.reply
    if in_session:
        raise invalid(field, "must be left out in a session, which remembers by itself", len(frames))
    if not served.reply.past_actions:
        raise invalid(field, f"must be empty: model {model.name} does not look back on them", len(frames))
    if not 1 <= len(frames) <= served.reply.history - 1:
        raise invalid(field, f"must be 1 to {served.reply.history - 1} for model {model.name}", len(frames))
    for index, image in enumerate(frames):
        frame(image, model, f"{field}[{index}]")
    action = actions_of(model)
    wanted = (len(frames) * action.block, len(action.names))
    shape = (0, 0) if executed is None else executed.shape
    if executed is None or shape != wanted:
        rule = f"must be {list(wanted)}, {action.block} actions after each of past_images"
        raise invalid(f"{name}.past_actions", rule, f"shape {list(shape)}", Reason.ACTION_SHAPE)
    finite(executed, f"{name}.past_actions")


def no_past(seen: Observation, name: str) -> None:
    """Observations that stand in a row already carry none."""
    if seen.past_images or (seen.past_actions is not None and seen.past_actions.size):
        raise invalid(f"{name}.past_images", "must be left out here", len(seen.past_images))


def finite(values: Array, field: str) -> None:
    """Numbers whose squares can still be summed as float32."""
    if not np.isfinite(values).all():
        raise invalid(field, "must be finite", "NaN or infinity", Reason.INVALID_TENSOR)
    largest = float(np.abs(values).max(initial=0.0))
    if largest > LARGEST_NUMBER:
        raise invalid(field, f"must lie within {LARGEST_NUMBER:g} of 0", f"{largest:g}", Reason.INVALID_TENSOR)


def latent(values: Floats, model: Model, field: str) -> None:
    if values.shape != model.latent_shape:
        rule = f"must be {list(model.latent_shape)} for model {model.name}"
        raise invalid(field, rule, f"shape {list(values.shape)}", Reason.INVALID_TENSOR)
    finite(values, field)


def plan(request: PlanRequest) -> None:
    """What of a plan request needs no model."""
    if request.budget_ms is not None and not (math.isfinite(request.budget_ms) and request.budget_ms > 0):
        raise invalid("budget_ms", "must be finite and > 0", request.budget_ms)
    for field in ("executed", "committed", "plan_sequence"):
        count = getattr(request, field)
        if count < 0:
            raise invalid(field, "must be >= 0", count)
        if count and not request.session_id:
            raise invalid(field, "must be 0 without a session", count)
    seed(request.seed)
    if len(request.request_id) > 128:
        raise invalid("request_id", "must be at most 128 characters", request.request_id)


def seed(value: int | None) -> None:
    if value is not None and not 0 <= value < 1 << 64:
        raise invalid("seed", "must be 0 to 2^64 - 1", value)


def stages(request: SessionRequest) -> None:
    """Goals one after another, each but the last with a rule for when it is over."""
    if not request.stages:
        return
    if request.goal_id:
        raise invalid("goal_id", "must be left out where stages are given", request.goal_id)
    if len(request.stages) > MOST_STAGES:
        raise invalid("stages", f"must be at most {MOST_STAGES}", len(request.stages), Reason.TOO_LARGE)
    for index, stage in enumerate(request.stages):
        field = f"stages[{index}]"
        if not (math.isfinite(stage.switch_below) and stage.switch_below >= 0):
            raise invalid(f"{field}.switch_below", "must be finite and >= 0", stage.switch_below)
        if stage.max_actions < 0:
            raise invalid(f"{field}.max_actions", "must be >= 0", stage.max_actions)
        if index + 1 < len(request.stages) and not (stage.switch_below or stage.max_actions):
            raise invalid(field, "must have switch_below or max_actions set, being not the last", "neither")


def can_predict(served: ServedModel) -> SearchSize:
    """The model's own search settings. Raises UNSUPPORTED where it has none."""
    actions_of(served.reply)
    assert served.search is not None
    return served.search


def actions_of(model: Model) -> ActionSpec:
    """The actions a model predicts from. Raises UNSUPPORTED where there are none."""
    if model.action is None:
        raise ServiceError(Reason.UNSUPPORTED, f"model {model.name} only embeds: it predicts from no actions")
    return model.action


def limits(asked: ActionLimits | None, held: ActionLimits | None, model: Model) -> ActionLimits | None:
    """What holds once limits are asked for, beside those that hold already (None: the model's own); never wider.

    None where only the model's bounds hold.
    """
    action = actions_of(model)
    held, asked = held or action.limits, asked or ActionLimits()
    if held is None and asked == ActionLimits():
        return None
    return narrowed(action, action.rest, held, asked, refuse)


def previous_action(given: Sequence[float], model: Model) -> Floats | None:
    """The last action executed, where a request says it."""
    names = actions_of(model).names
    if not given:
        return None
    if len(given) != len(names):
        rule = f"must have {len(names)} entries for model {model.name} ({', '.join(names)})"
        raise invalid("previous_action", rule, len(given), Reason.ACTION_SHAPE)
    finite(np.array(given), "previous_action")
    return np.array(given, np.float32)


def search_size(wanted: PlannerSettings, served: ServedModel, limits: Limits) -> SearchSize:
    """The settings of a search: the request's where it has any, else the model's; all within the limits.

    Where samples are given without elites, the model's share of elites is kept.
    """
    defaults = can_predict(served)
    size = replace(defaults, **{name: value for name, value in vars(wanted).items() if value not in (None, ())})
    samples, iterations, horizon, optimizer = size.samples, size.iterations, size.horizon, size.optimizer
    if samples < 3:
        raise invalid("planner.samples", "must be >= 3", samples)
    for name, count in (("iterations", iterations), ("horizon", horizon)):
        if count < 1:
            raise invalid(f"planner.{name}", "must be >= 1", count)
    elites = wanted.elites
    if elites is None:
        elites = min(max(2, defaults.elites * samples // defaults.samples), samples - 1)
    if not 2 <= elites < samples:
        raise invalid("planner.elites", f"must be at least 2 and below samples ({samples})", elites)
    if iterations > limits.iterations:
        raise invalid("planner.iterations", f"must be at most {limits.iterations}", iterations, Reason.TOO_LARGE)
    if horizon * samples > ITERATION_STEPS:
        rule = f"must keep horizon x samples at most {ITERATION_STEPS}"
        raise invalid("planner", rule, horizon * samples, Reason.TOO_LARGE)
    if horizon * samples * iterations > limits.rollout_steps:
        rule = f"must keep horizon x samples x iterations at most {limits.rollout_steps}"
        raise invalid("planner", rule, horizon * samples * iterations, Reason.TOO_LARGE)
    check_optimizer(optimizer, refuse)
    if optimizer in ("gauss_newton", "real_time_iteration"):
        action = actions_of(served.reply)
        moved = horizon * action.block * len(action.names)
        if moved * horizon > ITERATION_STEPS:
            rule = f"must keep horizon x the actions that {optimizer} nudges at most {ITERATION_STEPS}"
            raise invalid("planner.horizon", rule, moved * horizon, Reason.TOO_LARGE)
    if optimizer == PROPOSER_ALONE and not served.proposes:
        rule = f"must not be {optimizer}: model {served.reply.name} has no proposer"
        raise invalid("planner.optimizer", rule, optimizer)
    discount = wanted.discount
    if discount is None:
        one_step = optimizer in LAST_STEP_ALONE or wanted.cost in ("last", "least")
        discount = 1.0 if one_step else defaults.discount
    check_cost(optimizer, discount, wanted.cost, refuse)
    action_entries(wanted.dimensions, served.reply, "planner.dimensions")
    if wanted.metric is not None:
        check_metric(wanted.metric, refuse)
    for name, who in (("narrowing", ("mppi",)), ("sample_decay", SAMPLING)):
        share = getattr(wanted, name)
        if share is not None and optimizer not in who:
            raise invalid(f"planner.{name}", f"must be left out but for {', '.join(who)}", share)
        if share is not None and not 0 < share <= 1:
            raise invalid(f"planner.{name}", "must be above 0 and at most 1", share)
    needed = 1 if optimizer == PROPOSER_ALONE else needed_iterations(optimizer, iterations, defaults.iterations)
    # A discount is of a sum over all steps, and so asks for one where the model's own cost counts one step alone.
    own = "" if optimizer in LAST_STEP_ALONE or discount != 1 else defaults.cost
    cost = own if wanted.cost is None else wanted.cost
    return replace(size, elites=elites, discount=discount, needed=needed, cost=cost)


def action_entries(names: Sequence[str], model: Model, field: str) -> None:
    """Different names of the model's action entries."""
    known = actions_of(model).names
    for index, name in enumerate(names):
        if name not in known:
            raise invalid(f"{field}[{index}]", f"must be one of {', '.join(known)}", name)
        if name in names[:index]:
            raise invalid(f"{field}[{index}]", "must not be named twice", name)


def candidates(actions: Floats, model: Model, limits: Limits, field: str) -> None:
    """Action sequences [candidates, time, action], time in whole model steps."""
    action = actions_of(model)
    width, block = len(action.names), action.block
    if actions.ndim != 3 or 0 in actions.shape:
        raise invalid(field, "must have an action for every time", f"shape {list(actions.shape)}", Reason.ACTION_SHAPE)
    if actions.shape[2] != width:
        rule = f"must have {width} entries per action for model {model.name} ({', '.join(action.names)})"
        raise invalid(field, rule, actions.shape[2], Reason.ACTION_SHAPE)
    if actions.shape[1] % block:
        rule = f"must have a multiple of {block} actions in time, the block of model {model.name}"
        raise invalid(field, rule, actions.shape[1], Reason.ACTION_SHAPE)
    finite(actions, field)
    steps = actions.shape[1] // block
    if steps > ITERATION_STEPS:
        raise invalid(field, f"must be at most {ITERATION_STEPS} model steps long", steps, Reason.TOO_LARGE)
    if len(actions) * steps > limits.rollout_steps:
        rule = f"must keep candidates x model steps at most {limits.rollout_steps}"
        raise invalid(field, rule, len(actions) * steps, Reason.TOO_LARGE)


def steps_seen(observations: Sequence[Observation], actions: Floats, model: Model, limits: Limits, most: int) -> None:
    """At least two observations, and the actions [time, action] of the model steps between them."""
    if not 2 <= len(observations) <= most:
        reason = Reason.TOO_LARGE if len(observations) > most else Reason.INVALID_FIELD
        raise invalid("observations", f"must be 2 to {most}", len(observations), reason)
    for index, seen in enumerate(observations):
        observation(seen, model, f"observations[{index}]")
        no_past(seen, f"observations[{index}]")
    candidates(actions[None], model, limits, "actions")
    block = actions_of(model).block
    wanted = (len(observations) - 1) * block
    if len(actions) != wanted:
        rule = f"must have {wanted} actions in time, {block} between neighboring observations"
        raise invalid("actions", rule, len(actions), Reason.ACTION_SHAPE)


def image_count(images: Sequence[Frame], most: int) -> None:
    if not images:
        raise invalid("images", "must hold at least one image", "none")
    if len(images) > most:
        raise invalid("images", f"must be at most {most}", len(images), Reason.TOO_LARGE)


def moves(asked: Sequence[CalibrationMove], model: Model) -> None:
    """Exploratory moves: observations of the model's kind, and actions that go in different horizontal directions."""
    names = actions_of(model).names
    if names[:2] != ("x", "y"):
        shown = ", ".join(names)
        raise ServiceError(
            Reason.UNSUPPORTED, f"model {model.name} has no x and y to calibrate, its actions are {shown}"
        )
    if not 2 <= len(asked) <= MOST_MOVES:
        raise invalid("moves", f"must be 2 to {MOST_MOVES}", len(asked))
    for index, move in enumerate(asked):
        observation(move.before, model, f"moves[{index}].before")
        observation(move.after, model, f"moves[{index}].after")
        no_past(move.before, f"moves[{index}].before")
        no_past(move.after, f"moves[{index}].after")
        if move.action.shape != (len(names),):
            rule = f"must be [{len(names)}] for model {model.name}"
            raise invalid(f"moves[{index}].action", rule, f"shape {list(move.action.shape)}", Reason.ACTION_SHAPE)
        finite(move.action, f"moves[{index}].action")
    horizontal = np.stack([move.action[:2] for move in asked]).astype(np.float64)
    longest, across = np.linalg.svd(horizontal, compute_uv=False)
    if across < LEAST_ACROSS * longest or longest == 0:
        raise invalid("moves", "must go in different directions of x and y", "moves along one line")
