"""World-model wrapper that compensates a fixed camera yaw: actions are rotated into the camera's frame.

V-JEPA 2-AC infers its axes from the image alone; a camera moved around the robot turns the actions it means by about
the camera's angle (arXiv 2506.09985, section 11.4, which sketches the remedy used here). Everything outside this
wrapper, bounds and warm starts too, stays in the robot's own frame. Poses given to the model are left as they are, as
they were when the turn was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from presage.values import Calibration
from torch import Tensor

from model.interface import Rollouts
from model.runtime.memory import to_device

HORIZONTAL = ("x", "y")
"""Names of the action entries that turn; they must be the first two."""


def turns(names: Sequence[str]) -> bool:
    """Whether actions of these entries have horizontal axes that a camera's place can turn."""
    return tuple(names[:2]) == HORIZONTAL


@dataclass(frozen=True)
class CameraYawWorldModel:
    """A world model for `planner`: the context's first entry is a rotation `[batch, 2, 2]`, the rest is the model's.

    The rotation takes the model's x and y to the robot's. Differentiable in the actions.
    """

    model: Rollouts

    @property
    def block(self) -> int:
        return self.model.block

    def rollout(
        self, context: tuple[Tensor, ...], actions: Float[Tensor, "batch samples time action"]
    ) -> Float[Tensor, "batch samples horizon *latent"]:
        """What the model predicts for the robot's actions, seen from where its camera stands."""
        rotation, *inner = context
        return self.model.rollout(tuple(inner), turned_back(actions, rotation))


def turned_back(
    actions: Float[Tensor, "*any time action"], rotation: Float[Tensor, "batch 2 2"]
) -> Float[Tensor, "*any time action"]:
    """The robot's actions as the model means them; with a batch of actions, a rotation for each."""
    if actions.ndim == 2:
        return turned_back(actions[None, None], rotation)[0, 0]
    horizontal = torch.einsum("bji,bstj->bsti", rotation.to(actions.dtype), actions[..., :2])  # the transpose
    return torch.cat([horizontal, actions[..., 2:]], dim=-1)


def rotation(angle_rad: float, device: torch.device) -> Float[Tensor, "1 2 2"]:
    """The rotation by an angle, as `CameraYawWorldModel` takes it."""
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    return to_device(torch.tensor([[[cos, -sin], [sin, cos]]]), device)


def fit_camera_yaw(moved: Float[Tensor, "moves 2"], understood: Float[Tensor, "moves 2"]) -> Calibration:
    """The rotation that, by least squares, takes what the model understood of some moves to what the robot did.

    A least-squares matrix would also stretch and shear, which camera angles do not; the rotation nearest to the data
    needs only their summed products (orthogonal Procrustes in the plane).
    """
    done, seen = moved.double(), understood.double()
    along = (seen * done).sum()
    across = (seen[:, 0] * done[:, 1] - seen[:, 1] * done[:, 0]).sum()
    angle = math.atan2(float(across), float(along))
    turned = seen @ rotation(angle, seen.device)[0].double().T
    return Calibration(angle, _spread(done - turned), _spread(done - seen), len(done))


def _spread(errors: Tensor) -> float:
    return float(errors.square().sum(-1).mean().sqrt())
