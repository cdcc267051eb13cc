"""Calls a loaded model: numpy arrays from the front in, tensors on the model's device out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from presage.limits import ActionLimits
from torch import Tensor

from model.camera_yaw import CameraYawWorldModel, rotation, turned_back, turns
from model.interface import LoadedModel, MeasuringModel
from model.proposer import BehindFirst
from model.runtime import memory
from planner import registry
from planner.anytime import Optimizer
from planner.cost import GoalDistance
from planner.proposals import Proposer
from planner.types import ActionSpace
from planner.world_model import CostFunction, WorldModel
from server.engine.messages import Floats, Start
from server.values.calls import Frame


def action_space(model: LoadedModel, narrower: ActionLimits | None = None) -> ActionSpace | None:
    """What a plan with this model must keep to; None where the model only embeds."""
    spec = model.package.config.action
    return None if spec is None else registry.action_space(spec, narrower)


def encode_frames(model: LoadedModel, frames: Sequence[Frame]) -> Tensor:
    """One latent per frame, [frames, *latent]; frames of one size are encoded together."""
    return encode_pictures(model, [torch.tensor(frame) for frame in frames])


def encode_pictures(model: LoadedModel, pictures: Sequence[Tensor]) -> Tensor:
    """`encode_frames` of frames that are tensors [height, width, 3] already."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(tuple(picture.shape), []).append(index)
    if len(by_size) == 1:
        return model.encode(torch.stack(list(pictures)) if len(pictures) > 1 else pictures[0][None])
    latents: list[Tensor] = [torch.empty(0)] * len(pictures)
    for indices in by_size.values():
        encoded = model.encode(torch.stack([pictures[index] for index in indices]))
        for index, latent in zip(indices, encoded, strict=True):
            latents[index] = latent
    return torch.stack(latents)


def measured_at(start: Start) -> Tensor | None:
    """The proprioception of a start, [history and now, proprioception]."""
    return None if start.proprioception is None else torch.tensor(start.proprioception)


def context_of(model: LoadedModel, start: Start, latent: Tensor, measured: Tensor | None) -> tuple[Tensor, ...]:
    """Where a rollout starts: the earlier latents, and the one of what is seen now. `measured`: as `measured_at`."""
    earlier = [to_device(model, past) for past in start.history]
    if start.past_frames:
        earlier = [*encode_frames(model, start.past_frames)]
    return context(model, [*earlier, latent], measured, start.turn_rad, start.past_actions)


def context(
    model: LoadedModel,
    latents: Sequence[Tensor],
    measured: Tensor | None,
    turn_rad: float,
    past_actions: Floats | None = None,
) -> tuple[Tensor, ...]:
    """Where a rollout of `world_model(model)` starts: latents, oldest first, proprioception at each, actions between.

    The actions are the robot's, and are turned as those of a rollout are.
    """
    if past_actions is None or not model.package.config.past_actions:
        inner = model.context(latents, measured)
    else:
        past = to_device(model, past_actions)
        past = turned_back(past, rotation(turn_rad, model.device)) if _turns(model) else past
        inner = model.context(latents, measured, past)
    return (rotation(turn_rad, model.device), *inner) if _turns(model) else inner


def world_model(model: LoadedModel) -> WorldModel:
    """The model as searches see it, with a camera that may be turned: what `context` makes is for this."""
    return CameraYawWorldModel(model) if _turns(model) else model


def proposer(model: LoadedModel, own: Proposer) -> Proposer:
    """The package's proposer for contexts that `context` makes."""
    return BehindFirst(own) if _turns(model) else own


def measuring_world_model(model: LoadedModel) -> WorldModel:
    """The same for goals that say what should be measured, which `measures_goals` models have."""
    assert isinstance(model, MeasuringModel)
    return CameraYawWorldModel(model.measuring()) if _turns(model) else model.measuring()


def measures_goals(model: LoadedModel) -> bool:
    """Whether a goal may say what the robot should measure there."""
    return isinstance(model, MeasuringModel) and len(model.goal_groups) > 1


def goal_of(model: LoadedModel, latent: Tensor, proprioception: Floats | None) -> Tensor:
    """A goal's latent and, where that is said, what should be measured there."""
    if proprioception is None:
        return latent
    assert isinstance(model, MeasuringModel)
    return model.goal(latent, torch.tensor(proprioception))


def seen_part(model: LoadedModel, goal: Tensor) -> Tensor:
    """The latent of a goal [..., *latent], without what should be measured there: what other latents compare with."""
    return goal[..., : model.package.config.latent_shape[-1]]


def says_measurements(model: LoadedModel, goal: Tensor) -> bool:
    """Whether a goal [*latent] says what should be measured there."""
    return goal.shape[-1] != model.package.config.latent_shape[-1]


def with_measurements(model: LoadedModel, optimizer: Optimizer) -> Optimizer:
    """The optimizer for a goal that says what should be measured: its distance, of each group of channels."""
    assert isinstance(model, MeasuringModel)
    return registry.by_channels(optimizer, model.goal_groups)


def _turns(model: LoadedModel) -> bool:
    spec = model.package.config.action
    return spec is not None and turns(spec.names)


def cost_of(model: LoadedModel) -> GoalDistance:
    """What the model's own search makes small."""
    planner = model.package.config.planner
    return registry.cost(planner.optimizer, planner.discount, planner.cost)


def distances(cost: CostFunction, latents: Tensor, goals: Tensor) -> Tensor:
    """The cost, for one step, of each latent [count, *latent] toward its goal [count or 1, *latent]."""
    nothing = latents.new_zeros(1)
    return cost(latents[:, None, None], goals.expand_as(latents), nothing)[:, 0, 0]


def to_device(model: LoadedModel, values: Floats) -> Tensor:
    return memory.to_device(torch.tensor(values), model.device)


def to_host(values: Tensor) -> Floats:
    array: Floats = values.detach().float().cpu().numpy()
    return array
