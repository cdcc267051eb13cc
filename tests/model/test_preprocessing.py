"""Crop policies against the published pipelines' pixels, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.preprocessing import CROP_POLICIES, CropPolicy, ObservationError, fit, observation_warnings, prepare
from tests.support.model.reference_files import fixture, worst

PUBLISHED: dict[CropPolicy, str] = {
    "planning": "ac_notebook",
    "training": "ac_train_recipe",
    "evaluation": "eval_hub_list_numpy_cv2",
    "evaluation_antialiased": "eval_hub_tensor",
}


@pytest.mark.parametrize("policy", PUBLISHED)
@pytest.mark.parametrize("clip", ["v180x320", "v480x640", "v256x256"])
def test_crop_policy_parity(policy: CropPolicy, clip: str) -> None:
    reference = fixture("preprocess")
    got = prepare(reference["inputs"][clip], policy, (256, 256))
    assert worst(got[:1].movedim(0, 1), reference["outputs"][f"{clip}.{PUBLISHED[policy]}"]) <= 1e-5


def column_numbers(height: int, width: int) -> Tensor:
    """A frame whose red is the column, green the row."""
    frame = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    frame[..., 0] = torch.arange(width, dtype=torch.uint8)
    frame[..., 1] = torch.arange(height, dtype=torch.uint8).unsqueeze(1)
    return frame


def seen(frame: Tensor, policy: CropPolicy, side: int) -> tuple[float, float, float, float]:
    """First and last column and row (in the frame's pixels) that the policy shows."""
    picture = 255 * prepare(frame, policy, (side, side), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))[0]
    columns, rows = picture[0, 0], picture[1, :, 0]
    return round(float(columns[0])), round(float(columns[-1])), round(float(rows[0])), round(float(rows[-1]))


def test_each_policy_shows_its_part_of_a_wide_and_of_a_tall_frame() -> None:
    wide, tall = column_numbers(100, 200), column_numbers(200, 100)
    assert seen(wide, "planning", 100) == (50, 149, 0, 99)
    assert seen(tall, "planning", 100) == (0, 99, 50, 149)
    left, right, top, bottom = seen(wide, "training", 100)
    assert (top, bottom) == (0, 99)
    assert right - left == pytest.approx(134, abs=1)
    left, right, top, bottom = seen(tall, "training", 100)
    assert (left, right) == (0, 99)
    assert bottom - top == pytest.approx(133, abs=1)
    left, right, top, bottom = seen(wide, "evaluation", 100)
    assert right - left == pytest.approx(87, abs=1)
    assert bottom - top == pytest.approx(87, abs=1)


def test_exact_takes_the_models_own_size_untouched() -> None:
    frame = column_numbers(16, 24)
    got = prepare(frame, "exact", (16, 24), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert torch.equal((255 * got).round().to(torch.uint8), frame.movedim(-1, 1))
    with pytest.raises(ObservationError, match=r"frames must be 24 x 24 \(height x width\) exactly, got 16 x 24"):
        prepare(frame, "exact", (24, 24))


@pytest.mark.parametrize("policy", CROP_POLICIES)
def test_frames_are_normalized_by_channel(policy: CropPolicy) -> None:
    frame = torch.tensor([0, 127, 255], dtype=torch.uint8).expand(1, 32, 32, 3)
    got = prepare(frame, policy, (32, 32), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    expected = torch.tensor([0.0, (127 / 255 - 0.5) / 0.5, 0.0])
    assert torch.allclose(got[0, :, 5, 5], expected, atol=1e-6)
    assert got.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"with channels last, got \[1, 3, 16, 16\]"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), r"must be \[batch, height, width, 3\], got \[16, 16, 3\]"),
        (torch.zeros(1, 16, 16, 3), "must be uint8 in 0..255, got float32"),
        (torch.zeros(1, 0, 16, 3, dtype=torch.uint8), "must not be empty"),
    ],
)
def test_frames_of_the_wrong_kind_are_refused_by_name(frames: Tensor, message: str) -> None:
    with pytest.raises(ObservationError, match=message):
        prepare(frames, "planning", (16, 16))


def test_a_smoothed_square_is_the_mean_of_its_pixels_and_a_plain_one_is_not() -> None:
    stripes = torch.zeros(1, 32, 48, 3, dtype=torch.uint8)
    stripes[:, :, 8:40:4] = 255  # every fourth column of the square in the middle
    stripes[:, :, :8] = stripes[:, :, 40:] = 77  # what lies beside it is not seen
    smooth = fit(stripes, "planning_antialiased", (8, 8))
    assert smooth.shape == (1, 8, 8, 3)
    assert (smooth[:, :, 1:-1].float() - 255 / 4).abs().max() < 8
    assert fit(stripes, "planning", (8, 8)).float().std() < 1e-6  # one column of four, the same each time
    assert (fit(stripes, "planning", (8, 8)).float() - 255 / 4).abs().max() > 60
    assert torch.equal(fit(stripes, "exact", (32, 48)), stripes)
    assert torch.equal(fit(stripes[:, :, 8:40], "planning", (32, 32)), stripes[:, :, 8:40])
    with pytest.raises(ObservationError, match="exactly"):
        fit(stripes, "exact", (32, 32))


def test_unknown_policies_and_oblong_squares_are_refused() -> None:
    frame = column_numbers(16, 16)
    with pytest.raises(ObservationError, match="crop policy must be one of planning, planning_antialiased, training"):
        prepare(frame, "middle", (16, 16))  # type: ignore[arg-type]
    with pytest.raises(ObservationError, match="size must be square with the planning policy, got 16 x 24"):
        prepare(frame, "planning", (16, 24))


def textured(rows: int, columns: int) -> Tensor:
    return column_numbers(rows, columns)[0]


def test_an_ordinary_frame_raises_no_doubt() -> None:
    assert observation_warnings(textured(60, 80), (64, 64), patch=16) == ()


def test_odd_frames_are_warned_of() -> None:
    (small,) = observation_warnings(textured(31, 80), (64, 64), patch=16)
    assert "31 x 80 pixels are enlarged more than twice" in small
    (cast,) = observation_warnings(torch.ones(64, 64, 3, dtype=torch.uint8), (64, 64), patch=16)
    assert "were pixels in 0..1 cast to uint8" in cast
    (covered,) = observation_warnings(torch.full((64, 64, 3), 90, dtype=torch.uint8), (64, 64), patch=16)
    assert "all values lie in 90..90" in covered


def test_a_frame_smaller_than_a_patch_is_refused() -> None:
    with pytest.raises(ObservationError, match="frames must have at least 16 x 16 pixels, a patch, got 15 x 80"):
        observation_warnings(textured(15, 80), (64, 64), patch=16)
