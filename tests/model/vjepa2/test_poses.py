"""Pose arithmetic against the published implementation's, and by its own laws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.preprocessing import ObservationError
from model.vjepa2.poses import (
    check_poses,
    compose,
    difference,
    euler_angles,
    pose_warnings,
    rotation_matrix,
)
from tests.support.model.reference_files import fixture, worst

POSE = torch.tensor([0.4, 0.0, 0.3, 3.1, 0.0, -1.9, 0.5])


def apart(got: Tensor, expected: Tensor) -> float:
    """The largest difference of positions, of rotations as matrices, and of grippers."""
    turned = worst(rotation_matrix(got[..., 3:6]), rotation_matrix(expected[..., 3:6]))
    return max(worst(got[..., :3], expected[..., :3]), turned, worst(got[..., 6], expected[..., 6]))


def test_pose_composition_parity() -> None:
    reference = fixture("poses")
    pose = reference["inputs"]["pose"]
    for action, result in (("action", "new_pose"), ("action_no_rotation", "new_pose_no_rotation")):
        got = compose(pose, reference["inputs"][action])
        assert apart(got, reference["outputs"][result][:, 0]) <= 1e-6, action
        assert worst(got, reference["outputs"][result][:, 0]) <= 1e-6, action


def test_pose_difference_parity() -> None:
    reference = fixture("poses")
    pose = reference["inputs"]["pose"].double()
    assert apart(difference(pose, pose.roll(-1, 0)), reference["outputs"]["diff_to_next"]) <= 1e-6
    assert apart(difference(pose[:-1], pose[1:]), reference["outputs"]["droid_poses_to_diffs"]) <= 1e-6


def test_a_difference_composes_back() -> None:
    here, there = torch.rand(2, 100, 7, dtype=torch.float64).unbind(0)
    here[:, 3:6], there[:, 3:6] = 6 * here[:, 3:6] - 3, 6 * there[:, 3:6] - 3
    assert apart(compose(here, difference(here, there)), there) <= 1e-12


def test_angles_survive_the_matrix_and_back() -> None:
    angles = torch.rand(100, 3, dtype=torch.float64) * torch.tensor([6.0, 3.0, 6.0]) - torch.tensor([3.0, 1.5, 3.0])
    assert worst(euler_angles(rotation_matrix(angles)), angles) <= 1e-12


@pytest.mark.parametrize("pitch", [math.pi / 2, -math.pi / 2])
def test_a_vertical_pitch_keeps_its_rotation(pitch: float) -> None:
    angles = torch.tensor([0.3, pitch, 0.8], dtype=torch.float64)
    again = euler_angles(rotation_matrix(angles))
    assert worst(rotation_matrix(again), rotation_matrix(angles)) <= 1e-8


def test_the_gripper_stays_between_open_and_closed() -> None:
    actions = torch.zeros(2, 7)
    actions[:, 6] = torch.tensor([0.9, -0.9])
    assert compose(POSE.expand(2, -1), actions)[:, 6].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (3, -179.26, "proprioception must have its angles in radians, .* not in degrees, got 179.3"),
        (6, 1.4, r"proprioception must have its gripper in 0 \(open\) .. 1 \(closed\), got 1.4"),
        (6, -0.2, "proprioception must .* gripper .* got -0.2"),
        (0, math.nan, "proprioception must be finite"),
    ],
)
def test_poses_that_cannot_be_meant_are_refused_by_name(index: int, value: float, message: str) -> None:
    pose = POSE.clone()
    pose[index] = value
    with pytest.raises(ObservationError, match=message):
        check_poses(pose)


def test_poses_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ObservationError, match="proprioception must have 7 numbers, x, y, .* got 6"):
        check_poses(POSE[:6])


def test_suspicious_poses_are_warned_of() -> None:
    assert pose_warnings(POSE) == ()
    millimeters, meters = POSE.clone(), POSE.clone()
    millimeters[0], meters[6] = 400.0, 0.04
    assert "millimeters" in pose_warnings(millimeters)[0]
    assert "opening in meters" in pose_warnings(meters)[0]
