"""Robot poses and their changes, as pure tensor work on any device.

A pose is `[x, y, z, roll, pitch, yaw, gripper]`: meters in the robot's base frame, radians about the fixed axes x, y, z
in that order (extrinsic xyz), gripper 0 open to 1 closed. An action is the change from one pose to the next, with its
rotation as the Euler angles of `R_next @ R^T`. Rotations are computed in float64 whatever comes in: it costs nothing at
this size, and near a vertical pitch float32 loses half its digits.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from model.preprocessing import ObservationError

POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
Poses = Float[Tensor, "*batch 7"]


def compose(poses: Poses, actions: Poses) -> Poses:
    """The poses after the actions: positions add, rotations multiply from the left, the gripper stays within 0..1."""
    position = poses[..., :3] + actions[..., :3]
    rotation = rotation_matrix(actions[..., 3:6]) @ rotation_matrix(poses[..., 3:6])
    gripper = (poses[..., 6:] + actions[..., 6:]).clamp(0.0, 1.0)
    return torch.cat([position, euler_angles(rotation).to(position.dtype), gripper], dim=-1)


def difference(poses: Poses, later: Poses) -> Poses:
    """The actions that take `poses` to `later`; `compose` undoes it."""
    rotation = rotation_matrix(later[..., 3:6]) @ rotation_matrix(poses[..., 3:6]).mT
    angles = euler_angles(rotation).to(poses.dtype)
    return torch.cat([later[..., :3] - poses[..., :3], angles, later[..., 6:] - poses[..., 6:]], dim=-1)


def rotation_matrix(angles: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation about x, then y, then z, all axes fixed; float64."""
    cx, cy, cz = angles.double().cos().unbind(-1)
    sx, sy, sz = angles.double().sin().unbind(-1)
    rows = [
        torch.stack([cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx], dim=-1),
        torch.stack([sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx], dim=-1),
        torch.stack([-sy, cy * sx, cy * cx], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def euler_angles(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Angles about the fixed axes x, y, z, pitch within +-pi/2. With a vertical pitch, where only one sum of roll and
    yaw is defined, yaw is 0."""
    level = torch.hypot(rotation[..., 0, 0], rotation[..., 1, 0])
    vertical = level < 1e-12
    pitch = torch.atan2(-rotation[..., 2, 0], level)
    roll = torch.atan2(
        torch.where(vertical, -rotation[..., 1, 2], rotation[..., 2, 1]),
        torch.where(vertical, rotation[..., 1, 1], rotation[..., 2, 2]),
    )
    yaw = torch.where(vertical, 0.0, torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0]))
    return torch.stack([roll, pitch, yaw], dim=-1)


def check_poses(poses: Poses, field: str = "proprioception") -> None:
    """Refuse poses that cannot be meant.

    Raises `ObservationError`: not 7 numbers, not finite, angles that look like degrees, a gripper outside 0..1.
    """
    if poses.shape[-1] != 7:
        raise ObservationError(field, f"must have 7 numbers, {', '.join(POSE_NAMES)}", poses.shape[-1])
    if not bool(torch.isfinite(poses).all()):
        raise ObservationError(field, "must be finite", poses.flatten().tolist()[:7])
    angle = float(poses[..., 3:6].abs().max())
    if angle > 2 * math.pi + 1e-3:
        rule = "must have its angles in radians, within +-2 pi, not in degrees"
        raise ObservationError(field, rule, f"{angle:.4g}")
    low, high = float(poses[..., 6].min()), float(poses[..., 6].max())
    if low < -1e-3 or high > 1 + 1e-3:
        rule = "must have its gripper in 0 (open) .. 1 (closed)"
        raise ObservationError(field, rule, f"{low if low < 0 else high:.4g}")


def pose_warnings(poses: Poses, field: str = "proprioception") -> tuple[str, ...]:
    """Warnings about poses that `check_poses` lets pass but that are rarely meant."""
    warnings = []
    reach, gripper = float(poses[..., :3].abs().max()), float(poses[..., 6].max())
    if reach > 3.0:
        warnings.append(f"{field} position: {reach:.4g} m from the base is past most arms; are these millimeters?")
    if 0 < gripper <= 0.11:
        rule = "is this an opening in meters? 0 is open and 1 is closed"
        warnings.append(f"{field} gripper: at most {gripper:.4g}; {rule}")
    return tuple(warnings)
