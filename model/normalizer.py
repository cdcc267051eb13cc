"""Robot units to network units and back. Only scales; what an action means stands in the model package."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.package import ActionSpec


class ActionNormalizer(nn.Module):
    """Standardizes actions per dimension: `(action - mean) / std`. The numbers come from the training episodes."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ActionSpec) -> None:
        super().__init__()
        if not all(s > 0 for s in spec.std):
            raise ValueError(f"action.std must be positive, got {spec.std}: a constant action teaches a model nothing")
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)

    def forward(self, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Robot units to network units."""
        return (actions - self.mean) / self.std

    def inverse(self, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Network units to robot units."""
        return actions * self.std + self.mean
