"""The planner's view of a model and of a cost, as protocols. Implementations live elsewhere."""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

Context: TypeAlias = tuple[Tensor, ...]
"""Where a rollout starts: tensors whose leading axis is batch (robots), otherwise opaque to the planner."""

Latents: TypeAlias = Float[Tensor, "batch samples horizon *latent"]
Actions: TypeAlias = Float[Tensor, "batch samples time action"]
StepCosts: TypeAlias = Float[Tensor, "batch samples horizon"]


class WorldModel(Protocol):
    """Predicts latents from actions. `time = horizon * block`: a model step takes `block` robot actions at once."""

    @property
    def block(self) -> int:
        """Robot actions per step of the model, >= 1."""
        ...

    def rollout(self, context: Context, actions: Actions) -> Latents:
        """Predict the latent after every model step.

        `context` tensors have the batch size of `actions`; actions are in robot units. Sample s of robot b starts from
        context[b]. Never mixes batch or sample entries: company does not change a prediction beyond float rounding.
        """
        ...


Alike: TypeAlias = tuple[tuple[int, ...], ...]
"""Which samples do the same: entry [sample][model step] is the first sample with the same actions at that step."""


@runtime_checkable
class SharingWorldModel(WorldModel, Protocol):
    """One that predicts once what several samples have in common. A world model need not be."""

    def rollout_shared(self, context: Context, actions: Actions, alike: Alike) -> Latents:
        """`rollout` of samples that do the same where `alike` says so, which is not looked into again."""
        ...


def shared_rollout(world_model: WorldModel, context: Context, actions: Actions, alike: Alike) -> Latents:
    """The rollout of samples that are alike in parts, computed once where the world model can."""
    if isinstance(world_model, SharingWorldModel):
        return world_model.rollout_shared(context, actions, alike)
    return world_model.rollout(context, actions)


class CostFunction(Protocol):
    """What a candidate costs, step by step; its total is the sum over the horizon and is always minimized."""

    def __call__(self, predicted: Latents, goal: Tensor, actions: Actions) -> StepCosts:
        """`goal` is [batch, *latent]; returns each step's share of the total, so a last-step cost is zero before it."""
        ...
